"""Uploads: whole or not at all, whatever breaks."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from depthcache.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheNotFoundError,
    CacheUnreachableError,
    DepthCacheError,
)
from depthcache.exchange.transfer import pull_cache, push_cache
from depthcache.format.seal import make_seal
from depthcache.format.segment_format import canonical_json


@pytest.fixture
def local(tmp_path: Path, make_cache: Callable[..., Path]) -> Path:
    root = tmp_path / "local"
    root.mkdir()
    return make_cache(root)


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    (tmp_path / "remote").mkdir()
    return tmp_path / "remote"


def _segments(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("segments/*/sealed.json"))


def _begin(client: httpx.Client, folder: Path, source: Path, **changes: Any) -> httpx.Response:
    """Begin an upload of a segment; `changes` make it lie."""
    seal = json.loads((source / "sealed.json").read_text())
    for name, entry in changes.get("objects", {}).items():
        seal["objects"].pop(name, None)
        if entry is not None:
            seal["objects"][name] = entry
    del seal["checksum"]
    seal["checksum"] = hashlib.sha256(canonical_json(seal)).hexdigest()
    return client.post(
        f"/api/v1/caches/{changes.get('cache', folder.name)}"
        f"/segments/{changes.get('segment', source.name)}/upload",
        json={
            "fingerprint": changes.get("fingerprint", (folder / "fingerprint.json").read_text()),
            "sealed": changes.get("sealed", canonical_json(seal).decode()),
        },
    )


def _send(client: httpx.Client, upload: str, name: str, data: bytes, offset: int = 0) -> Any:
    return client.put(
        f"/api/v1/uploads/{upload}/objects/{name}",
        content=data,
        headers={"Upload-Offset": str(offset)},
    )


def _same(first: Path, second: Path) -> bool:
    names = sorted(str(p.relative_to(first)) for p in first.rglob("*") if p.is_file())
    others = sorted(str(p.relative_to(second)) for p in second.rglob("*") if p.is_file())
    return names == others and not any(
        filecmp.cmpfiles(first, second, names, shallow=False)[kind] for kind in (1, 2)
    )


def test_push_then_pull_gives_the_same_bytes_and_twice_is_a_no_op(
    start_service: Callable[..., Any],
    local: Path,
    remote: Path,
    tmp_path: Path,
    secrets: dict[str, str],
) -> None:
    service = start_service(remote)
    pushed = push_cache(local.parent, service.url, secrets["writer"])
    assert pushed.num_segments == len(_segments(local))
    assert _same(local, remote / local.name)
    again = push_cache(local, service.url, secrets["writer"])
    assert (again.num_segments, again.num_present) == (0, pushed.num_segments)
    assert again.num_bytes == 0
    pulled = pull_cache(service.url, tmp_path / "copy", None)
    assert pulled.num_bytes == pushed.num_bytes
    assert _same(local, tmp_path / "copy" / local.name)
    assert pull_cache(service.url, tmp_path / "copy", None).num_bytes == 0
    assert not list((remote / ".staging").iterdir())
    with pytest.raises(CacheNotFoundError, match="no cache of fingerprint"):
        pull_cache(service.url, tmp_path / "copy", None, fingerprint="absent")
    with pytest.raises(DepthCacheError, match="no known token"):
        push_cache(local, service.url, "not-a-token-0123456789")
    service.stop()
    assert "Application shutdown complete" in service.log.read_text()


def test_another_content_under_a_published_name_is_refused(
    start_service: Callable[..., Any], local: Path, remote: Path, secrets: dict[str, str]
) -> None:
    service = start_service(remote)
    push_cache(local, service.url, secrets["writer"])
    segment = _segments(local)[0]
    seal = segment / "sealed.json"
    seal.write_bytes(make_seal(_objects(segment), {"host": "another"}))
    with pytest.raises(CacheMismatchError, match="another content"):
        push_cache(local, service.url, secrets["writer"])
    unsealed = remote / local.name / "segments" / "running"
    unsealed.mkdir()
    with service.client("writer") as client:
        answer = _begin(client, local, segment, segment="running")
    assert (answer.status_code, answer.json()["error"]) == (409, "being-written")


def test_lies_about_a_segment_are_refused(
    start_service: Callable[..., Any], local: Path, remote: Path
) -> None:
    service = start_service(remote)
    segment = _segments(local)[0]
    entry = {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    with service.client("writer") as client:
        for changes in [
            {"fingerprint": "{}"},
            {"fingerprint": "[" * 100_000},
            {"cache": "demo-0123456789abcdef"},
            {"cache": ".staging"},
            {"sealed": "{}"},
            {"sealed": "[" * 100_000},
            {"sealed": (segment / "sealed.json").read_text() + " "},
            {"sealed": (segment / "sealed.json").read_text().replace("objects", "subjects")},
            {"segment": "..%2f..%2fx"},
            {"segment": ".hidden"},
            {"objects": {"../../outside": entry}},
            {"objects": {"/etc/passwd": entry}},
            {"objects": {"a\\b": entry}},
            {"objects": {"a//b": entry}},
            {"objects": {"sealed.json": entry}},
            {"objects": {"zarr.json/x": entry}},
            {"objects": {"x": {"size": -1, "sha256": entry["sha256"]}}},
            {"objects": {"x": {"size": True, "sha256": entry["sha256"]}}},
            {"objects": {"x": {"size": 3, "sha256": "zz"}}},
            {"objects": {"x": None, "y": 3}},
        ]:
            answer = _begin(client, local, segment, **changes)
            assert answer.status_code in (404, 422), (changes, answer.status_code)
        answer = _begin(client, local, segment, objects={"x": {**entry, "size": 2**39}})
        assert (answer.status_code, answer.json()["error"]) == (507, "disk-full")
        upload = _begin(client, local, segment).json()["upload"]
        name = "zarr.json"
        data = (segment / name).read_bytes()
        assert _send(client, upload, "absent", b"x").status_code == 404
        assert _send(client, upload, name, data + b"x").status_code == 413
        assert _send(client, upload, name, data, offset=1).headers["upload-offset"] == "0"
        wrong = _send(client, upload, name, data[:-1] + b"#")
        assert (wrong.status_code, wrong.json()["error"]) == (422, "wrong-checksum")
        assert client.post(f"/api/v1/uploads/{upload}/commit").json()["error"] == "incomplete"
        assert client.delete(f"/api/v1/uploads/{upload}").status_code == 200
        assert client.get(f"/api/v1/uploads/{upload}").status_code == 404
    assert not list((remote / ".staging").iterdir())
    assert not list(remote.glob("*/segments/*"))


def test_a_segment_that_is_no_segment_is_refused_whole(
    start_service: Callable[..., Any], local: Path, remote: Path
) -> None:
    """Every checksum fits its manifest; only the arrays are not what they should be."""
    service = start_service(remote)
    segment = _segments(local)[0]
    shard = max((p for p in segment.glob("maps/**/*") if p.is_file()), key=os.path.getsize)
    name = str(shard.relative_to(segment))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 0x10
    entry = {"size": len(damaged), "sha256": hashlib.sha256(damaged).hexdigest()}
    with service.client("writer") as client:
        begun = _begin(client, local, segment, objects={name: entry}).json()
        for missing in begun["missing"]:
            path = missing["path"]
            data = bytes(damaged) if path == name else (segment / path).read_bytes()
            assert _send(client, begun["upload"], path, data).json()["complete"]
        answer = client.post(f"/api/v1/uploads/{begun['upload']}/commit")
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid-segment")
    assert not list((remote / ".staging").iterdir())
    assert not list(remote.glob("*/segments/*"))


def test_a_broken_connection_goes_on_at_the_byte_where_it_was(
    start_service: Callable[..., Any], local: Path, remote: Path, secrets: dict[str, str]
) -> None:
    service = start_service(remote)
    segment = _segments(local)[0]
    shard = max((p for p in segment.glob("maps/**/*") if p.is_file()), key=os.path.getsize)
    name, data = str(shard.relative_to(segment)), shard.read_bytes()
    with service.client("writer") as client:
        upload = _begin(client, local, segment).json()["upload"]

        def breaking() -> Any:
            yield data[:700]
            time.sleep(0.2)
            raise RuntimeError("cable")

        with contextlib.suppress(RuntimeError, httpx.TransportError):
            _send(client, upload, name, breaking())
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            state = client.get(f"/api/v1/uploads/{upload}").json()["missing"]
            offset = next(m["offset"] for m in state if m["path"] == name)
            if offset:
                break
            time.sleep(0.05)
        assert offset == 700
    pushed = push_cache(local, service.url, secrets["writer"])
    total = sum(e["size"] for s in _segments(local) for e in _objects(s).values())
    assert pushed.num_bytes == total - 700
    assert _same(local, remote / local.name)


def _objects(segment: Path) -> dict[str, Any]:
    return dict(json.loads((segment / "sealed.json").read_text())["objects"])


def test_a_server_killed_at_any_step_publishes_nothing_by_halves_and_the_push_completes(
    start_service: Callable[..., Any], local: Path, remote: Path, secrets: dict[str, str]
) -> None:
    service = start_service(remote)
    outcome: list[Any] = []

    def push() -> None:
        while not outcome:
            with contextlib.suppress(CacheUnreachableError):
                outcome.append(push_cache(local, service.url, secrets["writer"]))

    pusher = threading.Thread(target=push, daemon=True)
    pusher.start()
    for delay_seconds in (0.01, 0.05, 0.12):
        time.sleep(delay_seconds)
        service.kill()
        for seal in remote.glob("*/segments/*/sealed.json"):
            assert _same(seal.parent, local / "segments" / seal.parent.name)
        for segment in remote.glob("*/segments/*"):
            assert (segment / "sealed.json").exists()
        service.start()
    pusher.join(timeout=120)
    assert outcome
    assert _same(local, remote / local.name)


def test_a_service_that_is_down_is_unreachable_in_the_end(
    local: Path, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.001)
    with pytest.raises(CacheUnreachableError, match="failed 3 times"):
        push_cache(local, "http://127.0.0.1:9", secrets["writer"])


def test_a_full_disk_is_507_and_leaves_nothing(
    start_service: Callable[..., Any], local: Path, remote: Path, secrets: dict[str, str]
) -> None:
    # A limit on the size of files stops writes in the middle, as a full disk does.
    limit = max(e["size"] for s in _segments(local) for e in _objects(s).values()) - 100
    preamble = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    service = start_service(remote, preamble)
    with pytest.raises(DepthCacheError, match="507"):
        push_cache(local, service.url, secrets["writer"])
    assert not list((remote / ".staging").iterdir())
    assert not list(remote.glob("*/segments/*/sealed.json"))
    with service.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_size_cap_evicts_the_least_recently_read_but_never_what_is_pinned(
    start_service: Callable[..., Any],
    make_cache: Callable[..., Path],
    tmp_path: Path,
    remote: Path,
    secrets: dict[str, str],
) -> None:
    root = tmp_path / "local"
    root.mkdir()
    folder = make_cache(root, num_segments=4)
    segments = _segments(folder)
    sizes = [sum(p.stat().st_size for p in s.rglob("*") if p.is_file()) for s in segments]
    service = start_service(remote, size_cap_bytes=sum(sizes) - min(sizes) // 2)
    with service.client("admin") as client:

        def upload(segment: Path) -> httpx.Response:
            begun = _begin(client, folder, segment).json()
            for missing in begun["missing"]:
                path = missing["path"]
                _send(client, begun["upload"], path, (segment / path).read_bytes())
            return client.post(f"/api/v1/uploads/{begun['upload']}/commit")

        def pin(segment: Path, method: str = "PUT") -> None:
            path = f"/api/v1/caches/{folder.name}/segments/{segment.name}/pin"
            assert client.request(method, path).status_code == 200

        def stored() -> set[str]:
            return set(client.get("/catalogue.json").json()["caches"][0]["segments"])

        for segment in segments[:3]:
            assert upload(segment).status_code == 200
        pin(segments[0])
        for segment in (segments[2], segments[1]):  # leaves number 2 the least recently read
            path = f"/{folder.name}/segments/{segment.name}/zarr.json"
            assert client.get(path).status_code == 200
        assert upload(segments[3]).status_code == 200
        assert stored() == {segments[i].name for i in (0, 1, 3)}
        pin(segments[1])
        pin(segments[3])
        refused = upload(segments[2])
        assert (refused.status_code, refused.json()["error"]) == (507, "size-cap")
        assert stored() == {segments[i].name for i in (0, 1, 3)}
        path = f"/api/v1/caches/{folder.name}/segments/{segments[1].name}"
        assert client.delete(path).json()["error"] == "pinned"
    service.stop()
    service.start()
    with service.client("admin") as client:
        segment = client.get(f"/api/v1/caches/{folder.name}").json()["segments"]
        assert all(entry["pinned"] for entry in segment)
        pin(segments[1], "DELETE")
        assert client.delete(path).status_code == 200
        assert upload(segments[2]).status_code == 200
        assert stored() == {segments[i].name for i in (0, 2, 3)}


def test_leftovers_go_and_uploads_under_way_stay(
    start_service: Callable[..., Any], local: Path, remote: Path
) -> None:
    service = start_service(remote)
    (remote / ".staging").mkdir(exist_ok=True)
    (remote / ".staging" / "trash-1").mkdir()
    with service.client("admin") as client:
        upload = _begin(client, local, _segments(local)[0]).json()["upload"]
        assert client.post("/api/v1/gc").json()["removed_leftovers"] == ["trash-1"]
        assert client.get(f"/api/v1/uploads/{upload}").status_code == 200
        removed = client.post("/api/v1/gc?max_age_seconds=0").json()["removed_leftovers"]
        assert removed == [f"upload-{upload}"]
        assert client.get(f"/api/v1/uploads/{upload}").status_code == 404


def test_a_push_from_a_damaged_root_says_so(
    start_service: Callable[..., Any], local: Path, remote: Path, secrets: dict[str, str]
) -> None:
    shard = max((p for p in local.glob("segments/*/maps/**/*") if p.is_file()), key=os.path.getsize)
    damaged = bytearray(shard.read_bytes())
    damaged[10] ^= 1
    shard.write_bytes(damaged)
    service = start_service(remote, max_bytes=2**16)
    with pytest.raises(CacheCorruptError, match="sha256"):
        push_cache(local, service.url, secrets["writer"])
