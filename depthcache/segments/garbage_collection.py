"""Removes what killed runs left behind."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from depthcache.errors import CacheNotFoundError
from depthcache.format import segment_format as fmt
from depthcache.storage.folder_lock import hold_if_free


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

    What a run on this machine is writing stays whatever its age.

    Args:
        root: local root.
        dry_run: only tell.
        min_age_seconds: younger things may belong to a run in progress on another machine.

    Raises:
        CacheNotFoundError: the root does not exist.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise CacheNotFoundError(f"{folder} does not exist")
    limit = time.time() - min_age_seconds
    removed: list[str] = []
    num_bytes = 0
    for segment in sorted(folder.glob("*/segments/*")):
        with hold_if_free(segment) as is_free:
            for victim in _find_victims(segment, limit) if is_free else ():
                files = [f for f in (victim, *victim.rglob("*")) if f.is_file()]
                num_bytes += sum(file.stat().st_size for file in files)
                removed.append(str(victim.relative_to(folder)))
                if dry_run:
                    continue
                if victim.is_dir():
                    shutil.rmtree(victim)
                else:
                    victim.unlink()
    for file in sorted(folder.glob("*-*/*.tmp-*")):
        if file.stat().st_mtime <= limit:
            num_bytes += file.stat().st_size
            removed.append(str(file.relative_to(folder)))
            if not dry_run:
                file.unlink()
    return GarbageSummary(num_removed=len(removed), num_bytes=num_bytes, removed=removed)


def _find_victims(segment: Path, limit: float) -> list[Path]:
    """A segment without seal, or the temporary files of one, last written before `limit`."""
    if not (segment / fmt.SEALED).exists():
        return [segment] if _newest(segment) <= limit else []
    temporary = sorted(segment.rglob("*.tmp-*"))
    return [file for file in temporary if file.stat().st_mtime <= limit]


def _newest(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
