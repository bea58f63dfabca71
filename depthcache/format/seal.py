"""A segment's manifest `sealed.json`: made here, and parsed here whoever wrote it. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from depthcache.errors import CacheCorruptError, CacheMismatchError
from depthcache.format import segment_format as fmt

MAX_OBJECT_BYTES = 2**40
_SEGMENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_segment_id(name: str) -> bool:
    """Whether this may be the name of a segment's folder."""
    return _SEGMENT_ID.fullmatch(name) is not None


def make_seal(objects: Mapping[str, Mapping[str, Any]], provenance: Mapping[str, Any]) -> bytes:
    """Bytes of `sealed.json`, which carries its own checksum."""
    body: dict[str, Any] = {
        "format_version": fmt.FORMAT_VERSION,
        "objects": {name: dict(entry) for name, entry in objects.items()},
        "provenance": dict(provenance),
    }
    return fmt.canonical_json({**body, "checksum": _checksum(body)})


def summarise_object(data: bytes) -> dict[str, Any]:
    """What the manifest says of an object: {"size", "sha256"}."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def parse_seal(text: bytes, what: str = fmt.SEALED) -> dict[str, Any]:
    """Read a `sealed.json` and check all that later code relies on.

    Args:
        text: the file's bytes; may come from anybody.
        what: named in errors.

    Returns:
        The document; `objects` maps safe relative paths to {"size", "sha256"}.

    Raises:
        CacheCorruptError: it is not of the format; the message says where.
        CacheMismatchError: the format is another version.
    """
    document = fmt.parse_document(text, what)
    if document.get("checksum") != _checksum(document):
        raise CacheCorruptError(f"{what}: checksum mismatch, it is damaged")
    version, objects = document.get("format_version"), document.get("objects")
    if type(version) is not int or version != fmt.FORMAT_VERSION:
        raise CacheMismatchError(
            f"{what} has format version {version!r}; this release reads {fmt.FORMAT_VERSION}"
        )
    if not isinstance(objects, dict) or not objects:
        raise CacheCorruptError(f"{what} is damaged: it lists no objects")
    for name, entry in objects.items():
        _check_entry(name, entry, what)
    clash = next((folder for name in objects for folder in _folders(name) if folder in objects), "")
    if clash:
        raise CacheCorruptError(f"{what} lists {clash!r} as an object and as a folder")
    return document


def is_safe_object_path(name: str) -> bool:
    """Whether a manifest's object path stays inside its segment on any file system."""
    parts = name.split("/")
    return (
        len(name) <= 512
        and all(0 < len(part) <= 128 and part not in (".", "..") for part in parts)
        and name.isascii()
        and name.isprintable()
        and "\\" not in name
        and name != fmt.SEALED
    )


def _check_entry(name: str, entry: Any, what: str) -> None:
    if not is_safe_object_path(name):
        raise CacheCorruptError(f"{what} lists the unusable object path {name!r}")
    size = entry.get("size") if isinstance(entry, dict) else None
    sha256 = entry.get("sha256") if isinstance(entry, dict) else None
    if type(size) is not int or not 0 <= size <= MAX_OBJECT_BYTES:
        raise CacheCorruptError(f"{what} gives {name!r} the size {size!r}")
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise CacheCorruptError(f"{what} gives {name!r} the sha256 {sha256!r}")


def _folders(name: str) -> list[str]:
    return [name[:position] for position, letter in enumerate(name) if letter == "/"]


def _checksum(document: Mapping[str, Any]) -> str:
    body = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(fmt.canonical_json(body)).hexdigest()
