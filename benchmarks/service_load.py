"""Throughput of the depth-cache service beside nginx over the same files, and kills during uploads.

Everything runs on loopback and for a bounded time:

    python benchmarks/service_load.py --seconds 5
    python benchmarks/service_load.py --kills 50
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from depthcache import DepthCache, image_key
from depthcache.errors import CacheUnreachableError
from depthcache.object_stores import LocalStore
from depthcache.segment_format import canonical_json, decode_shard_index, fingerprint_folder
from depthcache.segment_writer import seal_segment, write_shard
from depthcache.shard_planning import plan_segment
from depthcache.transfer import push_cache

TOKEN = "benchmark-secret-0123456789"
SHARD_ROWS = 64
SHAPE = (128, 160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--maps", type=int, default=512)
    parser.add_argument("--kills", type=int, default=0, help="kill the server this often instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        make_cache(root, arguments.maps)
        if arguments.kills:
            result = measure_kills(root, Path(folder), arguments.kills)
        else:
            result = measure_load(root, Path(folder), arguments.seconds, arguments.clients)
    print(json.dumps(result, indent=1))


def make_cache(root: Path, num_maps: int) -> str:
    """Smooth maps with noise, as large as they compress in reality."""
    fingerprint = {"model": "benchmark", "format_version": 1}
    folder = fingerprint_folder(fingerprint)
    store = LocalStore(root)
    store.put(f"{folder}/fingerprint.json", canonical_json(fingerprint))
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 1, SHAPE[0], dtype=np.float32)[:, None]
    maps = {
        image_key(b"%d" % number): slope + generator.random(SHAPE, dtype=np.float32) / 50
        for number in range(num_maps)
    }
    plan = plan_segment(dict.fromkeys(maps, SHAPE), fingerprint=folder, shard_rows=SHARD_ROWS)
    prefix = f"{folder}/segments/{plan.segment_id}"
    for shard in plan.shards:
        write_shard(store, prefix, shard, maps, {}, shard_rows=SHARD_ROWS, bits=12)
    seal_segment(store, prefix, plan, bits=12, provenance={})
    return folder


def measure_load(root: Path, folder: Path, seconds: float, num_clients: int) -> dict[str, Any]:
    shards = sorted(p for p in root.glob("*/segments/*/maps/*/c/*/*/*") if p.is_file())
    whole = [(f"/{p.relative_to(root)}", None, _sha256(p.read_bytes())) for p in shards]
    single = []
    for path in shards:
        data = path.read_bytes()
        index = decode_shard_index(data[-(16 * SHARD_ROWS + 4) :], SHARD_ROWS, str(path))
        for start, length in index.tolist():
            if start != 2**64 - 1:
                piece = data[start : start + length]
                header = f"bytes={start}-{start + length - 1}"
                single.append((f"/{path.relative_to(root)}", header, _sha256(piece)))
    service, service_port = start_service(root)
    nginx, nginx_port = start_nginx(root, folder)
    try:
        result: dict[str, Any] = {"cpu_count": os.cpu_count(), "seconds_each": seconds}
        for name, requests in (("whole_shard", whole), ("single_map", single)):
            rates = {}
            for server, port in (("service", service_port), ("nginx", nginx_port)):
                if port is not None:
                    rates[server] = drive(port, requests, seconds, num_clients)
            if "nginx" in rates:
                unit = "bytes_per_second" if name == "whole_shard" else "requests_per_second"
                rates["ratio"] = round(rates["service"][unit] / rates["nginx"][unit], 3)
            result[name] = rates
        result["lookup"] = measure_lookups(root, service_port, seconds)
        return result
    finally:
        for process in (service, nginx):
            if process is not None:
                process.terminate()
                process.wait(timeout=30)


def drive(
    port: int, requests: list[tuple[str, str | None, str]], seconds: float, num_clients: int
) -> dict[str, Any]:
    """Ask from several processes at once; every answer's bytes are checked."""
    with multiprocessing.get_context("spawn").Pool(num_clients) as pool:
        jobs = [(port, requests, seconds, seed) for seed in range(num_clients)]
        parts = pool.starmap(_drive_one, jobs)
    latencies = np.concatenate([np.array(part["latencies"]) for part in parts])
    return {
        "requests_per_second": round(sum(p["requests"] / p["seconds"] for p in parts), 1),
        "bytes_per_second": round(sum(p["bytes"] / p["seconds"] for p in parts)),
        "wrong": sum(p["wrong"] for p in parts),
        "milliseconds_p50_p95_p99": [
            round(float(v) * 1e3, 3) for v in np.percentile(latencies, [50, 95, 99])
        ],
    }


def _drive_one(
    port: int, requests: list[tuple[str, str | None, str]], seconds: float, seed: int
) -> dict[str, Any]:
    chooser = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    wrong = num_bytes = 0
    latencies: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        path, header, digest = chooser.choice(requests)
        before = time.perf_counter()
        connection.request("GET", path, headers={"Range": header} if header else {})
        answer = connection.getresponse()
        data = answer.read()
        latencies.append(time.perf_counter() - before)
        num_bytes += len(data)
        # Checking every large answer would measure sha256; one in sixteen is checked.
        if header or len(latencies) % 16 == 1:
            wrong += _sha256(data) != digest
        wrong += answer.status not in (200, 206)
    return {
        "requests": len(latencies),
        "bytes": num_bytes,
        "wrong": wrong,
        "latencies": latencies,
        "seconds": time.perf_counter() - started,
    }


def measure_lookups(root: Path, port: int, seconds: float) -> dict[str, Any]:
    cache = DepthCache.open(root)
    digests = list(cache.keys())
    digests += [_sha256(b"absent %d" % i) for i in range(100_000 - len(digests))]
    body = json.dumps({"digests": digests}).encode()
    url = f"http://127.0.0.1:{port}/api/v1/caches/{cache.fingerprint}/lookup"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    num_calls = wrong = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        with urllib.request.urlopen(request) as answer:
            wrong += json.load(answer)["num_present"] != len(cache)
        num_calls += 1
    rate = num_calls * len(digests) / (time.perf_counter() - started)
    return {"digests_per_second": round(rate), "wrong": wrong}


def measure_kills(root: Path, folder: Path, num_kills: int) -> dict[str, Any]:
    """SIGKILL the server at random moments of uploads; each upload is then completed."""
    chooser = random.Random(0)
    remote = folder / "remote"
    half_published = completed = killed = 0
    expected = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    while killed < num_kills:
        shutil.rmtree(remote, ignore_errors=True)
        remote.mkdir()
        process, port = start_service(remote)
        done = threading.Event()
        pusher = threading.Thread(target=_push_until_done, args=(root, port, done), daemon=True)
        pusher.start()
        while killed < num_kills and not done.wait(chooser.uniform(0.005, 0.4)):
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            for segment in remote.glob("*/segments/*"):
                files = {p for p in segment.rglob("*") if p.is_file()}
                wrong = any(f.read_bytes() != expected[f.relative_to(remote)] for f in files)
                half_published += wrong or not (segment / "sealed.json").exists()
            process, _ = start_service(remote, port)
        pusher.join(timeout=120)
        copied = {p: (remote / p).read_bytes() for p in expected if (remote / p).is_file()}
        completed += copied == expected
        if copied != expected:
            raise SystemExit("an upload did not complete")
        process.terminate()
        process.wait()
    return {"kills": killed, "half_published": half_published, "uploads_completed": completed}


def _push_until_done(root: Path, port: int, done: threading.Event) -> None:
    while not done.is_set():
        try:
            push_cache(root, f"http://127.0.0.1:{port}", TOKEN)
            done.set()
        except CacheUnreachableError:
            continue


def start_service(root: Path, port: int | None = None) -> tuple[subprocess.Popen[bytes], int]:
    port = port or _free_port()
    code = f"from depthcache.service.server import serve; serve({str(root)!r}, port={port})"
    environment = {**os.environ, "DEPTHCACHE_TOKENS": f"benchmark:write:{TOKEN}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment
    )
    _wait_for(port, "/readyz")
    return process, port


def start_nginx(root: Path, folder: Path) -> tuple[subprocess.Popen[bytes] | None, int | None]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        return None, None
    port = _free_port()
    configuration = folder / "nginx.conf"
    # The temporary folder is private to its owner, so the worker must be that user.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; "
        f"error_log {folder}/nginx-error.log; events {{}} http {{ "
        f"access_log {folder}/nginx-access.log; sendfile on; tcp_nopush on; "
        f"keepalive_requests 1000000; "
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    process = subprocess.Popen([program, "-c", str(configuration), "-p", str(folder)])
    _wait_for(port, "/")
    return process, port


def _wait_for(port: int, path: str) -> None:
    deadline = time.monotonic() + 60
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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
