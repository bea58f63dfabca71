"""Load on the depth-cache service beside nginx over the same files, and kills during uploads.

Everything runs on loopback and for a bounded time:

    python benchmarks/service_load.py --rounds 5 --seconds 1.5
    python benchmarks/service_load.py --kills 50

Rounds alternate between the service and nginx, so that what else the machine does hits both; the
ratios are medians over rounds. Every byte of every answer is compared with the file's.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np

from depthcache import DepthCache, image_key
from depthcache.errors import DepthCacheError
from depthcache.exchange.transfer import push_cache
from depthcache.format.segment_format import canonical_json, decode_shard_index, fingerprint_folder
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.local_folder import LocalStore

TOKEN = "benchmark-secret-0123456789"
SHARD_ROWS = 64
# What a DPT at 384 pixels gives for a 4:3 photo is 384x512; a quarter of it keeps the run short.
SHAPE = (192, 256)
UPLOADED_MAPS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a round")
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--maps", type=int, default=512)
    parser.add_argument("--kills", type=int, default=0, help="kill the server this often instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "root"
        make_cache(root, arguments.maps)
        if arguments.kills:
            result = measure_kills(folder, arguments.kills)
        else:
            result = measure_load(
                root, folder, arguments.rounds, arguments.seconds, arguments.clients
            )
    print(json.dumps(result, indent=1))


def make_cache(root: Path, num_maps: int, seed: int = 0) -> str:
    """Smooth maps with noise, as large as they compress in reality."""
    root.mkdir(exist_ok=True)
    fingerprint = {"model": "benchmark", "format_version": 1}
    folder = fingerprint_folder(fingerprint)
    store = LocalStore(root)
    store.put(f"{folder}/fingerprint.json", canonical_json(fingerprint))
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 1, SHAPE[0], dtype=np.float32)[:, None]
    maps = {
        image_key(b"%d of %d" % (number, seed)): slope + generator.random(SHAPE, np.float32) / 50
        for number in range(num_maps)
    }
    plan = plan_segment(dict.fromkeys(maps, SHAPE), fingerprint=folder, shard_rows=SHARD_ROWS)
    prefix = f"{folder}/segments/{plan.segment_id}"
    for shard in plan.shards:
        write_shard(store, prefix, shard, maps, {}, shard_rows=SHARD_ROWS, bits=12)
    seal_segment(store, prefix, plan, bits=12, provenance={})
    return folder


def measure_load(
    root: Path, folder: Path, num_rounds: int, seconds: float, num_clients: int
) -> dict[str, Any]:
    shards = sorted(p for p in root.glob("*/segments/*/maps/*/c/*/*/*") if p.is_file())
    whole = [(str(p.relative_to(root)), 0, p.stat().st_size) for p in shards]
    single = []
    for path in shards:
        data = path.read_bytes()
        index = decode_shard_index(data[-(16 * SHARD_ROWS + 4) :], SHARD_ROWS, str(path))
        for start, length in index.tolist():
            if start != 2**64 - 1:
                single.append((str(path.relative_to(root)), start, length))
    uploads = [folder / f"upload-{number}" for number in range(12)]
    for number, upload in enumerate(uploads):
        make_cache(upload, UPLOADED_MAPS, seed=1 + number)
    result: dict[str, Any] = {
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "rounds": num_rounds,
        "seconds_each": seconds,
        "bytes_of_a_shard": statistics.median(length for _, _, length in whole),
        "bytes_of_a_map": statistics.median(length for _, _, length in single),
    }
    with contextlib.ExitStack() as running:
        service_port = running.enter_context(service(root))
        nginx_port = running.enter_context(nginx(root, folder))
        # One process each for reads of shards, reads of maps, look-ups and uploads.
        num_processes = max(num_clients, 4)
        pool = running.enter_context(multiprocessing.get_context("spawn").Pool(num_processes))
        for name, requests, unit in (
            ("whole_shards", whole, "bytes_per_second"),
            ("single_maps", single, "requests_per_second"),
        ):
            parts: dict[str, list[dict[str, Any]]] = {"service": [], "nginx": []}
            for _ in range(num_rounds):
                for server, port in (("service", service_port), ("nginx", nginx_port)):
                    if port is not None:
                        parts[server].append(
                            drive(pool, root, port, requests, seconds, num_clients)
                        )
            result[name] = {s: summarise(p) for s, p in parts.items() if p}
            if nginx_port is not None:
                pairs = zip(parts["service"], parts["nginx"], strict=True)
                ratios = [a[unit] / b[unit] for a, b in pairs]
                result[name]["ratios"] = [round(r, 3) for r in sorted(ratios)]
                result[name]["ratio"] = round(statistics.median(ratios), 3)
        body, num_present = make_lookup(root)
        result["lookups"] = summarise([_look_up(service_port, body, num_present, seconds * 2)])
        result["mixed"] = measure_mixed(
            pool, root, service_port, whole, single, uploads, seconds * 4
        )
    return result


def measure_mixed(
    pool: Pool,
    root: Path,
    port: int,
    whole: list[tuple[str, int, int]],
    single: list[tuple[str, int, int]],
    uploads: list[Path],
    seconds: float,
) -> dict[str, Any]:
    """Reads of shards and of maps, look-ups and uploads, all at once."""
    body, num_present = make_lookup(root)
    jobs = {
        "whole_shards": pool.apply_async(_read, (root, port, whole, seconds, 0)),
        "single_maps": pool.apply_async(_read, (root, port, single, seconds, 1)),
        "lookups": pool.apply_async(_look_up, (port, body, num_present, seconds)),
        "uploads": pool.apply_async(_upload, (port, uploads, seconds)),
    }
    parts = {name: job.get() for name, job in jobs.items()}
    for upload in uploads[: parts["uploads"]["requests"]]:
        for path in upload.rglob("*"):
            if path.is_file():
                published = root / path.relative_to(upload)
                parts["uploads"]["wrong"] += published.read_bytes() != path.read_bytes()
    return {name: summarise([part]) for name, part in parts.items()}


def drive(
    pool: Pool,
    root: Path,
    port: int,
    requests: list[tuple[str, int, int]],
    seconds: float,
    num_clients: int,
) -> dict[str, Any]:
    """Ask from several processes at once; rates are sums."""
    jobs = [(root, port, requests, seconds, seed) for seed in range(num_clients)]
    parts = pool.starmap(_read, jobs, chunksize=1)
    together = {
        key: sum(part[key] for part in parts)
        for key in ("requests", "bytes_per_second", "requests_per_second", "wrong", "errors_5xx")
    }
    return {**together, "latencies": [t for part in parts for t in part["latencies"]]}


def summarise(parts: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = np.concatenate([np.array(part["latencies"]) for part in parts])
    summary = {
        key: round(statistics.median(part[key] for part in parts), 1)
        for key in ("bytes_per_second", "requests_per_second", "digests_per_second")
        if key in parts[0]
    }
    percentiles = np.percentile(latencies, [50, 95, 99]) * 1e3
    return {
        **summary,
        "milliseconds_p50_p95_p99": [round(float(value), 2) for value in percentiles],
        "requests": sum(part["requests"] for part in parts),
        "wrong": sum(part["wrong"] for part in parts),
        "errors_5xx": sum(part["errors_5xx"] for part in parts),
    }


def _read(
    root: Path, port: int, requests: list[tuple[str, int, int]], seconds: float, seed: int
) -> dict[str, Any]:
    chooser = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    tally = _Tally()
    while tally.elapsed() < seconds:
        name, start, length = chooser.choice(requests)
        expected = _content(root / name)
        is_part = length < len(expected)
        headers = {"Range": f"bytes={start}-{start + length - 1}"} if is_part else {}
        before = time.perf_counter()
        connection.request("GET", f"/{name}", headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        is_right = (
            answer.status == (206 if is_part else 200)
            and data == memoryview(expected)[start : start + length]
        )
        tally.add(time.perf_counter() - before, answer.status, is_right, len(data))
    return tally.result()


def _look_up(port: int, body: bytes, num_present: int, seconds: float) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    document = json.loads(body)
    path = document.pop("path")
    body = json.dumps(document).encode()
    tally = _Tally()
    while tally.elapsed() < seconds:
        before = time.perf_counter()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        seconds_taken = time.perf_counter() - before
        is_right = answer.status == 200 and json.loads(data)["num_present"] == num_present
        tally.add(seconds_taken, answer.status, is_right, len(document["digests"]))
    result = tally.result()
    result["digests_per_second"] = result.pop("bytes_per_second")
    return result


def _upload(port: int, roots: list[Path], seconds: float) -> dict[str, Any]:
    tally = _Tally()
    for root in roots:
        if tally.elapsed() >= seconds:
            break
        before = time.perf_counter()
        try:
            num_bytes = push_cache(root, f"http://127.0.0.1:{port}", TOKEN).num_bytes
        except DepthCacheError as error:
            print(f"upload failed: {error}", file=sys.stderr)
            tally.add(time.perf_counter() - before, 500, False, 0)
        else:
            tally.add(time.perf_counter() - before, 200, True, num_bytes)
    return tally.result()


class _Tally:
    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._latencies: list[float] = []
        self._wrong = self._errors = self._num_bytes = 0

    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    def add(self, seconds: float, status: int, is_right: bool, num_bytes: int) -> None:
        self._latencies.append(seconds)
        self._wrong += not is_right
        self._errors += status >= 500
        self._num_bytes += num_bytes

    def result(self) -> dict[str, Any]:
        elapsed = self.elapsed()
        return {
            "requests": len(self._latencies),
            "requests_per_second": len(self._latencies) / elapsed,
            "bytes_per_second": self._num_bytes / elapsed,
            "wrong": self._wrong,
            "errors_5xx": self._errors,
            "latencies": self._latencies,
        }


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


def make_lookup(root: Path) -> tuple[bytes, int]:
    """A request of 100,000 digests, and how many of them the cache has."""
    cache = DepthCache.open(root)
    present = list(cache.keys())
    absent = [hashlib.sha256(b"absent %d" % i).hexdigest() for i in range(100_000 - len(present))]
    path = f"/api/v1/caches/{cache.fingerprint}/lookup"
    return json.dumps({"path": path, "digests": present + absent}).encode(), len(present)


def measure_kills(folder: Path, num_kills: int) -> dict[str, Any]:
    """SIGKILL the server at each step that it takes on its disk; each upload is then completed."""
    source, remote = folder / "source", folder / "remote"
    make_cache(source, UPLOADED_MAPS)
    expected = {p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    steps = []
    half_published = completed = killed = 0
    step = 1
    while killed < num_kills:
        shutil.rmtree(remote, ignore_errors=True)
        remote.mkdir()
        port = _free_port()
        process = start_service(remote, port, _KILL_AT.format(root=str(remote), step=step))
        done = threading.Event()
        pusher = threading.Thread(target=_push_until_done, args=(source, port, done), daemon=True)
        pusher.start()
        while process.poll() is None and not done.wait(0.01):
            continue
        if process.poll() is None:  # the upload has fewer steps than this
            process.kill()
            process.wait()
            step = 1
            continue
        killed += 1
        steps.append(step)
        for segment in remote.glob("*/segments/*"):
            files = {
                p.relative_to(remote): p.read_bytes() for p in segment.rglob("*") if p.is_file()
            }
            wanted = {n: d for n, d in expected.items() if segment.name in n.parts}
            half_published += files != wanted
        process = start_service(remote, port)
        pusher.join(timeout=120)
        copied = {p: (remote / p).read_bytes() for p in expected if (remote / p).is_file()}
        completed += copied == expected
        print(
            f"{killed}: step {step}, half published {half_published}, completed {completed}",
            file=sys.stderr,
            flush=True,
        )
        process.terminate()
        process.wait()
        step += 3
    return {
        "kills": killed,
        "steps": sorted(set(steps)),
        "half_published": half_published,
        "uploads_completed": completed,
    }


# Opening, making, renaming and removing below the root are the steps of an upload.
_KILL_AT = """
import os, signal, sys
steps = []
def count(event, arguments):
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        names = str(arguments)
        if {root!r} in names and ("/.staging" in names or "/segments" in names):
            steps.append(event)
            if len(steps) == {step}:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
"""


def _push_until_done(root: Path, port: int, done: threading.Event) -> None:
    while not done.is_set():
        with contextlib.suppress(DepthCacheError):
            push_cache(root, f"http://127.0.0.1:{port}", TOKEN)
            done.set()


@contextlib.contextmanager
def service(root: Path) -> Iterator[int]:
    port = _free_port()
    process = start_service(root, port)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def start_service(root: Path, port: int, preamble: str = "") -> subprocess.Popen[bytes]:
    code = f"{preamble}\nfrom depthcache.service.server import serve\n"
    code += f"serve({str(root)!r}, port={port})"
    environment = {**os.environ, "DEPTHCACHE_TOKENS": f"benchmark:write:{TOKEN}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment
    )
    _wait_for(port, "/readyz")
    return process


@contextlib.contextmanager
def nginx(root: Path, folder: Path) -> Iterator[int | None]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    port = _free_port()
    configuration = folder / "nginx.conf"
    # The temporary folder is private to its owner, so the worker must be that user.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; "
        f"error_log {folder}/nginx-error.log; events {{}} http {{ "
        f"access_log {folder}/nginx-access.log; sendfile on; tcp_nopush off; tcp_nodelay on; "
        f"keepalive_requests 1000000; "
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    process = subprocess.Popen([program, "-c", str(configuration), "-p", str(folder)])
    try:
        _wait_for(port, "/")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(port: int, path: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").close()
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"nothing answers on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
