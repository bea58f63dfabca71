"""What readers get: plain objects with ranges, look-ups, single maps, and never damaged data."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from depthcache.errors import CacheCorruptError
from depthcache.exchange.transfer import pull_cache


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parent") / "root"


@pytest.fixture(scope="module")
def cache(root: Path, make_cache: Callable[..., Path]) -> Path:
    root.mkdir()
    folder = make_cache(root)
    (root.parent / "outside.txt").write_text("OUTSIDE")
    return folder


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], root: Path, cache: Path) -> Any:
    return start_service(root)


@pytest.fixture(scope="module")
def segment(cache: Path) -> Path:
    return next(path.parent for path in sorted(cache.glob("segments/*/sealed.json")))


def test_every_listed_object_arrives_whole_with_its_digest(
    service: Any, root: Path, segment: Path
) -> None:
    listed = json.loads((segment / "sealed.json").read_text())["objects"]
    with service.client() as client:
        for name in [*listed, "sealed.json"]:
            answer = client.get(f"/{(segment / name).relative_to(root)}")
            data = (segment / name).read_bytes()
            assert answer.content == data
            digest = hashlib.sha256(data)
            assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
            encoded = base64.b64encode(digest.digest()).decode()
            assert answer.headers["repr-digest"] == f"sha-256=:{encoded}:"


def test_ranges_conditions_and_heads(service: Any, root: Path, segment: Path) -> None:
    shard = max((p for p in segment.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data, path = shard.read_bytes(), f"/{shard.relative_to(root)}"
    with service.client() as client:
        part = client.get(path, headers={"Range": "bytes=5-104"})
        assert (part.status_code, part.content) == (206, data[5:105])
        assert part.headers["content-range"] == f"bytes 5-104/{len(data)}"
        assert client.get(path, headers={"Range": "bytes=-7"}).content == data[-7:]
        etag = part.headers["etag"]
        stale = client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
        assert (stale.status_code, stale.content) == (200, data)
        fresh = client.get(path, headers={"Range": "bytes=0-1", "If-Range": etag})
        assert fresh.status_code == 206
        same = client.get(path, headers={"If-None-Match": f'"other", {etag}'})
        assert (same.status_code, same.content) == (304, b"")
        head = client.head(path)
        assert (head.headers["content-length"], head.content) == (str(len(data)), b"")
        beyond = client.get(path, headers={"Range": f"bytes={len(data)}-"})
        assert beyond.status_code == 416
        assert client.put(path, content=b"x").status_code == 401


def test_maps_are_listed_by_age_and_by_the_beginning_of_their_keys(
    start_service: Callable[..., Any], make_cache: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_cache(tmp_path, num_segments=3)
    ages = {path.parent.name: age for age, path in enumerate(folder.glob("segments/*/sealed.json"))}
    for name, age in ages.items():
        os.utime(folder / "segments" / name / "sealed.json", (1e9 - age, 1e9 - age))
    path = f"/api/v1/caches/{folder.name}/maps"
    with start_service(tmp_path).client() as client:
        whole = client.get(path, params={"limit": 200}).json()
        assert whole["num_maps"] == len(whole["maps"]) == 36
        assert [ages[each["segment"]] for each in whole["maps"]] == [0] * 12 + [1] * 12 + [2] * 12
        pages = [client.get(path, params={"offset": o, "limit": 7}).json() for o in (0, 7, 35, 99)]
        expected = [whole["maps"][o : o + 7] for o in (0, 7, 35, 99)]
        assert [each["maps"] for each in pages] == expected
        keys = sorted(each["digest"] for each in whole["maps"])
        for prefix in ("", *"0123456789abcdef", keys[5][:3], keys[5], "f" * 64, "0" * 64):
            answer = client.get(path, params={"prefix": prefix, "limit": 200}).json()
            named = sorted(each["digest"] for each in answer["maps"])
            assert named == [key for key in keys if key.startswith(prefix)]
        wrong = ({"prefix": "F"}, {"prefix": "0" * 65}, {"limit": 201}, {"offset": -1})
        assert [client.get(path, params=each).status_code for each in wrong] == [422] * 4


def test_thumbnails_are_small_and_larger_ones_are_the_map(
    service: Any, cache: Path, digests: Callable[[Path], list[str]]
) -> None:
    path = f"/api/v1/caches/{cache.name}/maps/{digests(cache)[0]}.png"
    with service.client() as client:
        sizes = [
            max(Image.open(io.BytesIO(client.get(path, params=p).content)).size)
            for p in ({}, {"side": 16}, {"side": 4096})
        ]
        assert sizes == [32, 16, 32]
        assert client.get(path, params={"side": 15}).status_code == 422


def test_what_no_manifest_lists_does_not_exist(
    service: Any, root: Path, cache: Path, segment: Path
) -> None:
    (segment / "stray.txt").write_text("stray")
    unsealed = cache / "segments" / "unsealed"
    (unsealed / "maps").mkdir(parents=True)
    (unsealed / "zarr.json").write_text("{}")
    try:
        with service.client() as client:
            for path in [segment / "stray.txt", unsealed / "zarr.json", root / ".service" / "lock"]:
                assert path.exists()
                assert client.get(f"/{path.relative_to(root)}").status_code == 404
            listed = client.get("/catalogue.json").json()
        assert "unsealed" not in listed["caches"][0]["segments"]
    finally:
        (segment / "stray.txt").unlink()
        (unsealed / "zarr.json").unlink()


def test_lookup_tells_present_from_missing_in_order(
    service: Any, cache: Path, digests: Callable[[Path], list[str]]
) -> None:
    present = digests(cache)
    absent = [hashlib.sha256(b"absent %d" % i).hexdigest() for i in range(3)]
    asked = [absent[0], *present, absent[1], present[0], absent[2]]
    with service.client() as client:
        answer = client.post(f"/api/v1/caches/{cache.name}/lookup", json={"digests": asked}).json()
    assert [location is not None for location in answer["locations"]] == [
        digest in present for digest in asked
    ]
    assert answer["num_present"] == len(present) + 1
    assert answer["num_digests"] == len(asked)
    segment, bucket, row = answer["locations"][1]
    assert (cache / "segments" / answer["segments"][segment]).is_dir()
    assert "x" in answer["buckets"][bucket]
    assert row >= 0


@pytest.mark.parametrize(
    "body",
    [
        {"digests": ["0" * 63]},
        {"digests": ["g" * 64]},
        {"digests": [" " * 64]},
        {"digests": ["0" * 32, "0" * 96]},
        {"digests": [1]},
        {"digests": "0" * 64},
        {},
        [],
        {"digests": ["0" * 64] * 100_001},
    ],
)
def test_a_malformed_lookup_is_422(service: Any, cache: Path, body: Any) -> None:
    with service.client() as client:
        answer = client.post(f"/api/v1/caches/{cache.name}/lookup", json=body)
    assert answer.status_code == 422


def test_an_oversized_body_is_413_announced_or_not(service: Any, cache: Path) -> None:
    path = f"/api/v1/caches/{cache.name}/lookup"
    with service.client() as client:
        assert client.post(path, content=b" " * (17 * 2**20)).status_code == 413

    def unannounced() -> Any:
        for _ in range(17):
            yield b" " * 2**20

    with service.client() as client:
        try:
            status = client.post(path, content=unannounced()).status_code
        except httpx.WriteError:
            status = 413  # the server closed before all of it was sent
    assert status == 413


def test_a_single_map_equals_the_local_one(
    service: Any,
    cache: Path,
    digests: Callable[[Path], list[str]],
    read_locally: Callable[[Path, str], np.ndarray],
) -> None:
    digest = digests(cache)[0]
    with service.client() as client:
        npy = client.get(f"/api/v1/caches/{cache.name}/maps/{digest}.npy")
        png = client.get(f"/api/v1/caches/{cache.name}/maps/{digest}.png")
    expected = read_locally(cache, digest)
    served = np.load(io.BytesIO(npy.content), allow_pickle=False)
    assert served.dtype == np.float32
    np.testing.assert_array_equal(served, expected)
    picture = np.asarray(Image.open(io.BytesIO(png.content)).convert("L"), dtype=np.float64)
    assert picture.shape == expected.shape
    nearest, farthest = expected.argmax(), expected.argmin()
    assert picture.flat[nearest] > picture.flat[farthest] + 100


TRAVERSALS = [
    "/../outside.txt",
    "/%2e%2e/outside.txt",
    "/..%2foutside.txt",
    "/{cache}/../../outside.txt",
    "/{cache}/segments/../../../outside.txt",
    "/{cache}/segments/{segment}/../../../../outside.txt",
    "/{cache}/segments/{segment}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/outside.txt",
    "/{cache}/segments/{segment}//etc/passwd",
    "//etc/passwd",
    "/{cache}/segments/{segment}/zarr.json%00",
    "/{cache}\\..\\..\\outside.txt",
    "/web/../app.py",
    "/web/%2e%2e%2fapp.py",
]


@pytest.mark.parametrize("target", TRAVERSALS)
def test_no_path_leads_outside(service: Any, cache: Path, segment: Path, target: str) -> None:
    path = target.format(cache=cache.name, segment=segment.name)
    answer = _raw(service.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.1 422"))
    assert b"OUTSIDE" not in answer
    assert b"root:" not in answer


def test_a_link_out_of_a_segment_makes_it_unserved(
    root: Path, make_cache: Callable[..., Path], start_service: Callable[..., Any], tmp_path: Path
) -> None:
    other = tmp_path / "root"
    other.mkdir()
    folder = make_cache(other)
    segment = next(path.parent for path in folder.glob("segments/*/sealed.json"))
    (segment / "zarr.json").rename(tmp_path / "zarr.json")
    (segment / "zarr.json").symlink_to(tmp_path / "zarr.json")
    server = start_service(other)
    with server.client() as client:
        answer = client.get(f"/{(segment / 'zarr.json').relative_to(other)}")
        described = client.get(f"/api/v1/caches/{folder.name}").json()
    assert answer.status_code == 404
    assert described["damaged_segments"] == [segment.name]


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "X"]),
    path=st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")),
    headers=st.lists(st.tuples(st.sampled_from([b"Range", b"If-Range", b"Authorization",
        b"Content-Length", b"Transfer-Encoding", b"Upload-Offset", b"If-None-Match"]),
        st.binary(max_size=30)), max_size=3),
    body=st.binary(max_size=100),
)  # fmt: skip
def test_no_request_makes_the_server_fail(
    service: Any, method: str, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    lines = [b"%s /%s HTTP/1.1" % (method.encode(), path), b"Host: x", b"Connection: close"]
    lines += [b"%s: %s" % pair for pair in headers]
    answer = _raw(service.port, b"\r\n".join(lines) + b"\r\n\r\n" + body, half_close=True)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert b"OUTSIDE" not in answer


def test_the_server_is_well_after_all_that(service: Any) -> None:
    with service.client() as client:
        assert client.get("/healthz").status_code == 200
        metrics = client.get("/metrics").text
    assert 'depthcache_requests_total{method="GET",route="object",status="206"}' in metrics
    assert "Traceback" not in service.log.read_text()


def test_a_flipped_bit_never_arrives_as_depth(
    make_cache: Callable[..., Path],
    start_service: Callable[..., Any],
    digests: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    folder = make_cache(root)
    originals = {
        path: path.read_bytes()
        for path in folder.glob("segments/*/maps/**/c/**/*")
        if path.is_file()
    }
    for path, data in originals.items():
        damaged = bytearray(data)
        damaged[len(data) // 3] ^= 0x10
        path.write_bytes(damaged)
    server = start_service(root)
    statuses = set()
    with server.client() as client:
        for digest in digests(folder):
            answer = client.get(f"/api/v1/caches/{folder.name}/maps/{digest}.npy")
            statuses.add(answer.status_code)
            if answer.status_code == 500:
                assert answer.json()["error"] == "map-damaged"
    assert 500 in statuses
    with pytest.raises(CacheCorruptError, match="twice"):
        pull_cache(server.url, tmp_path / "copy", None)
    assert not list((tmp_path / "copy").glob("*/segments/*/sealed.json"))
    shorter = next(iter(originals))
    shorter.write_bytes(originals[shorter][:-1])
    with server.client() as client:
        answer = client.get(f"/{shorter.relative_to(root)}")
    assert (answer.status_code, answer.json()["error"]) == (500, "object-damaged")


def _raw(port: int, request: str | bytes, *, half_close: bool = False) -> bytes:
    """Send bytes as they are; an HTTP client would tidy them first."""
    data = request.encode() if isinstance(request, str) else request
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(data)
            if half_close:  # so that the server does not wait for a body that never comes
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer
