"""What a list of image files holds: different contents, their sizes, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from depthcache.errors import ImageDecodeError
from depthcache.image_decoding import image_key, read_image_size

_HASHING_THREADS = 4
_FILES_AT_ONCE = 1024
_SECONDS_BETWEEN_COUNTS = 0.5


@dataclass(kw_only=True)
class ImageContents:
    """Different contents of files. Lists of millions are usual, so nothing is kept twice.

    Attributes:
        paths: key → the first file of each content that has a size.
        sizes: the same keys → (H, W).
        duplicates: key → further files with the same bytes.
        failures: file → why it has no size.
        num_unique: different contents, those without a size included.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    duplicates: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    num_unique: int = 0

    def files_of(self, key: str) -> list[Path]:
        """All files with a content, in the order in which they were given."""
        first = self.paths.get(key)
        return [] if first is None else [first, *self.duplicates.get(key, [])]


def read_contents(
    images: Sequence[Path], *, progress: Callable[[int, int, int], None] | None = None
) -> ImageContents:
    """Hash image files and read their sizes; each file is read once.

    Args:
        images: files; one that is listed twice counts once.
        progress: called with (done, total) files, and how many cannot be used, every half second
            and, when that was so, at the end; what takes no time is not told.
    """
    contents = ImageContents()
    # Those given are kept: a copy of each would take 380 bytes.
    paths = list(dict.fromkeys(p if isinstance(p, Path) else Path(p) for p in images))
    same: dict[tuple[int, int], tuple[int, int]] = {}
    without_size: set[str] = set()
    num_read, last_told, is_told = 0, monotonic(), False
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            some = paths[start : start + _FILES_AT_ONCE]
            for path, found in zip(some, pool.map(_inspect_file, some), strict=True):
                num_read += 1
                if progress is not None and monotonic() - last_told >= _SECONDS_BETWEEN_COUNTS:
                    progress(num_read, len(paths), len(contents.failures))
                    last_told, is_told = monotonic(), True
                if isinstance(found, str):
                    contents.failures[path] = found
                    continue
                key, size = found
                if isinstance(size, str):
                    contents.failures[path] = size
                    without_size.add(key)
                elif key in contents.paths:
                    contents.duplicates.setdefault(key, []).append(path)
                else:
                    contents.paths[key] = path
                    contents.sizes[key] = same.setdefault(size, size)
    if progress is not None and is_told:
        progress(num_read, len(paths), len(contents.failures))
    contents.num_unique = len(contents.paths) + len(without_size)
    return contents


def _inspect_file(path: Path) -> str | tuple[str, tuple[int, int] | str]:
    """Key and (H, W) of an image file; a reason stands in for what is not to be had."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    try:
        return image_key(data), read_image_size(data)
    except ImageDecodeError as error:
        return image_key(data), str(error)
