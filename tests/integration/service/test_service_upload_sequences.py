"""Any order of uploading, breaking off, lying, giving up and restarting leaves only whole segments.

The service runs in this process over a real folder; what it remembers across a restart is on the
disk. Other tests kill the real server.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from depthcache.format.seal import make_seal, summarise_object
from depthcache.segments.verification import find_problems
from depthcache.service.access import load_tokens
from depthcache.service.app import ServiceSettings, build_service
from depthcache.service.roots import LocalRoot

_SECRET = "a secret of an administrator"
_NUM_SEQUENCES, _NUM_STEPS = 10, 25


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """What a client uploads. One that lies has a manifest that fits its bytes, but no whole map."""

    cache: str
    name: str
    fingerprint: bytes
    objects: dict[str, bytes]
    lies: bool

    @property
    def seal(self) -> bytes:
        summaries = {name: summarise_object(data) for name, data in self.objects.items()}
        return make_seal(summaries, {"lies": self.lies})


@dataclass(kw_only=True)
class _Upload:
    """What the service must know of an upload that was begun."""

    upload_id: str
    received: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def _read_segments(folder: Path) -> list[_Segment]:
    """The segments of a cache, each with a liar of the same name."""
    found = []
    fingerprint = (folder / "fingerprint.json").read_bytes()
    for seal in sorted(folder.glob("segments/*/sealed.json")):
        prefix = seal.parent
        names = json.loads(seal.read_bytes())["objects"]
        objects = {name: (prefix / name).read_bytes() for name in names}
        shard = next(name for name in objects if name.startswith("maps/") and "/c/" in name)
        damaged = objects | {shard: bytes(len(objects[shard]))}
        for lies, content in ((False, objects), (True, damaged)):
            found.append(
                _Segment(
                    cache=folder.name,
                    name=prefix.name,
                    fingerprint=fingerprint,
                    objects=content,
                    lies=lies,
                )
            )
    return found


class UploadSequences(RuleBasedStateMachine):
    segments: ClassVar[list[_Segment]]
    numbers = st.integers(0, 3)
    shares = st.sampled_from([0.0, 0.3, 1.0])

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.uploads: dict[int, _Upload] = {}
        self.published: set[int] = set()
        self.num_checks = 0
        self.runner = asyncio.Runner()
        self.restart()

    def teardown(self) -> None:
        self.check_objects(1)
        for number in self.published:
            segment = self.segments[number]
            assert find_problems(self.root / segment.cache / "segments" / segment.name) == []
        self.runner.close()
        self.folder.cleanup()

    @rule()
    def restart(self) -> None:
        tokens = load_tokens(None, {"DEPTHCACHE_TOKENS": f"a:admin:{_SECRET}"})
        self.service = build_service(LocalRoot(self.root), ServiceSettings(tokens=tokens))

    @rule(number=numbers)
    def begin(self, number: int) -> None:
        segment = self.segments[number]
        path = f"/api/v1/caches/{segment.cache}/segments/{segment.name}/upload"
        body = {"fingerprint": segment.fingerprint.decode(), "sealed": segment.seal.decode()}
        answer = self.request("POST", path, json.dumps(body).encode())
        if number in self.published:
            assert (answer.status, answer.json()["state"]) == (200, "published")
        elif number ^ 1 in self.published:  # the other one of this name
            assert (answer.status, answer.json()["error"]) == (409, "other-content")
        else:
            assert (answer.status, answer.json()["state"]) == (200, "open")
            upload = self.uploads.setdefault(number, _Upload(upload_id=answer.json()["upload"]))
            assert upload.upload_id == answer.json()["upload"], "a second begin finds the first"
            self.check_missing(number, answer.json()["missing"])

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), share=shares, is_damaged=st.booleans(), breaks_off=st.booleans())
    def send(self, data: Any, share: float, is_damaged: bool, breaks_off: bool) -> None:
        number, upload, name = self.choose_object(data)
        content = self.segments[number].objects[name]
        begin = upload.received.get(name, 0)
        piece = bytearray(content[begin : begin + max(1, round(share * len(content)))])
        if name in upload.complete:
            answer = self.put(upload, name, bytes(piece), begin)
            assert (answer.status, answer.json()["complete"]) == (200, True)
            return
        if is_damaged:
            piece[0] ^= 1
            upload.damaged.add(name)
        answer = self.put(upload, name, bytes(piece), begin, breaks_off=breaks_off)
        upload.received[name] = begin + len(piece)
        if upload.received[name] < len(content):
            assert (answer.status, answer.json()["complete"]) == (200, False)
        elif name in upload.damaged:
            assert (answer.status, answer.json()["error"]) == (422, "wrong-checksum")
            upload.received[name] = 0
            upload.damaged.discard(name)
        else:
            assert (answer.status, answer.json()["complete"]) == (200, True)
            upload.complete.add(name)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), shift=st.sampled_from([-1, 1, 10**6]))
    def send_at_a_wrong_offset(self, data: Any, shift: int) -> None:
        _, upload, name = self.choose_object(data)
        received = upload.received.get(name, 0)
        if name in upload.complete or received + shift < 0:
            return
        answer = self.put(upload, name, b"x", received + shift)
        assert (answer.status, answer.json()["error"]) == (409, "wrong-offset")
        assert answer.headers["upload-offset"] == str(received)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def send_all_that_is_missing(self, data: Any) -> None:
        number, upload, _ = self.choose_object(data)
        for name, content in self.segments[number].objects.items():
            while name not in upload.complete:
                offset = upload.received.get(name, 0)
                answer = self.put(upload, name, content[offset:], offset)
                if answer.status == 422:
                    assert name in upload.damaged
                    upload.damaged.discard(name)
                    upload.received[name] = 0
                else:
                    assert (answer.status, answer.json()["complete"]) == (200, True)
                    upload.received[name] = len(content)
                    upload.complete.add(name)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def commit(self, data: Any) -> None:
        number, upload, _ = self.choose_object(data)
        segment = self.segments[number]
        answer = self.request("POST", f"/api/v1/uploads/{upload.upload_id}/commit")
        if len(upload.complete) < len(segment.objects):
            assert (answer.status, answer.json()["error"]) == (409, "incomplete")
            return
        if number ^ 1 in self.published:
            assert (answer.status, answer.json()["error"]) == (409, "other-content")
            return
        del self.uploads[number]
        if segment.lies:
            assert (answer.status, answer.json()["error"]) == (422, "invalid-segment")
        else:
            assert (answer.status, answer.json()["state"]) == (200, "published")
            self.published.add(number)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        number, upload, _ = self.choose_object(data)
        path = f"/api/v1/uploads/{upload.upload_id}"
        assert self.request("DELETE", path).status == 200
        assert self.request("GET", path).status == 404
        del self.uploads[number]

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.published)))
        segment = self.segments[number]
        path = f"/api/v1/caches/{segment.cache}/segments/{segment.name}"
        assert self.request("DELETE", path).status == 200
        self.published.discard(number)

    @invariant()
    def every_upload_is_where_its_client_thinks(self) -> None:
        for number, upload in getattr(self, "uploads", {}).items():
            answer = self.request("GET", f"/api/v1/uploads/{upload.upload_id}")
            assert answer.status == 200
            self.check_missing(number, answer.json()["missing"])

    @invariant()
    def readers_see_whole_segments_and_nothing_else(self) -> None:
        if not hasattr(self, "service"):
            return
        listed = self.request("GET", "/catalogue.json").json()["caches"]
        names = {segment for cache in listed for segment in cache["segments"]}
        assert names == {self.segments[number].name for number in self.published}
        self.check_objects(7)

    def check_objects(self, stride: int) -> None:
        """Read every so-manieth object; which ones changes from call to call."""
        self.num_checks += 1
        for number in (0, 2):
            segment = self.segments[number]
            for name in sorted(segment.objects)[self.num_checks % stride :: stride]:
                answer = self.request("GET", f"/{segment.cache}/segments/{segment.name}/{name}")
                assert answer.status == (200 if number in self.published else 404)
                assert answer.body == segment.objects[name] or number not in self.published

    def check_missing(self, number: int, missing: list[dict[str, Any]]) -> None:
        upload = self.uploads[number]
        assert missing == [
            {"path": name, "size": len(content), "offset": upload.received.get(name, 0)}
            for name, content in sorted(self.segments[number].objects.items())
            if name not in upload.complete
        ]

    def choose_object(self, data: Any) -> tuple[int, _Upload, str]:
        number = data.draw(st.sampled_from(sorted(self.uploads)))
        name = data.draw(st.sampled_from(sorted(self.segments[number].objects)))
        return number, self.uploads[number], name

    def put(
        self, upload: _Upload, name: str, piece: bytes, offset: int, *, breaks_off: bool = False
    ) -> _Answer:
        path = f"/api/v1/uploads/{upload.upload_id}/objects/{name}"
        headers = [(b"upload-offset", str(offset).encode())]
        return self.request("PUT", path, piece, headers, breaks_off=breaks_off)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        *,
        breaks_off: bool = False,
    ) -> _Answer:
        """One request; a connection that breaks off does so after the body's bytes."""
        coming = [{"type": "http.request", "body": body, "more_body": breaks_off}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return coming.pop() if coming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [
                (b"authorization", f"Bearer {_SECRET}".encode()),
                (b"content-type", b"application/json"),
                *(headers or []),
            ],
        }
        self.runner.run(self.service(scope, receive, send))
        start, *pieces = sent
        return _Answer(
            status=start["status"],
            headers={name.decode(): value.decode() for name, value in start["headers"]},
            body=b"".join(piece.get("body", b"") for piece in pieces),
        )


def test_no_order_of_requests_shows_readers_half_a_segment(
    tmp_path: Path, make_cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UploadSequences, "segments", _read_segments(make_cache(tmp_path)), False)
    monkeypatch.setattr(LocalRoot, "refresh_seconds", 0.0)
    run_state_machine_as_test(
        UploadSequences,
        settings=settings(
            max_examples=_NUM_SEQUENCES,
            stateful_step_count=_NUM_STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
