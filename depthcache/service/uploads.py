"""Uploads: staged on disk, resumable object by object, validated whole, published by one rename.

An upload lives in `.staging/upload-<id>/` of the root (of the work folder where the root is a
bucket). The id is a hash of what is uploaded, so a client that begins it again finds it:

    upload.json        cache, segment id, time of beginning
    fingerprint.json   exact bytes of the cache's fingerprint
    sealed.json        exact bytes of the segment's manifest
    parts/<object>     objects received in part; the size of the file is the offset to go on from
    segment/<object>   objects received and checked against the manifest
    publishing         exists while the segment is copied to a bucket

No state is held in memory but locks: a killed server goes on where the files are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthcache.errors import CacheNotFoundError, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.format.seal import is_segment_id, parse_seal
from depthcache.segments.fingerprint import is_cache_name, parse_fingerprint
from depthcache.segments.verification import find_problems
from depthcache.service.catalogue import Catalogue
from depthcache.service.lifecycle import LifeCycle
from depthcache.service.metrics import ServiceMetrics
from depthcache.service.refusals import RequestRefusedError, storage_refusal
from depthcache.service.roots import TRASH_PREFIX
from depthcache.storage.durable_files import sync_folder, write_durably

UPLOAD_PREFIX = "upload-"
_FRESH_PREFIX = "new-"
_PUBLISHING = "publishing"
_WRITE_BYTES = 2**20
MAX_OBJECTS = 100_000

log = logging.getLogger("depthcache.service")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An upload as it lies on disk."""

    upload_id: str
    folder: Path
    cache: str
    segment_id: str
    objects: dict[str, tuple[int, str]]

    def staged(self, name: str) -> Path:
        """Where a complete object is kept."""
        return self.folder / "segment" / name

    def part(self, name: str) -> Path:
        """Where an incomplete object is kept."""
        return self.folder / "parts" / name

    def missing(self) -> list[dict[str, Any]]:
        """Objects still to be sent: path, size, and the offset to go on from."""
        return [
            {"path": name, "size": size, "offset": _file_size(self.part(name))}
            for name, (size, _) in sorted(self.objects.items())
            if not self.staged(name).is_file()
        ]


class UploadStore:
    """The write side of the service.

    Args:
        catalogue: what is published.
        life_cycle: makes room under the size cap.
        metrics: counters.
    """

    def __init__(
        self, catalogue: Catalogue, life_cycle: LifeCycle, metrics: ServiceMetrics
    ) -> None:
        self._catalogue = catalogue
        self._life_cycle = life_cycle
        self._metrics = metrics
        self._root = catalogue.root
        self._staging = self._root.staging
        self._publish_lock = threading.Lock()
        self._object_locks: dict[tuple[str, str], asyncio.Lock] = {}

    def begin(
        self, cache: str, segment_id: str, fingerprint: bytes, seal: bytes
    ) -> tuple[Upload | None, bool]:
        """Begin an upload, or find the one that was begun before.

        Args:
            cache: folder name of the cache.
            segment_id: name of the segment.
            fingerprint: exact bytes of `fingerprint.json`.
            seal: exact bytes of `sealed.json`.

        Returns:
            (the upload, False), or (None, True) when exactly this segment is published already.

        Raises:
            RequestRefusedError: 409 when another content is published under the name; 422 when
                names, fingerprint or manifest are not of the format; 507 when it cannot fit.
        """
        objects = _check_begin(cache, segment_id, fingerprint, seal)
        if self._is_published(cache, segment_id, fingerprint, seal):
            return None, True
        self._check_room(sum(size for size, _ in objects.values()) + len(seal))
        content = b"\0".join([cache.encode(), segment_id.encode(), fingerprint, seal])
        upload_id = hashlib.sha256(content).hexdigest()[:32]
        folder = self._staging / f"{UPLOAD_PREFIX}{upload_id}"
        if not folder.is_dir():
            try:
                self._create(folder, cache, segment_id, fingerprint, seal)
            except OSError as error:
                raise (storage_refusal(error) or error) from error
        return self.find(upload_id), False

    def _create(
        self, folder: Path, cache: str, segment_id: str, fingerprint: bytes, seal: bytes
    ) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)
        fresh = self._staging / f"{_FRESH_PREFIX}{uuid.uuid4().hex}"
        fresh.mkdir()
        try:
            (fresh / "parts").mkdir()
            (fresh / "segment").mkdir()
            record = {"cache": cache, "segment": segment_id, "begun": time.time()}
            write_durably(fresh / "upload.json", json.dumps(record).encode())
            write_durably(fresh / fmt.FINGERPRINT, fingerprint)
            write_durably(fresh / fmt.SEALED, seal)
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.is_dir():  # else the same upload was begun twice at once
                raise
        sync_folder(self._staging)

    def find(self, upload_id: str) -> Upload:
        """The upload of an id.

        Raises:
            RequestRefusedError: 404 without one.
        """
        is_plausible = len(upload_id) == 32 and set(upload_id) <= set("0123456789abcdef")
        folder = self._staging / f"{UPLOAD_PREFIX}{upload_id}"
        try:
            if not is_plausible:
                raise FileNotFoundError
            record = json.loads((folder / "upload.json").read_bytes())
            seal = parse_seal((folder / fmt.SEALED).read_bytes())
        except (OSError, ValueError, DepthCacheError):
            raise RequestRefusedError(
                404, "no-such-upload", "no such upload; it was published, removed or never begun"
            ) from None
        return Upload(
            upload_id=upload_id,
            folder=folder,
            cache=record["cache"],
            segment_id=record["segment"],
            objects=_seal_objects(seal),
        )

    async def receive(
        self, upload_id: str, name: str, offset: int, body: AsyncIterator[bytes]
    ) -> dict[str, Any]:
        """Append a piece of an object; check the object when it is complete.

        A connection that breaks keeps what arrived: the next piece goes on from there.

        Args:
            upload_id: of `begin`.
            name: path of the object inside the segment, as its manifest lists it.
            offset: where the piece belongs; must be the number of bytes received so far.
            body: the piece.

        Returns:
            {"path", "offset", "size", "complete"}.

        Raises:
            RequestRefusedError: 404 for an unknown upload or object; 409 for another offset than
                the next one; 413 for more bytes than the manifest says; 422 when the complete
                object has another checksum (it must be sent again from 0); 507 when the disk is
                full (the whole upload is removed).
        """
        upload = await asyncio.to_thread(self.find, upload_id)
        if name not in upload.objects:
            raise RequestRefusedError(404, "not-in-manifest", "the manifest lists no such object")
        key = (upload_id, name)
        lock = self._object_locks.setdefault(key, asyncio.Lock())
        if lock.locked():
            raise RequestRefusedError(
                409, "busy", "this object is being received from another connection"
            )
        async with lock:
            try:
                return await _append(upload, name, offset, body)
            except FileNotFoundError:
                raise RequestRefusedError(
                    404, "no-such-upload", "the upload was removed meanwhile; begin it again"
                ) from None
            except OSError as error:
                refusal = storage_refusal(error)
                if refusal is None:
                    raise
                await asyncio.to_thread(self.discard, upload_id)
                raise refusal from error
            finally:
                self._object_locks.pop(key, None)

    def commit(self, upload_id: str) -> dict[str, Any]:
        """Validate the whole segment and publish it.

        Returns:
            {"state": "published", "cache", "segment"}.

        Raises:
            RequestRefusedError: 404 for an unknown upload; 409 when objects are missing or another
                content was published meanwhile; 422 when the segment is not valid (the upload is
                removed); 507 when it does not fit.
        """
        upload = self.find(upload_id)
        missing = upload.missing()
        if missing:
            raise RequestRefusedError(
                409,
                "incomplete",
                f"{len(missing)} of {len(upload.objects)} objects are missing, "
                f"first {missing[0]['path']!r}",
            )
        with self._publish_lock:
            try:
                return self._validate_and_publish(upload)
            except FileNotFoundError:
                raise RequestRefusedError(
                    404, "no-such-upload", "the upload was removed or published meanwhile"
                ) from None
            except OSError as error:
                refusal = storage_refusal(error)
                if refusal is None:
                    raise
                self.discard(upload_id)
                raise refusal from error

    def _validate_and_publish(self, upload: Upload) -> dict[str, Any]:
        cache, segment_id = upload.cache, upload.segment_id
        fingerprint = (upload.folder / fmt.FINGERPRINT).read_bytes()
        seal = (upload.folder / fmt.SEALED).read_bytes()
        answer = {"state": "published", "cache": cache, "segment": segment_id}
        if self._is_published(cache, segment_id, fingerprint, seal):
            self.discard(upload.upload_id)
            return answer
        folder = upload.folder / "segment"
        write_durably(folder / fmt.SEALED, seal)
        problems = find_problems(folder)
        if problems:
            self._metrics.refused_uploads.inc()
            self.discard(upload.upload_id)
            raise RequestRefusedError(
                422,
                "invalid-segment",
                f"{len(problems)} problems, the upload was removed; first: {problems[0]}",
            )
        num_bytes = sum(size for size, _ in upload.objects.values()) + len(seal)
        self._life_cycle.make_room(num_bytes)
        write_durably(upload.folder / _PUBLISHING, b"")
        self._root.publish(folder, _prefix(cache, segment_id), fingerprint)
        self.discard(upload.upload_id)
        self._catalogue.refresh(force=True)
        self._metrics.published.inc()
        log.info("published %s/%s", cache, segment_id)
        return answer

    def discard(self, upload_id: str) -> None:
        """Remove an upload and all that was received of it."""
        folder = self._staging / f"{UPLOAD_PREFIX}{upload_id}"
        if (folder / _PUBLISHING).exists():
            record = json.loads((folder / "upload.json").read_bytes())
            prefix = _prefix(record["cache"], record["segment"])
            self._root.withdraw(folder / "segment", prefix)
        trash = self._staging / f"{TRASH_PREFIX}{uuid.uuid4().hex}"
        try:
            folder.rename(trash)
        except FileNotFoundError:
            return
        shutil.rmtree(trash, ignore_errors=True)

    def remove_leftovers(self, max_age_seconds: float) -> list[str]:
        """Remove rubbish, and uploads that nothing was added to for a while.

        Args:
            max_age_seconds: uploads idle for longer are removed; rubbish always is.

        Returns:
            Names of the removed folders.
        """
        removed = []
        if not self._staging.is_dir():
            return []
        for folder in sorted(self._staging.iterdir()):
            is_rubbish = folder.name.startswith(TRASH_PREFIX)
            if not is_rubbish and time.time() - _newest_change(folder) <= max_age_seconds:
                continue
            if folder.name.startswith(UPLOAD_PREFIX):
                self.discard(folder.name.removeprefix(UPLOAD_PREFIX))
            else:
                shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
        return removed

    def _is_published(self, cache: str, segment_id: str, fingerprint: bytes, seal: bytes) -> bool:
        known = self._read_or_none(f"{cache}/{fmt.FINGERPRINT}")
        if known is not None and known != fingerprint:
            raise RequestRefusedError(
                409, "other-fingerprint", f"{cache} has other bytes in its fingerprint.json"
            )
        prefix = _prefix(cache, segment_id)
        published = self._read_or_none(f"{prefix}/{fmt.SEALED}")
        if published == seal:
            return True
        if published is not None:
            self._metrics.refused_uploads.inc()
            raise RequestRefusedError(
                409,
                "other-content",
                f"{cache}/{segment_id} is published with another content; segments never change",
            )
        if self._root.has_unsealed(prefix):
            raise RequestRefusedError(
                409,
                "being-written",
                f"{cache}/{segment_id} exists unsealed: a local run is writing it, or was killed; "
                "finish that run or remove the folder",
            )
        return False

    def _check_room(self, num_bytes: int) -> None:
        cap = self._life_cycle.size_cap_bytes
        if cap is not None and num_bytes > cap:
            raise RequestRefusedError(
                507, "size-cap", f"the segment has {num_bytes} bytes, the service's cap is {cap}"
            )
        self._staging.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._staging).free
        if num_bytes > free:
            raise RequestRefusedError(
                507, "disk-full", f"the segment has {num_bytes} bytes, the disk has {free} free"
            )

    def _read_or_none(self, path: str) -> bytes | None:
        try:
            return self._root.store.get(path)
        except CacheNotFoundError:
            return None


def _prefix(cache: str, segment_id: str) -> str:
    return fmt.segment_prefix(cache, segment_id)


def _check_begin(
    cache: str, segment_id: str, fingerprint: bytes, seal: bytes
) -> dict[str, tuple[int, str]]:
    try:
        if not is_cache_name(cache):
            raise ValueError(f"{cache!r} is not the name of a fingerprint folder")
        if not is_segment_id(segment_id):
            raise ValueError(f"{segment_id!r} is not a segment id")
        expected = fmt.fingerprint_folder(parse_fingerprint(fingerprint, cache))
        if cache != expected:
            raise ValueError(f"the fingerprint belongs in the folder {expected}, not in {cache}")
        objects = _seal_objects(parse_seal(seal))
        if len(objects) > MAX_OBJECTS:
            raise ValueError(f"the manifest lists {len(objects)} objects, at most {MAX_OBJECTS}")
        return objects
    except (ValueError, DepthCacheError) as error:
        raise RequestRefusedError(422, "invalid-upload", str(error)) from error


def _seal_objects(seal: dict[str, Any]) -> dict[str, tuple[int, str]]:
    return {name: (entry["size"], entry["sha256"]) for name, entry in seal["objects"].items()}


async def _append(
    upload: Upload, name: str, offset: int, body: AsyncIterator[bytes]
) -> dict[str, Any]:
    size, sha256 = upload.objects[name]
    if upload.staged(name).is_file():
        return {"path": name, "offset": size, "size": size, "complete": True}
    part = upload.part(name)
    received = _file_size(part)
    if offset != received:
        raise RequestRefusedError(
            409,
            "wrong-offset",
            f"the next byte is number {received}, the piece begins at {offset}",
            {"Upload-Offset": str(received)},
        )
    part.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        part, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
    )
    try:
        pending = bytearray()
        async for piece in body:
            pending += piece
            if received + len(pending) > size:
                raise RequestRefusedError(
                    413, "object-too-large", f"the manifest gives {name} {size} bytes"
                )
            if len(pending) >= _WRITE_BYTES:
                received += await asyncio.to_thread(_write_all, descriptor, pending)
                pending = bytearray()
        received += await asyncio.to_thread(_write_all, descriptor, pending)
        if received == size:
            await asyncio.to_thread(os.fsync, descriptor)
    finally:
        os.close(descriptor)
    if received == size:
        await asyncio.to_thread(_accept_object, upload, name, sha256)
    return {"path": name, "offset": received, "size": size, "complete": received == size}


def _accept_object(upload: Upload, name: str, sha256: str) -> None:
    part = upload.part(name)
    with part.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        part.unlink()
        raise RequestRefusedError(
            422, "wrong-checksum", f"{name} arrived with sha256 {actual}; send it again from 0"
        )
    staged = upload.staged(name)
    staged.parent.mkdir(parents=True, exist_ok=True)
    part.rename(staged)
    sync_folder(staged.parent)


def _write_all(descriptor: int, data: bytearray) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _newest_change(folder: Path) -> float:
    times = [
        (Path(current) / name).stat().st_mtime
        for current, _, names in os.walk(folder)
        for name in names
    ]
    return max(times, default=folder.stat().st_mtime)
