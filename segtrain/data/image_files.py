"""Which file a COCO entry's `file_name` means, and its bytes.

A name is taken as it is written: relative to the image folder, or absolute. When there is no such
file, backslashes are read as slashes, and a part of the path that exists only in another case or
Unicode form is taken if exactly one does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from segtrain.data.coco_findings import Finding, shorten
from segtrain.errors import DatasetError


def find_image_file(path: str | Path) -> Path:
    """The file that a path means by the rule above; the path itself when there is none."""
    written = Path(path)
    if is_file(written):
        return written
    for candidate in dict.fromkeys((str(path), str(path).replace("\\", "/"))):
        found = _match_parts(Path(candidate))
        if found is not None:
            return found
    return written


def is_file(path: Path) -> bool:
    """Whether there is such a file; names that no file can have (a data URI) are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_image_bytes(path: str | Path) -> bytes:
    """Contents of an image file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return find_image_file(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(
            f"image {shorten(path, 200)} cannot be read: {reason}; correct file_name or the "
            "image folder, or remove the entry"
        ) from error


def missing_files(entries: Iterable[tuple[object, str, str]]) -> list[Finding]:
    """Findings of images whose file does not exist.

    Args:
        entries: id, path and file_name of each image.
    """
    return [
        Finding(
            kind="missing_file",
            detail=f"image {shorten(path, 200)} cannot be read: there is no such file",
            image_id=image_id,
            file_name=shorten(file_name),
        )
        for image_id, path, file_name in entries
        if not is_file(find_image_file(path))
    ]


def _match_parts(path: Path) -> Path | None:
    """The only file whose parts equal the path's but for case and Unicode form."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        exact = found / part
        try:
            if part == ".." or exact.exists():
                found = exact
                continue
            alike = [each for each in found.iterdir() if _fold(each.name) == _fold(part)]
        except (OSError, ValueError):
            return None
        if len(alike) != 1:
            return None
        found = alike[0]
    return found if is_file(found) else None


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
