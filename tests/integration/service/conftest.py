"""A real server in its own process, and small caches for it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from depthcache import DepthCache, image_key
from depthcache.format.segment_format import canonical_json, fingerprint_folder
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.local_folder import LocalStore

SECRETS = {
    "reader": "reader-secret-0123456789",
    "writer": "writer-secret-0123456789",
    "admin": "admin-secret-01234567890",
}
SCOPES = {"reader": "read", "writer": "write", "admin": "admin"}


class ServiceProcess:
    """One server; `log` holds what it wrote to stderr."""

    def __init__(self, root: Path | str, log: Path, preamble: str = "", **settings: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.root = root
        self.log = log
        scheme = "https" if "tls_cert" in settings else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        # A certificate made for a test is its own authority.
        self._authority = settings.get("tls_cert")
        self._settings = settings
        self._preamble = preamble
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServiceProcess:
        arguments = ", ".join(
            f"{k}={v!r}" for k, v in {"port": self.port, **self._settings}.items()
        )
        code = (
            f"{self._preamble}\n"
            "from depthcache.service.server import serve\n"
            f"serve({str(self.root)!r}, {arguments})\n"
        )
        tokens = ";".join(f"{name}:{SCOPES[name]}:{secret}" for name, secret in SECRETS.items())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stderr=log,
                env={**os.environ, "DEPTHCACHE_TOKENS": tokens},
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if self._is_ready():
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready after 120 seconds: {self.log.read_text()}")

    def _is_ready(self) -> bool:
        if self._authority is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        else:
            context = ssl.create_default_context(cafile=str(self._authority))
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=10, context=context
            )
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=60)

    def client(self, name: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {SECRETS[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Token of each name; the name says the scope."""
    return SECRETS


@pytest.fixture(scope="module")
def start_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., ServiceProcess]]:
    """Start a server over a root; it is stopped at the end of the module."""
    started: list[ServiceProcess] = []

    def start(root: Path | str, preamble: str = "", **settings: object) -> ServiceProcess:
        log = tmp_path_factory.mktemp("service-log") / "stderr.txt"
        service = ServiceProcess(root, log, preamble, **settings).start()
        started.append(service)
        return service

    yield start
    for service in started:
        if service.process is not None and service.process.poll() is None:
            service.kill()


NUM_IMAGES = 12


def _image(segment: int, number: int) -> bytes:
    """Bytes that stand for an image file; the cache knows images only by their hash."""
    return b"image %d of segment %d" % (number, segment)


@pytest.fixture(scope="session")
def make_cache() -> Callable[..., Path]:
    """Fill a root with segments of small maps of two shapes; returns the fingerprint folder."""

    def make(root: Path, num_segments: int = 2, model: str = "demo", dataset: str = "") -> Path:
        fingerprint = {"model": model, "precision": "fp32", "format_version": 1}
        folder = fingerprint_folder(fingerprint)
        store = LocalStore(root)
        store.put(f"{folder}/fingerprint.json", canonical_json(fingerprint))
        for segment in range(num_segments):
            generator = np.random.default_rng(segment)
            maps = {
                image_key(_image(segment, number)): generator.random(
                    (24, 32) if number % 3 else (32, 24), dtype=np.float32
                )
                for number in range(NUM_IMAGES)
            }
            shapes = {key: (m.shape[0], m.shape[1]) for key, m in maps.items()}
            plan = plan_segment(shapes, fingerprint=folder, shard_rows=4)
            prefix = f"{folder}/segments/{plan.segment_id}"
            for shard in plan.shards:
                write_shard(store, prefix, shard, maps, {}, shard_rows=4, bits=12)
            provenance = {"model_licence": "Apache-2.0", "dataset": dataset}
            seal_segment(store, prefix, plan, bits=12, provenance=provenance)
        return root / folder

    return make


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], list[str]]:
    """Keys of all images of a cache folder."""
    return lambda folder: list(DepthCache.open(folder).keys())


@pytest.fixture(scope="session")
def read_locally() -> Callable[[Path, str], np.ndarray]:
    """The map that a reader of the folder gets."""
    return lambda folder, key: DepthCache.open(folder).read(key)


@pytest.fixture
def image_files(tmp_path: Path) -> Callable[[Path], list[Path]]:
    """Files whose hashes are keys of the cache."""

    def write(folder: Path) -> list[Path]:
        paths = []
        for number in range(4):
            path = tmp_path / f"image-{number}.png"
            path.write_bytes(_image(0, number))
            assert image_key(path.read_bytes()) in DepthCache.open(folder)
            paths.append(path)
        return paths

    return write
