"""Which images of a data set have depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthcache.cache import DepthCache
from depthcache.image_key import image_key


@dataclass
class Coverage:
    """Images with depth, images without, and files that cannot be read."""

    num_present: int = 0
    missing: list[str] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "num_present": self.num_present,
            "num_missing": len(self.missing),
            "missing": self.missing,
            "unreadable": self.unreadable,
        }


def measure_coverage(cache: DepthCache, images: Sequence[Path]) -> Coverage:
    """Look up every image file in a cache.

    Args:
        cache: to look in.
        images: files; read and hashed.
    """
    coverage = Coverage()
    for path in images:
        try:
            key = image_key(path.read_bytes())
        except OSError as error:
            coverage.unreadable.append({"path": str(path), "reason": error.strerror or str(error)})
            continue
        if key in cache:
            coverage.num_present += 1
        else:
            coverage.missing.append(str(path))
    return coverage
