"""Where the served segments lie: in a local folder, or in a bucket.

Uploads are received and validated on a local disk in both cases. A folder publishes one by a
rename; a bucket, which has none, by creating `sealed.json` last: no reader looks at a segment
without it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol

from depthcache.errors import CacheCorruptError, CacheNotFoundError, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.service.refusals import RequestRefusedError
from depthcache.storage.bucket import BucketStore
from depthcache.storage.durable_files import sync_folder, sync_tree, write_durably
from depthcache.storage.local_folder import LocalStore
from depthcache.storage.object_store import ObjectStore

STATE_NAME = ".service"
TRASH_PREFIX = "trash-"


class OpenObject(Protocol):
    """An object of a segment, open for reading.

    Attributes:
        file: the same as a file, where there is one.
        piece_bytes: how much to read at a time.
    """

    file: IO[bytes] | None
    piece_bytes: int

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            RequestRefusedError: 500, there are fewer; 503, the bucket does not answer.
        """

    def close(self) -> None:
        """Let go of it."""


class ServedRoot(Protocol):
    """A cache root as the service needs it.

    Attributes:
        store: reads it.
        staging: local folder of uploads under way.
        refresh_seconds: how long a listing is good for.
    """

    store: ObjectStore
    staging: Path
    refresh_seconds: float

    def is_reachable(self) -> bool:
        """Whether it can be read now."""

    def list_sealed(self, cache: str) -> dict[str, float]:
        """Segment id → time of sealing in seconds since the epoch."""

    def find_misplaced(self, prefix: str, names: Iterable[str]) -> str | None:
        """The first of these objects that is a link to another place."""

    async def open(self, path: str, size: int) -> OpenObject:
        """Open an object.

        Raises:
            RequestRefusedError: 404, it is gone; 500, it has another size.
        """

    def has_unsealed(self, prefix: str) -> bool:
        """Whether a run may be writing this segment."""

    def publish(self, folder: Path, prefix: str, fingerprint: bytes) -> None:
        """Make a validated segment visible; `folder` holds it whole."""

    def withdraw(self, folder: Path, prefix: str) -> None:
        """Remove what an abandoned publication of `folder` left behind, unless it was sealed."""

    def remove(self, prefix: str) -> None:
        """Make a segment invisible at once, then free its room."""

    def read_state(self, name: str) -> bytes | None:
        """One of the service's own documents."""

    def write_state(self, name: str, data: bytes) -> None:
        """Replace one of the service's own documents, durably."""


class LocalRoot:
    """A folder.

    Args:
        folder: it exists.
    """

    refresh_seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.store: ObjectStore = LocalStore(self.folder)
        self.staging = self.folder / fmt.STAGING
        self._state = self.folder / STATE_NAME

    def is_reachable(self) -> bool:
        return self.folder.is_dir()

    def list_sealed(self, cache: str) -> dict[str, float]:
        sealed = {}
        for segment in _subfolders(self.folder / cache / fmt.SEGMENTS):
            try:
                sealed[segment.name] = (segment / fmt.SEALED).stat().st_mtime
            except OSError:
                continue
        return sealed

    def find_misplaced(self, prefix: str, names: Iterable[str]) -> str | None:
        home = self.folder / prefix
        return next((n for n in names if os.path.realpath(home / n) != f"{home}/{n}"), None)

    async def open(self, path: str, size: int) -> OpenObject:
        return _open_file(self.folder / path, size)

    def has_unsealed(self, prefix: str) -> bool:
        folder = self.folder / prefix
        return folder.exists() and not (folder / fmt.SEALED).exists()

    def publish(self, folder: Path, prefix: str, fingerprint: bytes) -> None:
        sync_tree(folder)
        target = self.folder / prefix
        cache_folder = target.parent.parent
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (cache_folder / fmt.FINGERPRINT).is_file():
            write_durably(cache_folder / fmt.FINGERPRINT, fingerprint)
        sync_folder(self.folder)
        sync_folder(cache_folder)
        folder.rename(target)
        sync_folder(target.parent)

    def withdraw(self, folder: Path, prefix: str) -> None:
        """Nothing to do: a rename leaves nothing behind."""

    def remove(self, prefix: str) -> None:
        # One rename makes it invisible; a crash afterwards leaves rubbish, never half a segment.
        trash = self.staging / f"{TRASH_PREFIX}{uuid.uuid4().hex}"
        self.staging.mkdir(exist_ok=True)
        os.replace(self.folder / prefix, trash)  # noqa: PTH105  (pathlib's hides the folder case)
        sync_folder((self.folder / prefix).parent)
        shutil.rmtree(trash, ignore_errors=True)

    def read_state(self, name: str) -> bytes | None:
        try:
            return (self._state / name).read_bytes()
        except FileNotFoundError:
            return None

    def write_state(self, name: str, data: bytes) -> None:
        self._state.mkdir(exist_ok=True)
        write_durably(self._state / name, data)


class BucketRoot:
    """An S3 or Google bucket, or a folder in one; settings come from the environment.

    Args:
        url: s3:// or gs:// address.
        work: local folder for uploads under way.
    """

    refresh_seconds = 15.0

    def __init__(self, url: str, work: Path) -> None:
        self._bucket = BucketStore(url)
        self.store: ObjectStore = self._bucket
        self.staging = work / fmt.STAGING

    def is_reachable(self) -> bool:
        try:
            self._bucket.list_folders("")
        except DepthCacheError:
            return False
        return True

    def list_sealed(self, cache: str) -> dict[str, float]:
        sealed = {}
        for path, changed in self._bucket.list_times(f"{cache}/{fmt.SEGMENTS}").items():
            segment_id, _, name = path.partition("/")
            if name == fmt.SEALED:
                sealed[segment_id] = changed
        return sealed

    def find_misplaced(self, prefix: str, names: Iterable[str]) -> str | None:
        """None: a bucket has no links."""
        del prefix, names
        return None

    async def open(self, path: str, size: int) -> OpenObject:
        del size  # a bucket's objects are checked range by range
        return _BucketObject(self._bucket, path)

    def has_unsealed(self, prefix: str) -> bool:
        """False: who writes what is found out object by object when it is published."""
        del prefix
        return False

    def publish(self, folder: Path, prefix: str, fingerprint: bytes) -> None:
        cache = prefix.split("/", maxsplit=1)[0]
        self._create(f"{cache}/{fmt.FINGERPRINT}", fingerprint)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        names.remove(fmt.SEALED)
        for name in (*names, fmt.SEALED):
            self._create(f"{prefix}/{name}", (folder / name).read_bytes())

    def withdraw(self, folder: Path, prefix: str) -> None:
        objects = self._bucket.list_objects(prefix)
        if fmt.SEALED in objects:
            return
        for name in objects:
            copied = folder / name
            # What has other bytes belongs to another writer.
            if copied.is_file() and self.store.get(f"{prefix}/{name}") == copied.read_bytes():
                self._bucket.delete(f"{prefix}/{name}")

    def remove(self, prefix: str) -> None:
        self._bucket.delete(f"{prefix}/{fmt.SEALED}")
        for name in self._bucket.list_objects(prefix):
            self._bucket.delete(f"{prefix}/{name}")

    def read_state(self, name: str) -> bytes | None:
        try:
            return self.store.get(f"{STATE_NAME}/{name}")
        except CacheNotFoundError:
            return None

    def write_state(self, name: str, data: bytes) -> None:
        self.store.put(f"{STATE_NAME}/{name}", data)

    def _create(self, path: str, data: bytes) -> None:
        """Write an object that nobody has written with another content, whoever is faster."""
        if not self._bucket.put_new(path, data) and self.store.get(path) != data:
            raise RequestRefusedError(
                409,
                "being-written",
                f"{path} is in the bucket with other bytes: another writer has this segment, or "
                "left it unsealed; remove it, or wait until it is sealed",
            )


class _LocalFile:
    piece_bytes = 2**18  # larger ones cost twice the CPU time: they are copied in the transport

    def __init__(self, file: IO[bytes]) -> None:
        self.file: IO[bytes] | None = file
        self._descriptor = file.fileno()

    async def read(self, offset: int, length: int) -> bytes:
        """On the event loop only when the bytes are in the page cache."""
        buffer = bytearray(length)
        try:
            num_read = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
        except OSError:  # not in memory, or a file system that cannot tell
            num_read = 0
        if num_read == length:
            return bytes(buffer)
        data = await asyncio.to_thread(os.pread, self._descriptor, length, offset)
        if len(data) != length:
            raise damaged("the object became shorter while it was read")
        return data

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class _BucketObject:
    file: IO[bytes] | None = None
    piece_bytes = 2**22

    def __init__(self, bucket: BucketStore, path: str) -> None:
        self._bucket, self._path = bucket, path

    async def read(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        try:
            return await asyncio.to_thread(self._bucket.get_range, self._path, offset, length)
        except CacheNotFoundError:
            raise _gone() from None
        except CacheCorruptError as error:
            raise damaged(str(error)) from error

    def close(self) -> None:
        """Nothing is held open."""


def _open_file(path: Path, size: int) -> _LocalFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise _gone() from None
    except OSError as error:
        raise damaged(f"the object cannot be opened: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb", buffering=0)
    actual = os.fstat(descriptor).st_size
    if actual != size:
        file.close()
        raise damaged(f"the object has {actual} bytes, its manifest says {size}")
    return _LocalFile(file)


def damaged(detail: str) -> RequestRefusedError:
    """The answer to a read of what is no longer what the manifest says."""
    return RequestRefusedError(500, "object-damaged", f"{detail}; run `pipeline cache verify`")


def _gone() -> RequestRefusedError:
    return RequestRefusedError(404, "not-found", "the segment has just been removed")


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
