"""Writing files so that a crash at any moment leaves either the old content or the new one."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def replaced_file(path: Path, *, is_durable: bool = True) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends without an error.

    Args:
        path: the file; its folder exists.
        is_durable: whether it is on the disk when the block has ended, for the price of two fsyncs;
            else a power cut may still undo it.

    Yields:
        `<name>.tmp-<random>` beside it, open for writing. A killed process leaves that behind.
    """
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("xb") as file:
            yield file
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file atomically; it is on the disk when this returns. Its folder exists."""
    with replaced_file(path) as file:
        file.write(data)


def make_folder_durably(folder: Path) -> None:
    """Make a folder and its parents, whose names are on the disk when this returns."""
    new = []
    existing = folder
    while not existing.exists() and existing != existing.parent:
        new.append(existing)
        existing = existing.parent
    folder.mkdir(parents=True, exist_ok=True)
    for made in new:
        sync_folder(made.parent)


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


def read_json_lines(path: Path) -> Iterator[Any]:
    """Values of a file with one JSON document a line; what a crash left half written is left out.

    Args:
        path: the file; an absent one has no lines.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.endswith("\n"):
                with suppress(ValueError):
                    yield json.loads(line)
