"""Named bytes on a disk, in memory, behind HTTP or in a bucket: get, get a range, put, list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from depthcache.errors import CacheNotFoundError
from depthcache.format.byte_spans import check_length
from depthcache.storage.bucket import BucketStore
from depthcache.storage.http import HTTPStore
from depthcache.storage.local_folder import LocalStore

TOKEN_VARIABLE = "PIPELINE_CACHE_TOKEN"  # noqa: S105  (a name, not a secret)


class ObjectStore(Protocol):
    """What reading and writing segments needs of a store."""

    def get(self, path: str) -> bytes:
        """All bytes. Raises CacheNotFoundError, CacheUnreachableError."""

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Part of the bytes; raises CacheCorruptError when there are fewer."""

    def put(self, path: str, data: bytes) -> None:
        """Write whole, atomically and durably."""

    def list_folders(self, path: str) -> list[str]:
        """Names of the folders directly under `path`, sorted."""

    def list_objects(self, path: str) -> dict[str, int]:
        """Relative paths and sizes of everything under `path`."""


def open_store(url: str | Path, *, token: str | None = None) -> ObjectStore:
    """Choose the store by the address: a path, http(s)://, s3:// or gs://.

    Args:
        url: the address.
        token: for a service that asks for one; None takes it from PIPELINE_CACHE_TOKEN.
    """
    text = str(url)
    if text.startswith(("http://", "https://")):
        return HTTPStore(text, token or os.environ.get(TOKEN_VARIABLE))
    if text.startswith(("s3://", "gs://")):
        return BucketStore(text)
    return LocalStore(text.removeprefix("file://"))


class MemoryStore:
    """A dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, path: str) -> bytes:
        if path not in self.objects:
            raise CacheNotFoundError(f"{path} does not exist")
        return self.objects[path]

    def get_range(self, path: str, start: int, length: int) -> bytes:
        return check_length(self.get(path)[start : start + length], length, path)

    def put(self, path: str, data: bytes) -> None:
        self.objects[path] = data

    def list_folders(self, path: str) -> list[str]:
        prefix = f"{path.rstrip('/')}/" if path else ""
        rest = (name[len(prefix) :] for name in self.objects if name.startswith(prefix))
        return sorted({name.split("/")[0] for name in rest if "/" in name})

    def list_objects(self, path: str) -> dict[str, int]:
        prefix = f"{path.rstrip('/')}/" if path else ""
        return {
            name[len(prefix) :]: len(data)
            for name, data in sorted(self.objects.items())
            if name.startswith(prefix)
        }
