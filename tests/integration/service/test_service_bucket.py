"""A root in an S3 bucket, on moto's real HTTP server: reading, uploads, conditional publication."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthcache import DepthCache
from depthcache.errors import CacheMismatchError, DepthCacheError
from depthcache.exchange.transfer import pull_cache, push_cache
from depthcache.storage.bucket import BucketStore


@pytest.fixture
def local(tmp_path: Path, make_cache: Callable[..., Path]) -> Path:
    root = tmp_path / "local"
    root.mkdir()
    return make_cache(root)


def _objects(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_bucket_is_served_like_a_folder(
    bucket: Any,
    start_service: Callable[..., Any],
    local: Path,
    tmp_path: Path,
    secrets: dict[str, str],
    digests: Callable[[Path], list[str]],
    read_locally: Callable[[Path, str], np.ndarray],
) -> None:
    root = f"{bucket.url}/served"
    service = start_service(root, work=str(tmp_path / "work"), size_cap_bytes=2**30)
    pushed = push_cache(local, service.url, secrets["writer"])
    assert pushed.num_segments == 2
    stored = BucketStore(root)
    expected = _objects(local.parent)
    assert {n: stored.get(n) for n in stored.list_objects("") if n[0] != "."} == expected
    assert push_cache(local, service.url, secrets["writer"]).num_bytes == 0

    keys = digests(local)
    cache = DepthCache.open(service.url)
    for key, served in zip(keys, cache.read_batch(keys), strict=True):
        np.testing.assert_array_equal(served, read_locally(local, key))
    pulled = pull_cache(service.url, tmp_path / "copy", None)
    assert pulled.num_bytes == pushed.num_bytes
    assert {n: d for n, d in _objects(tmp_path / "copy").items() if n[0] != "."} == expected

    segment = min(p.parent for p in local.glob("segments/*/sealed.json"))
    path = f"/{(segment / 'sealed.json').relative_to(local.parent)}"
    seal = (segment / "sealed.json").read_bytes()
    with service.client("admin") as client:
        body = {"digests": [*keys, "0" * 64]}
        answer = client.post(f"/api/v1/caches/{local.name}/lookup", json=body).json()
        assert answer["num_present"] == len(keys)
        part = client.get(path, headers={"Range": "bytes=2-9"})
        assert (part.status_code, part.content) == (206, seal[2:10])
        assert client.get(f"/api/v1/caches/{local.name}/maps/{keys[0]}.png").status_code == 200
        pin = f"/api/v1/caches/{local.name}/segments/{segment.name}"
        assert client.put(f"{pin}/pin").status_code == 200
        assert client.delete(pin).json()["error"] == "pinned"
        service.stop()
        service.start()
        assert client.delete(pin).json()["error"] == "pinned"
        assert client.delete(f"{pin}/pin").status_code == 200
        assert client.delete(pin).status_code == 200
        assert client.get(path).status_code == 404
    assert not stored.list_objects(f"{local.name}/segments/{segment.name}")


def test_nothing_of_another_writer_is_overwritten(
    bucket: Any,
    start_service: Callable[..., Any],
    local: Path,
    tmp_path: Path,
    secrets: dict[str, str],
) -> None:
    root = f"{bucket.url}/contested"
    segment = min(p.parent for p in local.glob("segments/*/sealed.json"))
    theirs = f"{local.name}/segments/{segment.name}/zarr.json"
    stored = BucketStore(root)
    stored.put(theirs, b"{}")
    service = start_service(root, work=str(tmp_path / "work"))
    with pytest.raises(CacheMismatchError, match="other bytes"):
        push_cache(local, service.url, secrets["writer"])
    assert stored.get(theirs) == b"{}"
    assert f"{segment.name}/sealed.json" not in stored.list_objects(f"{local.name}/segments")


@pytest.mark.parametrize("num_written", [0, 5, 20])
def test_a_server_killed_while_it_publishes_leaves_nothing_that_readers_see(
    bucket: Any,
    start_service: Callable[..., Any],
    local: Path,
    tmp_path: Path,
    secrets: dict[str, str],
    num_written: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.001)
    root = f"{bucket.url}/killed-{num_written}"
    kill = f"""
import os, signal
from depthcache.storage.bucket import BucketStore
put_new, written = BucketStore.put_new, []
def put_or_die(self, path, data):
    if len(written) == {num_written} + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    return put_new(self, path, data)
BucketStore.put_new = put_or_die
"""
    work = str(tmp_path / "work")
    service = start_service(root, kill, work=work)
    with pytest.raises(DepthCacheError):
        push_cache(local, service.url, secrets["writer"])
    assert service.process.wait(timeout=10) == -9
    stored = BucketStore(root)
    assert len(stored.list_objects(local.name)) == num_written + 1
    with contextlib.suppress(DepthCacheError):
        assert len(DepthCache.open(root)) == 0
    again = start_service(root, work=work)
    push_cache(local, again.url, secrets["writer"])
    expected = _objects(local.parent)
    assert {n: stored.get(n) for n in stored.list_objects("") if n[0] != "."} == expected


def test_an_abandoned_publication_is_removed_without_what_others_wrote(
    bucket: Any,
    start_service: Callable[..., Any],
    local: Path,
    tmp_path: Path,
    secrets: dict[str, str],
) -> None:
    root = f"{bucket.url}/abandoned"
    segment = min(p.parent for p in local.glob("segments/*/sealed.json"))
    prefix = f"{local.name}/segments/{segment.name}"
    stored = BucketStore(root)
    theirs = f"{prefix}/index/zarr.json"
    stored.put(theirs, b"{}")
    service = start_service(root, work=str(tmp_path / "work"))
    with pytest.raises(CacheMismatchError):
        push_cache(local, service.url, secrets["writer"])
    assert len(stored.list_objects(prefix)) > 1
    with service.client("admin") as client:
        removed = client.post("/api/v1/gc?max_age_seconds=0").json()["removed_leftovers"]
    assert len(removed) == 1
    assert list(stored.list_objects(prefix)) == ["index/zarr.json"]
    stored.delete(theirs)
    assert push_cache(local, service.url, secrets["writer"]).num_segments == 2
