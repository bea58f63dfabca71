"""Depth maps in and out of a cache: HDF5, folders of PNG or npy, npz, and plain zarr.

A map is named after its image: by the image's key, its path below the image folder, or its file
name, each with or without the suffix.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from depthcache.cache_reader import DepthCache
from depthcache.errors import (
    CacheMismatchError,
    CacheNotFoundError,
    ImageDecodeError,
)
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import DEFAULT_BITS, describe_encoding
from depthcache.format.shard_planning import ShardPlan, plan_segment
from depthcache.image_decoding import image_key, read_image_size
from depthcache.segments.writer import hold_segment, seal_segment, write_shard
from depthcache.storage.object_stores import ObjectStore, open_store

FORMATS = ("hdf5", "png8", "png16", "npy", "npz", "zarr")
CONVENTIONS = ("relative-inverse", "metric")
_SHARD_ROWS = 64
_SIDECAR = "depthcache.json"
_SUFFIXES = {"png8": ".png", "png16": ".png", "npy": ".npy", "npz": ".npz"}


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
    with _opened_source(source, format) as maps:
        matched, without_map = _match_images(images, maps.shapes)
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
        _write_fingerprint(store, name, fingerprint)
        missing = {key: entry for key, entry in matched.items() if key not in known}
        _store_maps(store, name, missing, maps, convention, bits, summary)
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
    _WRITERS[format](out, maps, about)
    return ExportSummary(
        path=str(out), format=format, fingerprint=cache.fingerprint, num_maps=len(keys)
    )


@dataclass(kw_only=True)
class _MapSource:
    """Maps by name.

    Attributes:
        shapes: (H, W) by name, or why the entry is no map.
        read: values by name.
    """

    shapes: dict[str, tuple[int, int] | str]
    read: Callable[[str], npt.NDArray[Any]]


@contextmanager
def _opened_source(source: Path, source_format: str) -> Iterator[_MapSource]:
    if source_format == "hdf5":
        import h5py

        with h5py.File(source, "r") as file:
            shapes: dict[str, tuple[int, int] | str] = {}

            def visit(name: str, node: Any) -> None:
                if isinstance(node, h5py.Dataset):
                    shapes[name] = _map_shape(node.shape)

            file.visititems(visit)
            yield _MapSource(shapes=shapes, read=lambda name: np.asarray(file[name]))
    elif source_format == "zarr":
        import zarr

        group: Any = zarr.open_group(source, mode="r")
        yield _MapSource(
            shapes={
                name: _map_shape(node.shape)
                for name, node in group.members(max_depth=None)
                if isinstance(node, zarr.Array)
            },
            read=lambda name: np.asarray(group[name][...]),
        )
    elif source.is_file() and source_format == "npz":
        with np.load(source) as arrays:
            yield _MapSource(
                shapes={name: _map_shape(arrays[name].shape) for name in arrays.files},
                read=lambda name: np.asarray(arrays[name]),
            )
    else:
        yield _open_folder(source, source_format)


def _open_folder(source: Path, source_format: str) -> _MapSource:
    if not source.is_dir():
        raise CacheMismatchError(f"{source} is no folder of {source_format} files")
    suffix = _SUFFIXES[source_format]
    files = {
        path.relative_to(source).as_posix().removesuffix(path.suffix): path
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.suffix.lower() == suffix
    }
    sidecar = source / _SIDECAR
    ranges = json.loads(sidecar.read_text())["ranges"] if sidecar.is_file() else {}

    def read(name: str) -> npt.NDArray[Any]:
        if suffix != ".png":
            return _load_array(files[name])
        codes = _load_picture(files[name])
        if name not in ranges:
            return codes
        low, high = ranges[name]
        levels = np.iinfo(codes.dtype).max
        return low + codes.astype(np.float64) * ((high - low) / levels)

    shapes: dict[str, tuple[int, int] | str] = {}
    for name, path in files.items():
        try:
            if suffix == ".png":
                with Image.open(path) as picture:
                    shapes[name] = (picture.height, picture.width)
            else:
                shapes[name] = _map_shape(_load_array(path).shape)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            shapes[name] = f"cannot be read: {error}"
    return _MapSource(shapes=shapes, read=read)


def _load_array(path: Path) -> npt.NDArray[Any]:
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, mmap_mode="r"))
    with np.load(path) as arrays:
        if len(arrays.files) != 1:
            raise ValueError(f"{len(arrays.files)} arrays in the file, expected one")
        return np.asarray(arrays[arrays.files[0]])


def _load_picture(path: Path) -> npt.NDArray[Any]:
    with Image.open(path) as picture:
        values = np.asarray(picture)
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise ValueError("a colour picture, not a depth map")
        values = values[..., 0]
    return values.astype(np.uint16) if values.dtype == np.int32 else values


def _map_shape(shape: tuple[int, ...]) -> tuple[int, int] | str:
    """(H, W) of (H, W), (1, H, W) or (H, W, 1); else what is wrong."""
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    elif len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    if len(shape) != 2 or 0 in shape:
        return f"shape {tuple(shape)} is not that of one map"
    return int(shape[0]), int(shape[1])


def _match_images(
    images: Path, shapes: Mapping[str, tuple[int, int] | str]
) -> tuple[dict[str, str], list[str]]:
    """Image key → name of its map, and the image files that have none.

    Raises:
        CacheMismatchError: two different images claim one map.
    """
    matched: dict[str, str] = {}
    claims: dict[str, tuple[str, Path]] = {}
    without_map: list[str] = []
    for path in sorted(p for p in images.rglob("*") if p.is_file()):
        data = path.read_bytes()
        try:
            read_image_size(data)
        except ImageDecodeError:
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
    return matched, without_map


def _store_maps(
    store: ObjectStore,
    name: str,
    missing: Mapping[str, str],
    maps: _MapSource,
    convention: str,
    bits: int,
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
    prefix = f"{name}/segments/{plan.segment_id}"
    if shapes:
        with hold_segment(store, prefix):
            present = store.list_objects(prefix)
            for shard in plan.shards:
                if f"maps/{shard.bucket}/c/{shard.number}/0/0" in present:
                    summary.num_present += len(shard.keys)
                    continue
                read, reasons = _read_shard(shard, missing, maps, convention)
                reasons = write_shard(
                    store, prefix, shard, read, reasons, shard_rows=_SHARD_ROWS, bits=bits
                )
                failed.update({missing[key]: reason for key, reason in reasons.items()})
                summary.num_imported += len(shard.keys) - len(reasons)
            if fmt.SEALED not in present:
                seal_segment(store, prefix, plan, bits=bits, provenance={"imported": True})
    summary.failures = [{"path": entry, "reason": why} for entry, why in sorted(failed.items())]
    summary.num_failed = len(failed)


def _read_shard(
    shard: ShardPlan, entries: Mapping[str, str], maps: _MapSource, convention: str
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

    Raises:
        ValueError: metric depth that is not positive, which usually means no measurement.
    """
    if convention == "metric":
        num_empty = int((~(values > 0)).sum())
        if num_empty:
            raise ValueError(f"{num_empty} cells have no positive depth")
        return (1.0 / values.astype(np.float64)).astype(np.float32)
    return values.astype(np.float32)


def _known_keys(store: ObjectStore, root: str | Path, name: str) -> set[str]:
    try:
        cache = DepthCache.open(root, fingerprint=name, store=store)
        return {*cache.keys(), *cache.failures()}
    except CacheNotFoundError:
        return set()


def _write_fingerprint(store: ObjectStore, name: str, fingerprint: dict[str, Any]) -> None:
    path, text = f"{name}/{fmt.FINGERPRINT}", fmt.canonical_json(fingerprint)
    try:
        if store.get(path) != text:
            raise CacheMismatchError(f"{path} belongs to another fingerprint; use another root")
    except CacheNotFoundError:
        store.put(path, text)


def _imported_fingerprint(
    source: Path, source_format: str, convention: str, model: str, bits: int
) -> dict[str, Any]:
    return {
        "format_version": fmt.FORMAT_VERSION,
        "model": "imported" if model == "imported" else f"imported/{model}",
        "revision": None,
        "weights_sha256": None,
        "source_sha256": _digest_source(source),
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


def _digest_source(source: Path) -> str:
    """sha256 over names below the source and contents, so that moving the source changes none."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for path in files:
        name = "" if path == source else path.relative_to(source).as_posix()
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


_Maps = Iterator[tuple[str, npt.NDArray[np.float32]]]


def _write_hdf5(out: Path, maps: _Maps, about: dict[str, Any]) -> None:
    import h5py

    if out.is_dir():
        raise FileExistsError(f"{out} is a folder; hdf5 is one file")
    with h5py.File(out, "w-") as file:
        file.attrs.update(about)
        for key, inverse_depth in maps:
            file.create_dataset(
                key, data=inverse_depth, compression="gzip", shuffle=True, fletcher32=True
            )


def _write_npz(out: Path, maps: _Maps, about: dict[str, Any]) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = fmt.canonical_json(about)
        for key, inverse_depth in maps:
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, inverse_depth, allow_pickle=False)


def _write_zarr(out: Path, maps: _Maps, about: dict[str, Any]) -> None:
    import zarr

    group: Any = zarr.open_group(out, mode="a", attributes=about)
    for key, inverse_depth in maps:
        group.create_array(key, data=inverse_depth, chunks=inverse_depth.shape)


def _write_npy(out: Path, maps: _Maps, about: dict[str, Any]) -> None:
    out.mkdir(exist_ok=True)
    for key, inverse_depth in maps:
        np.save(out / f"{key}.npy", inverse_depth)
    (out / _SIDECAR).write_bytes(fmt.canonical_json({**about, "ranges": {}}))


def _write_pictures(dtype: type[np.unsignedinteger[Any]]) -> Callable[..., None]:
    levels = int(np.iinfo(dtype).max)

    def write(out: Path, maps: _Maps, about: dict[str, Any]) -> None:
        out.mkdir(exist_ok=True)
        ranges = {}
        for key, inverse_depth in maps:
            low, high = float(inverse_depth.min()), float(inverse_depth.max())
            scale = levels / (high - low) if high > low else 0.0
            codes = np.rint((inverse_depth.astype(np.float64) - low) * scale)
            Image.fromarray(codes.clip(0, levels).astype(dtype)).save(out / f"{key}.png")
            ranges[key] = [low, high]
        (out / _SIDECAR).write_bytes(fmt.canonical_json({**about, "ranges": ranges}))

    return write


_WRITERS: dict[str, Callable[..., None]] = {
    "hdf5": _write_hdf5,
    "npy": _write_npy,
    "npz": _write_npz,
    "png8": _write_pictures(np.uint8),
    "png16": _write_pictures(np.uint16),
    "zarr": _write_zarr,
}


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what}={value!r} is not one of {', '.join(choices)}")
