"""Finds every damaged, missing or stray object of a cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from depthcache.errors import CacheNotFoundError, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.segments.fingerprint import read_fingerprint
from depthcache.segments.reader import SegmentReader, read_seal
from depthcache.storage.local_folder import LocalStore
from depthcache.storage.object_store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding.

    Attributes:
        kind: damaged, missing, stray or unsealed.
        segment: `<fingerprint>/segments/<id>`, or the fingerprint folder.
        object: path in it.
        detail: what differs.
        row: row of the map, when one map is concerned.
    """

    kind: str
    segment: str
    object: str
    detail: str
    row: int | None = None


@dataclass(kw_only=True)
class VerifyReport:
    """What `verify_cache` found."""

    problems: list[Problem] = field(default_factory=list)
    num_objects: int = 0
    num_maps: int = 0


def validate_segment(store: ObjectStore, prefix: str) -> tuple[list[Problem], int, int]:
    """Check every byte of a sealed segment, then read every map.

    Args:
        store: where it lies; must be able to list.
        prefix: `<fingerprint>/segments/<id>`.

    Returns:
        Problems, number of objects, number of maps.
    """
    problems: list[Problem] = []

    def add(kind: str, name: str, detail: str, row: int | None = None) -> None:
        problems.append(Problem(kind=kind, segment=prefix, object=name, detail=detail, row=row))

    try:
        seal = read_seal(store, prefix)
    except CacheNotFoundError:
        add("unsealed", fmt.SEALED, "a run is writing this segment, or was killed")
        return problems, 0, 0
    except DepthCacheError as error:
        add("damaged", fmt.SEALED, str(error))
        return problems, 1, 0
    for name, entry in seal["objects"].items():
        try:
            data = store.get(f"{prefix}/{name}")
        except CacheNotFoundError:
            add("missing", name, "listed in sealed.json")
            continue
        if len(data) != entry["size"]:
            add("damaged", name, f"{len(data)} bytes, expected {entry['size']}")
        elif hashlib.sha256(data).hexdigest() != entry["sha256"]:
            add("damaged", name, "sha256 differs from sealed.json")
    for name in store.list_objects(prefix):
        if name not in seal["objects"] and name != fmt.SEALED:
            add("stray", name, "not listed in sealed.json")
    num_maps = 0
    try:
        segment = SegmentReader(store, prefix)
    except DepthCacheError as error:
        if not problems:
            add("damaged", "index", str(error))
        return problems, len(seal["objects"]) + 1, 0
    for bucket, row in zip(segment.buckets.tolist(), segment.rows.tolist(), strict=True):
        try:
            segment.read(bucket, row)
            num_maps += 1
        except DepthCacheError as error:
            add("damaged", f"maps/{segment.bucket_names[bucket]}", str(error), row)
    return problems, len(seal["objects"]) + 1, num_maps


def verify_cache(root: str | Path) -> VerifyReport:
    """Check all caches under a local root, or one fingerprint folder.

    Raises:
        CacheNotFoundError: the root does not exist.
    """
    folder, only = split_root(root)
    store = LocalStore(folder)
    report = VerifyReport()
    for name in [only] if only else [n for n in store.list_folders("") if n[0] != "."]:
        try:
            report.num_objects += 1
            read_fingerprint(store, name)
        except CacheNotFoundError as error:
            report.problems.append(_folder_problem("missing", name, error))
        except DepthCacheError as error:
            report.problems.append(_folder_problem("damaged", name, error))
        for segment_id in store.list_folders(f"{name}/segments"):
            problems, num_objects, num_maps = validate_segment(
                store, f"{name}/segments/{segment_id}"
            )
            report.problems.extend(problems)
            report.num_objects += num_objects
            report.num_maps += num_maps
    return report


def find_problems(folder: Path) -> list[str]:
    """Everything that is wrong with a sealed segment that came over the network.

    Args:
        folder: the segment, manifest included.

    Returns:
        Descriptions; empty for a valid segment.
    """
    store, name = LocalStore(folder.parent), folder.name
    try:
        problems, _, _ = validate_segment(store, name)
        if problems:
            return [f"{p.object}: {p.detail}" for p in problems]
        digests = [bytes(row) for row in SegmentReader(store, name).digests]
    except (
        DepthCacheError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError
    ) as error:  # fmt: skip
        # Documents made to mislead fail in many ways while they are read; each is a refusal.
        return [f"the segment cannot be read: {error!r}"]
    if any(first >= second for first, second in pairwise(digests)):
        return ["index/digests: not sorted, or an image is listed twice"]
    return []


def split_root(root: str | Path) -> tuple[Path, str | None]:
    """A local root, and the fingerprint folder in it if that is what was named.

    Raises:
        CacheNotFoundError: there is no such folder.
    """
    folder = Path(root).resolve()
    if not folder.is_dir():
        raise CacheNotFoundError(f"{root} does not exist")
    is_one = (folder / fmt.FINGERPRINT).is_file() or (folder / fmt.SEGMENTS).is_dir()
    return (folder.parent, folder.name) if is_one else (folder, None)


def _folder_problem(kind: str, name: str, error: Exception) -> Problem:
    return Problem(kind=kind, segment=name, object=fmt.FINGERPRINT, detail=str(error))
