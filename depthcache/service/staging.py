"""Writing so that a crash at any moment leaves either the old state or the new one."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from depthcache.service.refusals import RequestRefusedError

STAGING_NAME = ".staging"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file atomically; it is on the disk when this returns.

    Args:
        path: the file; its folder exists.
        data: the new content.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every name below a folder durable, deepest first."""
    for current, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(current))


def storage_refusal(error: OSError) -> RequestRefusedError | None:
    """The 507 that a full disk (or quota, or file size limit) deserves; None for other errors."""
    if error.errno not in _FULL:
        return None
    return RequestRefusedError(
        507,
        "disk-full",
        f"the service's disk cannot take it ({os.strerror(error.errno or 0)}); the upload was "
        "removed, nothing of it is published",
    )
