"""The name under which an image's depth is stored."""

from __future__ import annotations

import hashlib


def image_key(data: bytes) -> str:
    """Name an image by its bytes, so that moving or renaming files changes nothing.

    Args:
        data: the file's bytes, as they are on disk.

    Returns:
        sha256 as 64 lower-case hexadecimal digits.
    """
    return hashlib.sha256(data).hexdigest()
