"""Finds every damaged, missing or stray object of a cache, and recomputes what is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthcache.cache_reader import _read_fingerprint
from depthcache.errors import CacheMismatchError, CacheNotFoundError, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.segments.reader import SegmentReader, read_seal
from depthcache.storage.object_stores import LocalStore, ObjectStore


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
    folder = Path(root)
    if not folder.is_dir():
        raise CacheNotFoundError(f"{folder} does not exist")
    folder = folder.resolve()
    names = None
    if (folder / fmt.FINGERPRINT).is_file() or (folder / "segments").is_dir():
        folder, names = folder.parent, [folder.name]
    store = LocalStore(folder)
    report = VerifyReport()
    for name in names or [n for n in store.list_folders("") if not n.startswith(".")]:
        try:
            report.num_objects += 1
            _read_fingerprint(store, name)
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


def repair_cache(
    root: str | Path, images: Sequence[Path], model: str | Path, **options: Any
) -> dict[str, Any]:
    """Replace exactly what is damaged or missing, remove what is stray.

    Intact maps are copied; lost ones are computed anew. A segment of which a map is lost whose
    image was not given stays as it is, and so do all later ones. A segment that a run is still
    writing is left to that run. Precision and encoding are the damaged cache's own.

    Args:
        root: local root, or one fingerprint folder.
        images: files whose depth may have to be computed.
        model: depth model of the cache.
        options: `revision`, `device` and `batch_size` of `precompute_depth`.

    Returns:
        num_removed: stray objects; num_computed: maps; num_failed: always 0.

    Raises:
        CacheIncompleteError: an image is missing; the message lists the sha256 of such images.
        CacheMismatchError: a damaged cache is another model's.
    """
    from depthcache.segments.repair import has_index, repair_segment
    from depthcache.segments.writer import hold_segment
    from depthcache.stage_one.precompute import ImageDepths

    folder = Path(root).resolve()
    problems = verify_cache(folder).problems
    if (folder / fmt.FINGERPRINT).is_file() or (folder / "segments").is_dir():
        folder = folder.parent
    store = LocalStore(folder)
    totals = {"num_removed": 0, "num_computed": 0, "num_failed": 0}
    places = [
        place
        for place in dict.fromkeys(problem.segment for problem in problems)
        if "/segments/" not in place
        or (folder / place / fmt.SEALED).is_file()
        or has_index(store, place)
    ]
    caches = sorted({place.partition("/segments/")[0] for place in places})
    if len(caches) > 1:
        raise CacheMismatchError(
            f"several caches are damaged: {', '.join(caches)}; repair one at a time, by its folder"
        )
    if not caches:
        return totals
    depths = ImageDepths(images, model, caches[0], **options)
    for place in places:
        cache, _, segment_id = place.partition("/segments/")
        if not segment_id:
            store.put(f"{cache}/{fmt.FINGERPRINT}", fmt.canonical_json(depths.fingerprint))
            continue
        with hold_segment(store, place):
            done = repair_segment(
                store,
                place,
                fingerprint=depths.fingerprint,
                shapes=depths.shapes,
                compute=depths.compute,
                provenance={"model_source": depths.source, "repaired": True},
            )
        totals["num_removed"] += done.num_removed
        totals["num_computed"] += done.num_computed
    return totals


def _folder_problem(kind: str, name: str, error: Exception) -> Problem:
    return Problem(kind=kind, segment=name, object=fmt.FINGERPRINT, detail=str(error))
