"""Removes what killed runs left behind."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from depthcache import segment_format as fmt
from depthcache.errors import CacheNotFoundError


@dataclass(frozen=True, kw_only=True)
class GarbageSummary:
    """What was, or with dry_run would be, removed."""

    num_removed: int
    num_bytes: int
    removed: list[str]


def collect_garbage(
    root: str | Path, *, dry_run: bool = False, min_age_seconds: float = 3600.0
) -> GarbageSummary:
    """Remove temporary files, and unsealed segments, in which nothing was written for a while.

    Args:
        root: local root.
        dry_run: only tell.
        min_age_seconds: younger things may belong to a run in progress.

    Raises:
        CacheNotFoundError: the root does not exist.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise CacheNotFoundError(f"{folder} does not exist")
    limit = time.time() - min_age_seconds
    victims = [
        segment
        for segment in sorted(folder.glob("*/segments/*"))
        if not (segment / fmt.SEALED).exists() and _newest(segment) <= limit
    ]
    inside = tuple(f"{victim}/" for victim in victims)
    victims += [
        file
        for file in sorted(folder.glob("*-*/**/*.tmp-*"))
        if file.stat().st_mtime <= limit and not str(file).startswith(inside)
    ]
    num_bytes = 0
    for victim in victims:
        files = [f for f in victim.rglob("*") if f.is_file()] if victim.is_dir() else [victim]
        num_bytes += sum(file.stat().st_size for file in files)
        if not dry_run:
            if victim.is_dir():
                shutil.rmtree(victim)
            else:
                victim.unlink()
    return GarbageSummary(
        num_removed=len(victims),
        num_bytes=num_bytes,
        removed=[str(victim.relative_to(folder)) for victim in victims],
    )


def _newest(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
