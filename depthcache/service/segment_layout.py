"""The parts of the cache format that the service and transfers check before they touch a disk.

The format itself is docs/cache-format.md; everything that reads arrays is in `depthcache`.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from depthcache.errors import DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.segments.reader import SegmentReader
from depthcache.segments.verification import validate_segment
from depthcache.storage.object_stores import LocalStore

FINGERPRINT_NAME = fmt.FINGERPRINT
SEALED_NAME = fmt.SEALED
SEGMENTS_NAME = "segments"
DIGEST_LENGTH = 64
MAX_OBJECTS = 100_000
MAX_OBJECT_BYTES = 2**40

_CACHE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}-[0-9a-f]{16}")
_SEGMENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_cache_name(name: str) -> bool:
    """Whether this may be the name of a fingerprint folder: <slug>-<16 hex digits>."""
    return _CACHE_NAME.fullmatch(name) is not None


def is_segment_id(name: str) -> bool:
    """Whether this may be the name of a segment's folder."""
    return _SEGMENT_ID.fullmatch(name) is not None


def is_safe_object_path(name: str) -> bool:
    """Whether a manifest's object path stays inside its segment on any file system."""
    path = PurePosixPath(name)
    return (
        0 < len(name) <= 512
        and str(path) == name
        and not path.is_absolute()
        and all(part not in (".", "..") and len(part) <= 128 for part in path.parts)
        and name.isascii()
        and name.isprintable()
        and "\\" not in name
        and name != SEALED_NAME
    )


def parse_seal(text: bytes) -> dict[str, Any]:
    """Read a `sealed.json` and check all that later code relies on.

    Args:
        text: the file's bytes; may come from anybody.

    Returns:
        The document; `objects` maps safe relative paths to {"size", "sha256"}.

    Raises:
        ValueError: it is not of the format; the message says where.
    """
    document = load_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("objects"), dict):
        raise ValueError("sealed.json must be an object with a table 'objects'")
    version = document.get("format_version")
    if type(version) is not int or version != fmt.FORMAT_VERSION:
        raise ValueError(
            f"sealed.json has format_version {version!r}, expected {fmt.FORMAT_VERSION}"
        )
    objects = document["objects"]
    if not 0 < len(objects) <= MAX_OBJECTS:
        raise ValueError(f"sealed.json lists {len(objects)} objects, expected 1 to {MAX_OBJECTS}")
    for name, entry in objects.items():
        if not is_safe_object_path(name):
            raise ValueError(f"sealed.json lists the unusable object path {name!r}")
        size = entry.get("size") if isinstance(entry, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        if type(size) is not int or not 0 <= size <= MAX_OBJECT_BYTES:
            raise ValueError(f"sealed.json gives {name!r} the size {size!r}")
        if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
            raise ValueError(f"sealed.json gives {name!r} the sha256 {sha256!r}")
    body = {key: value for key, value in document.items() if key != "checksum"}
    if document.get("checksum") != hashlib.sha256(fmt.canonical_json(body)).hexdigest():
        raise ValueError("sealed.json does not have the checksum that it carries")
    if text != fmt.canonical_json(document):
        raise ValueError("sealed.json is not in canonical form")
    folders = {str(parent) for name in objects for parent in PurePosixPath(name).parents}
    clashes = folders & set(objects)
    if clashes:
        raise ValueError(f"sealed.json lists {min(clashes)!r} as an object and as a folder")
    return document


def check_fingerprint(cache: str, text: bytes) -> dict[str, Any]:
    """Check that a `fingerprint.json` belongs to a folder name.

    Raises:
        ValueError: it is not a fingerprint, or the folder of another one.
    """
    document = load_json(text)
    if not isinstance(document, dict) or document.get("format_version") != fmt.FORMAT_VERSION:
        raise ValueError(f"fingerprint.json must be an object of format {fmt.FORMAT_VERSION}")
    expected = fmt.fingerprint_folder(document)
    if cache != expected:
        raise ValueError(f"the fingerprint belongs in the folder {expected}, not in {cache}")
    return document


def open_segment(folder: Path) -> SegmentReader:
    """A reader of one sealed segment; its manifest and index are verified.

    Raises:
        DepthCacheError: it is damaged.
    """
    return SegmentReader(LocalStore(folder.parent), folder.name)


def find_problems(folder: Path) -> list[str]:
    """Everything that is wrong with a sealed segment that came over the network.

    Args:
        folder: the segment, manifest included.

    Returns:
        Descriptions; empty for a valid segment.
    """
    try:
        problems, _, _ = validate_segment(LocalStore(folder.parent), folder.name)
        if problems:
            return [f"{p.object}: {p.detail}" for p in problems]
        digests = [bytes(row) for row in open_segment(folder).digests]
    except (
        DepthCacheError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError
    ) as error:  # fmt: skip
        # Documents made to mislead fail in many ways while they are read; each is a refusal.
        return [f"the segment cannot be read: {error!r}"]
    if any(first >= second for first, second in pairwise(digests)):
        return ["index/digests: not sorted, or an image is listed twice"]
    return []


def load_json(text: bytes) -> Any:
    """Parse JSON from the network.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON document is nested too deeply") from None
