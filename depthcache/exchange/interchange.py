"""Depth maps in and out of a cache: HDF5, folders of PNG or npy, npz, and plain zarr.

A map is named after its image: by the image's key, its path below the image folder, or its file
name, each with or without the suffix.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.cache_reader import DepthCache
from depthcache.errors import (
    CacheMismatchError,
    CacheNotFoundError,
    ImageDecodeError,
)
from depthcache.exchange.sources import MapSource, digest_source, opened_source
from depthcache.exchange.writers import WRITERS
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import DEFAULT_BITS, describe_encoding
from depthcache.format.shard_planning import ShardPlan, plan_segment
from depthcache.image_decoding import (
    ImageFacts,
    find_image_files,
    image_key,
    name_dataset,
    read_image_facts,
)
from depthcache.segments.fingerprint import write_fingerprint
from depthcache.segments.writer import hold_segment, seal_segment, write_shard
from depthcache.storage.object_store import ObjectStore, open_store

log = logging.getLogger(__name__)

FORMATS = ("hdf5", "png8", "png16", "npy", "npz", "zarr")
CONVENTIONS = ("relative-inverse", "metric")
_SHARD_ROWS = 64
_ASPECT_TOLERANCE = 0.2
_LARGEST_ROUNDING = 2.0**-17  # of a map's range: half a step of the finest codes
_STRETCHED = "maps of another aspect than their photo's are stretched onto it"


@dataclass(kw_only=True)
class ImportSummary:
    """What `import_maps` did.

    Attributes:
        cache_url: folder of the imported maps.
        fingerprint: its name.
        num_maps: maps in the source.
        num_imported: maps that this call wrote.
        num_present: maps that the cache had already.
        num_failed: maps that cannot be stored.
        failures: {"path", "reason"} of each.
        num_unmatched_maps: maps that no image claims.
        images_without_map: image files that no map belongs to.
    """

    cache_url: str
    fingerprint: str
    num_maps: int
    num_imported: int = 0
    num_present: int = 0
    num_failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    num_unmatched_maps: int = 0
    images_without_map: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ExportSummary:
    """What `export_cache` wrote: where, which format, how many maps, in which convention."""

    path: str
    format: str
    fingerprint: str
    num_maps: int
    convention: str = "relative-inverse"


def import_maps(
    source: Path,
    root: str | Path,
    *,
    images: Path,
    format: str,  # noqa: A002  (the command's option has this name)
    convention: str = "relative-inverse",
    model: str = "imported",
    bits: int = DEFAULT_BITS,
) -> ImportSummary:
    """Store maps that another program made. The same call again resumes a killed one.

    A map covers its whole upright photo, at any resolution; square maps of network inputs are
    stretched. One that has the shape of a photo as it lies in the file, although EXIF turns it, was
    made of the unturned photo and is a failure. Another aspect than the photo's is a warning.

    The fingerprint says that the maps were imported, from which bytes, and what their maker is
    said to be; it never equals the fingerprint of a model that stage one has run.

    Args:
        source: HDF5 or npz file, zarr group, or folder of maps.
        root: cache root.
        images: folder of the maps' images.
        format: one of FORMATS. A PNG's codes are its values, unless the folder was exported by
            `export_cache`, whose sidecar file keeps each map's range.
        convention: relative-inverse (larger = nearer, any scale and shift) or metric (larger =
            farther, any unit; stored as 1 / value).
        model: what made the maps.
        bits: significant bits of a stored map, 2 to 16; 32 keeps float32.

    Raises:
        CacheNotFoundError: source or images do not exist.
        CacheMismatchError: no map belongs to any image, or one map to several different images.
        ValueError: format or convention is unknown.
    """
    _check_choice("format", format, FORMATS)
    _check_choice("convention", convention, CONVENTIONS)
    source, images = Path(source), Path(images)
    if not source.exists():
        raise CacheNotFoundError(f"{source} does not exist")
    if not images.is_dir():
        raise CacheNotFoundError(f"image folder {images} does not exist")
    fingerprint = _imported_fingerprint(source, format, convention, model, bits)
    name = fmt.fingerprint_folder(fingerprint)
    store = open_store(root)
    with opened_source(source, format) as maps:
        matched, without_map, turned = _match_images(images, maps.shapes)
        if not matched:
            raise CacheMismatchError(
                f"none of the {len(maps.shapes)} maps in {source} is named after an image in "
                f"{images}; name maps after the image's key, path or file name"
            )
        summary = ImportSummary(
            cache_url=f"{str(root).rstrip('/')}/{name}",
            fingerprint=name,
            num_maps=len(maps.shapes),
            num_unmatched_maps=len(set(maps.shapes) - set(matched.values())),
            images_without_map=without_map,
        )
        known = _known_keys(store, root, name)
        summary.num_present = len(known & set(matched))
        write_fingerprint(store, name, fingerprint)
        missing = {key: entry for key, entry in matched.items() if key not in known}
        maps.shapes.update(turned)
        provenance = {"imported": True, "dataset": name_dataset([images / "*"])}
        _store_maps(store, name, missing, maps, convention, bits, provenance, summary)
    return summary


def export_cache(
    root: str | Path,
    out: Path,
    *,
    format: str,  # noqa: A002  (the command's option has this name)
    fingerprint: str | None = None,
) -> ExportSummary:
    """Write every map, named by its image key, as relative inverse depth (larger = nearer).

    hdf5, npy, npz and zarr keep the cache's float32 values; png8 and png16 round each map to
    256 or 65,536 levels between its extremes, which a sidecar file `depthcache.json` keeps.

    Args:
        root: cache root.
        out: file (hdf5, npz) or folder to write; must not exist, or be an empty folder.
        format: one of FORMATS.
        fingerprint: which cache of the root.

    Raises:
        FileExistsError: `out` exists.
        CacheNotFoundError, CacheMismatchError, CacheCorruptError: as `DepthCache`.
        ValueError: format is unknown.
    """
    _check_choice("format", format, FORMATS)
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir()) and format != "npz"):
        raise FileExistsError(f"{out} exists; export into a new place")
    cache = DepthCache.open(root, fingerprint=fingerprint)
    keys = list(cache.keys())
    out.parent.mkdir(parents=True, exist_ok=True)
    maps = ((key, cache.read(key)) for key in keys)
    about = {
        "convention": "relative-inverse",
        "fingerprint": cache.fingerprint,
        "model": cache.info()["model"],
    }
    WRITERS[format](out, maps, about)
    return ExportSummary(
        path=str(out), format=format, fingerprint=cache.fingerprint, num_maps=len(keys)
    )


def _match_images(
    images: Path, shapes: Mapping[str, tuple[int, int] | str]
) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """Image key → name of its map, image files that have none, and maps of unturned photos.

    Raises:
        CacheMismatchError: two different images claim one map.
    """
    matched: dict[str, str] = {}
    claims: dict[str, tuple[str, Path]] = {}
    without_map: list[str] = []
    turned: dict[str, str] = {}
    stretched: list[str] = []
    found = find_image_files(images)
    unreadable: list[Path] = []
    for path in found.images:
        try:
            data = path.read_bytes()
            facts = read_image_facts(data)
        except (ImageDecodeError, OSError):
            unreadable.append(path)
            continue
        key = image_key(data)
        relative = path.relative_to(images)
        names = (key, str(relative), str(relative.with_suffix("")), path.name, path.stem)
        entry = next((name for name in names if name in shapes), None)
        if entry is None:
            without_map.append(str(path))
            continue
        other = claims.setdefault(entry, (key, path))
        if other[0] != key:
            raise CacheMismatchError(
                f"map {entry!r} could belong to {other[1]} or to {path}; "
                "name maps after the path below the image folder"
            )
        matched.setdefault(key, entry)
        shape = shapes[entry]
        if not isinstance(shape, str):
            if reason := _describe_turned(shape, facts):
                turned[entry] = reason
            elif shape[0] != shape[1] and _aspect_error(shape, facts.size) > _ASPECT_TOLERANCE:
                stretched.append(entry)
    for paths, what in ((unreadable, "images that cannot be read"), (stretched, _STRETCHED)):
        if paths:
            log.warning("%d %s, for example %s", len(paths), what, paths[0])
    return matched, without_map, turned


def _describe_turned(shape: tuple[int, int], facts: ImageFacts) -> str | None:
    """Why a map is of a photo as it lies in the file, not as it stands; None when it need not."""
    error = _aspect_error(shape, facts.size)
    if facts.size == facts.stored_size or error <= _ASPECT_TOLERANCE:
        return None
    if _aspect_error(shape, facts.stored_size) >= error:
        return None
    return (
        f"a map of {shape[1]}×{shape[0]} has the aspect of the photo as it lies in the file; EXIF "
        f"orientation {facts.orientation} turns that to {facts.size[1]}×{facts.size[0]}: make the "
        "map of the upright photo, or turn it"
    )


def _aspect_error(shape: tuple[int, int], size: tuple[int, int]) -> float:
    """How many times wider or narrower a map is than its photo, as |ln|; network inputs round."""
    return abs(math.log(shape[1] * size[0] / (shape[0] * size[1])))


def _store_maps(
    store: ObjectStore,
    name: str,
    missing: Mapping[str, str],
    maps: MapSource,
    convention: str,
    bits: int,
    provenance: Mapping[str, Any],
    summary: ImportSummary,
) -> None:
    shapes: dict[str, tuple[int, int]] = {}
    failed: dict[str, str] = {}
    for key, entry in missing.items():
        shape = maps.shapes[entry]
        if isinstance(shape, str):
            failed[entry] = shape
        else:
            shapes[key] = shape
    plan = plan_segment(shapes, fingerprint=name, shard_rows=_SHARD_ROWS)
    prefix = fmt.segment_prefix(name, plan.segment_id)
    if shapes:
        with hold_segment(store, prefix):
            present = store.list_objects(prefix)
            for shard in plan.shards:
                if shard.maps_object in present:
                    summary.num_present += len(shard.keys)
                    continue
                read, reasons = _read_shard(shard, missing, maps, convention)
                reasons = write_shard(
                    store, prefix, shard, read, reasons, shard_rows=_SHARD_ROWS, bits=bits
                )
                failed.update({missing[key]: reason for key, reason in reasons.items()})
                summary.num_imported += len(shard.keys) - len(reasons)
            if fmt.SEALED not in present:
                seal_segment(store, prefix, plan, bits=bits, provenance=provenance)
    summary.failures = [{"path": entry, "reason": why} for entry, why in sorted(failed.items())]
    summary.num_failed = len(failed)


def _read_shard(
    shard: ShardPlan, entries: Mapping[str, str], maps: MapSource, convention: str
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    read: dict[str, npt.NDArray[np.float32]] = {}
    reasons: dict[str, str] = {}
    for key in shard.keys:
        try:
            values = maps.read(entries[key]).reshape(shard.shape)
            read[key] = to_inverse_depth(values, convention)
        except (OSError, ValueError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
            reasons[key] = f"cannot be imported: {error}"
    return read, reasons


def to_inverse_depth(values: npt.NDArray[Any], convention: str) -> npt.NDArray[np.float32]:
    """Relative inverse depth, larger = nearer, of values in a convention of CONVENTIONS.

    Values that float32 cannot tell apart (a large offset) are stored less their minimum: relative
    inverse depth has no zero.

    Raises:
        ValueError: values are no numbers, or beyond float32; metric depth that is not positive,
            which usually means no measurement.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"values of type {values.dtype} are not depth")
    inverse = values.astype(np.float64)
    if convention == "metric":
        num_empty = int((~(inverse > 0)).sum())
        if num_empty:
            raise ValueError(f"{num_empty} cells have no positive depth")
        inverse = 1.0 / inverse
    low, high = float(inverse.min()), float(inverse.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return inverse.astype(np.float32)  # which the writer refuses by name
    if max(-low, high) > float(np.finfo(np.float32).max):
        raise ValueError(f"values from {low:g} to {high:g} do not fit float32; scale them")
    stored = inverse.astype(np.float32)
    if np.abs(stored - inverse).max() > (high - low) * _LARGEST_ROUNDING:
        stored = (inverse - low).astype(np.float32)
    return stored


def _known_keys(store: ObjectStore, root: str | Path, name: str) -> set[str]:
    try:
        cache = DepthCache.open(root, fingerprint=name, store=store)
        return {*cache.keys(), *cache.failures()}
    except CacheNotFoundError:
        return set()


def _imported_fingerprint(
    source: Path, source_format: str, convention: str, model: str, bits: int
) -> dict[str, Any]:
    return {
        "format_version": fmt.FORMAT_VERSION,
        "model": "imported" if model == "imported" else f"imported/{model}",
        "revision": None,
        "weights_sha256": None,
        "source_sha256": digest_source(source),
        "source_format": source_format,
        "processor": None,
        "precision": None,
        "convention": {
            "model_output": "metric depth, larger = farther"
            if convention == "metric"
            else "relative inverse depth, larger = nearer",
            "post_processed": None,
            "stored": "relative inverse depth, larger = nearer",
        },
        "encoding": describe_encoding(bits),
    }


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what}={value!r} is not one of {', '.join(choices)}")
