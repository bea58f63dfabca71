"""Clients of the service: other libraries, damaged and broken connections, kills, a local tier."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthcache import DepthCache
from depthcache.errors import CacheCorruptError, CacheUnreachableError, DepthCacheError
from depthcache.exchange.transfer import pull_cache, push_cache

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture(scope="module")
def short_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.001)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Path]) -> Path:
    return make_cache(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], cache: Path) -> Any:
    return start_service(cache.parent)


@pytest.fixture(scope="module")
def maps(cache: Path) -> dict[str, np.ndarray]:
    """What a reader of the folder gets."""
    reader = DepthCache.open(cache)
    keys = list(reader.keys())
    return dict(zip(keys, reader.read_batch(keys), strict=True))


class Proxy:
    """Passes requests on to a service, and answers as `change` makes them.

    `change(body, number)` returns the bytes to send as the body of answer `number`; fewer than
    announced end with the connection.
    """

    def __init__(self, port: int, change: Callable[[bytes, int], bytes]) -> None:
        self.change = change
        self.headers_passed = ("ETag", "Repr-Digest", "Content-Range", "Content-Type")
        self.paths: list[tuple[str, str | None]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                passed = {n: v for n, v in self.headers.items() if n in ("Range", "Authorization")}
                upstream.request("GET", self.path, headers=passed)
                answer = upstream.getresponse()
                body = answer.read()
                upstream.close()
                proxy.paths.append((self.path, self.headers["Range"]))
                changed = proxy.change(body, len(proxy.paths))
                self.send_response(answer.status)
                for name in proxy.headers_passed:
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(changed)
                if len(changed) < len(body):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Keep the test output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def start_proxy(service: Any) -> Iterator[Callable[..., Proxy]]:
    started = []

    def start(change: Callable[[bytes, int], bytes]) -> Proxy:
        started.append(Proxy(service.port, change))
        return started[-1]

    yield start
    for proxy in started:
        proxy.close()


def _flip_bit(body: bytes, chooser: random.Random) -> bytes:
    damaged = bytearray(body)
    if damaged:
        damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
    return bytes(damaged)


@pytest.mark.parametrize("seed", range(3))  # the damaged third begins at each of its places
def test_bits_that_flip_on_the_way_never_become_depth(
    start_proxy: Callable[..., Proxy], maps: dict[str, np.ndarray], seed: int
) -> None:
    """Every third answer is damaged; then every one."""
    chooser = random.Random(seed)
    proxy = start_proxy(lambda body, n: _flip_bit(body, chooser) if n % 3 == seed % 3 else body)
    with contextlib.suppress(DepthCacheError):
        reader = DepthCache.open(proxy.url)
        for key, expected in maps.items():
            with contextlib.suppress(DepthCacheError):
                np.testing.assert_array_equal(reader.read(key), expected)
    assert len(proxy.paths) > 3
    chooser = random.Random(seed)
    proxy.change = lambda body, _: _flip_bit(body, chooser)
    with contextlib.suppress(DepthCacheError):
        reader.refresh()
        for key, expected in maps.items():
            with contextlib.suppress(DepthCacheError):
                np.testing.assert_array_equal(reader.read(key), expected)


def test_one_flip_is_repaired_by_asking_again(
    start_proxy: Callable[..., Proxy], maps: dict[str, np.ndarray]
) -> None:
    proxy = start_proxy(lambda body, _: body)
    reader = DepthCache.open(proxy.url)
    reader.missing([])
    chooser = random.Random(0)
    damaged: set[tuple[str, str | None]] = set()

    def damage_once(body: bytes, _: int) -> bytes:
        request = proxy.paths[-1]
        if request in damaged:
            return body
        damaged.add(request)
        return _flip_bit(body, chooser)

    proxy.change = damage_once
    for key, expected in maps.items():
        np.testing.assert_array_equal(reader.read(key), expected)
    assert len(damaged) > len(maps)


def test_answers_cut_short_are_asked_for_again(
    start_proxy: Callable[..., Proxy], maps: dict[str, np.ndarray], cache: Path, tmp_path: Path
) -> None:
    proxy = start_proxy(lambda body, n: body[: len(body) // 2] if n % 2 else body)
    reader = DepthCache.open(proxy.url)
    for key, expected in maps.items():
        np.testing.assert_array_equal(reader.read(key), expected)
    pulled = pull_cache(proxy.url, tmp_path, None)
    stored = {p.relative_to(cache): p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    assert stored == {name: (tmp_path / cache.name / name).read_bytes() for name in stored}
    assert pulled.num_segments == 2
    resumed = [span for path, span in proxy.paths if span and span.endswith("-")]
    assert resumed, "no transfer went on where it had broken"


def test_a_pull_of_damaged_answers_fails_and_leaves_no_segment(
    start_proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    chooser = random.Random(0)
    proxy = start_proxy(lambda body, _: body)

    def damage_maps(body: bytes, _: int) -> bytes:
        return _flip_bit(body, chooser) if "/maps/" in proxy.paths[-1][0] else body

    proxy.change = damage_maps
    with pytest.raises(CacheCorruptError, match="twice"):
        pull_cache(proxy.url, tmp_path, None)
    assert not list(tmp_path.glob("*/segments/*"))


def test_maps_side_by_side_share_a_request(
    start_proxy: Callable[..., Proxy], maps: dict[str, np.ndarray]
) -> None:
    proxy = start_proxy(lambda body, _: body)
    reader = DepthCache.open(proxy.url)
    keys = list(maps)
    for key, read in zip(keys, reader.read_batch(keys), strict=True):
        np.testing.assert_array_equal(read, maps[key])
    proxy.paths.clear()
    shuffled = keys[::-1] + keys[:3]
    for key, read in zip(shuffled, reader.read_batch(shuffled), strict=True):
        np.testing.assert_array_equal(read, maps[key])
    shards = {path for path, _ in proxy.paths}
    assert all("/maps/" in path for path in shards)
    assert len(proxy.paths) == len(shards) < len(keys) / 2


def test_a_local_tier_stays_under_its_cap_and_outlives_the_service(
    start_service: Callable[..., Any], cache: Path, maps: dict[str, np.ndarray], tmp_path: Path
) -> None:
    service = start_service(tmp_path / "root")
    push_cache(cache.parent, service.url, "writer-secret-0123456789")

    def num_kept_bytes(tier: Path) -> int:
        return sum(p.stat().st_size for p in tier.rglob("*") if p.is_file())

    whole, small = tmp_path / "whole", tmp_path / "small"
    reader = DepthCache.open(service.url, local_tier=whole)
    for key, expected in maps.items():
        np.testing.assert_array_equal(reader.read(key), expected)
    cap = num_kept_bytes(whole) // 2
    for _ in range(2):
        capped = DepthCache.open(service.url, local_tier=small, local_tier_bytes=cap)
        for key, expected in maps.items():
            np.testing.assert_array_equal(capped.read(key), expected)
            assert num_kept_bytes(small) <= cap
    assert num_kept_bytes(small) > 0
    service.stop()
    # A trainer that starts now, or whose workers do, reads what this disk has.
    late = DepthCache.open(f"{service.url}/{cache.name}", local_tier=whole)
    assert late.missing(maps) == []
    for key, expected in maps.items():
        np.testing.assert_array_equal(late.read(key), expected)
    late = DepthCache.open(service.url, local_tier=small)
    with pytest.raises(CacheUnreachableError):
        late.missing(maps)
    with pytest.raises(CacheUnreachableError):
        late.read_batch(list(maps))
    with pytest.raises(CacheUnreachableError):
        DepthCache.open(service.url, local_tier=tmp_path / "none")


def test_other_zarr_readers_read_straight_from_the_url(service: Any, cache: Path) -> None:
    import fsspec
    import tensorstore
    import zarr

    segment = min(p.parent for p in cache.glob("segments/*/sealed.json"))
    url = f"{service.url}/{segment.relative_to(cache.parent)}"
    local = zarr.open_group(segment, mode="r")
    names = [f"maps/{name}" for name in local["maps"].array_keys()]
    names += [f"ranges/{name}" for name in local["ranges"].array_keys()] + ["index/digests"]
    remote = zarr.open_group(url, mode="r")
    assert names
    for name in names:
        expected = local[name][:]
        np.testing.assert_array_equal(remote[name][:], expected)
        opened = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "http", "base_url": f"{url}/{name}/"}},
            open=True,
        ).result()
        np.testing.assert_array_equal(opened[...].read().result(), expected)
    shard = max((p for p in segment.glob("maps/**/*") if p.is_file()), key=os.path.getsize)
    with fsspec.open(f"{url}/{shard.relative_to(segment)}", block_size=64) as file:
        file.seek(100)
        assert file.read(50) == shard.read_bytes()[100:150]


_KILL_AT_REQUEST = """
import os, signal, sys
import httpx
from depthcache.exchange.transfer import pull_cache, push_cache
send, sent = httpx.Client.send, []
def send_or_die(self, request, **arguments):
    if len(sent) == int(sys.argv[1]):
        if int(sys.argv[2]):  # after the request is out, before its answer is used
            send(self, request, **arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    sent.append(request.url)
    return send(self, request, **arguments)
httpx.Client.send = send_or_die
{call}
print(len(sent))
"""


def _run_killed(call: str, step: int, after: int) -> int | None:
    """Run a transfer that is killed at a request; the number of requests when it ended before."""
    words = [sys.executable, "-c", _KILL_AT_REQUEST.replace("{call}", call), str(step), str(after)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_client_killed_at_any_request_leaves_nothing_half_done_and_the_next_completes(
    start_service: Callable[..., Any],
    make_cache: Callable[..., Path],
    tmp_path: Path,
    secrets: dict[str, str],
    direction: str,
) -> None:
    (tmp_path / "local").mkdir()
    cache = make_cache(tmp_path / "local", num_segments=1)
    expected = _files(cache)
    target = tmp_path / "target"
    if direction == "push":
        service = start_service(target)
        call = f"push_cache({str(cache)!r}, {service.url!r}, {secrets['writer']!r})"
    else:
        service = start_service(tmp_path / "local")
        call = f"pull_cache({service.url!r}, {str(target)!r}, None)"
    # Each kill comes a few requests further on in what the killed ones before it left to do.
    for number, step in enumerate((0, 1, 2, 5, 9, 4, 1, 0)):
        finished = _run_killed(call, step, number % 2)
        for segment in target.glob("*/segments/*"):
            assert _files(segment) == _files(cache / "segments" / segment.name)
        if finished is not None:
            break
    assert _run_killed(call, 10_000, 0) is not None
    assert _files(target / cache.name) == expected
    assert not list((target / ".staging").iterdir())


_KILL_AT_STEP = """
import os, signal, sys
steps = []
def count(event, arguments):
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        if {root!r} in str(arguments[0]) and ("staging" in str(arguments) or "segments" in str(arguments)):
            steps.append(event)
            if len(steps) == {step}:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
"""  # noqa: E501


@pytest.mark.parametrize("step", [3, 30, 90, 130, 140])
def test_a_server_killed_at_a_step_on_its_disk_publishes_nothing_by_halves(
    start_service: Callable[..., Any],
    make_cache: Callable[..., Path],
    tmp_path: Path,
    secrets: dict[str, str],
    step: int,
) -> None:
    """`benchmarks/service_load.py --kills` does this at every step."""
    (tmp_path / "local").mkdir()
    cache = make_cache(tmp_path / "local", num_segments=1)
    remote = tmp_path / "remote"
    remote.mkdir()
    service = start_service(remote, _KILL_AT_STEP.format(root=str(remote), step=step))
    with contextlib.suppress(DepthCacheError):
        push_cache(cache, service.url, secrets["writer"])
    assert service.process.wait(timeout=20) == -signal.SIGKILL, "the upload has fewer steps"
    for segment in remote.glob("*/segments/*"):
        assert _files(segment) == _files(cache / "segments" / segment.name)
    again = start_service(remote)
    push_cache(cache, again.url, secrets["writer"])
    assert _files(remote / cache.name) == _files(cache)
    assert not list((remote / ".staging").iterdir())


def test_a_catalogue_that_lies_is_refused(
    start_proxy: Callable[..., Proxy], tmp_path: Path, cache: Path
) -> None:
    def lie(body: bytes, _: int) -> bytes:
        document = json.loads(body)
        document["caches"][0]["segments"] = ["../../x"]
        text = json.dumps(document).encode()
        return text + b" " * (len(body) - len(text))

    proxy = start_proxy(lie)
    # A digest that the lie does not have would be taken for damage on the way, and asked for again.
    proxy.headers_passed = ("Content-Type",)
    with pytest.raises(CacheCorruptError, match="not of the format"):
        pull_cache(proxy.url, tmp_path, None)
    assert not list(tmp_path.iterdir())
