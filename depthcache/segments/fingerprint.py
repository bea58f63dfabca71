"""The document that says which model a folder's maps are of, and how they are encoded."""

from __future__ import annotations

import re
from typing import Any

from depthcache.errors import CacheCorruptError, CacheMismatchError, CacheNotFoundError
from depthcache.format import segment_format as fmt
from depthcache.storage.object_store import ObjectStore

_CACHE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}-[0-9a-f]{16}")


def is_cache_name(name: str) -> bool:
    """Whether this may be the name of a fingerprint folder: <slug>-<16 hex digits>."""
    return _CACHE_NAME.fullmatch(name) is not None


def parse_fingerprint(text: bytes, folder: str) -> dict[str, Any]:
    """Read a `fingerprint.json` and check that it belongs to a folder; only the hash counts.

    Raises:
        CacheCorruptError: it is damaged, or another folder's.
        CacheMismatchError: the format is another version.
    """
    what = f"{folder}/{fmt.FINGERPRINT}"
    document = fmt.parse_document(text, what)
    expected = fmt.fingerprint_folder(document)
    version = document.get("format_version")
    if type(version) is not int or version != fmt.FORMAT_VERSION:
        raise CacheMismatchError(
            f"{folder} has format version {version!r}; this release reads {fmt.FORMAT_VERSION}"
        )
    if expected.rpartition("-")[2] != folder.rpartition("-")[2]:
        raise CacheCorruptError(f"{what} belongs to {expected}")
    return document


def read_fingerprint(store: ObjectStore, folder: str) -> dict[str, Any]:
    """Read and check a folder's fingerprint.

    Raises:
        CacheNotFoundError: there is none.
        CacheCorruptError, CacheMismatchError: as `parse_fingerprint`.
    """
    return parse_fingerprint(store.get(f"{folder}/{fmt.FINGERPRINT}"), folder)


def write_fingerprint(store: ObjectStore, folder: str, fingerprint: dict[str, Any]) -> None:
    """Write a folder's fingerprint unless it is there.

    Raises:
        CacheMismatchError: another one is there.
    """
    path, text = f"{folder}/{fmt.FINGERPRINT}", fmt.canonical_json(fingerprint)
    try:
        if store.get(path) != text:
            raise CacheMismatchError(f"{path} belongs to another fingerprint; use another root")
    except CacheNotFoundError:
        store.put(path, text)
