"""Depth maps that other programs made: HDF5, zarr, npz, and folders of PNG or npy."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from depthcache.errors import CacheMismatchError

SIDECAR = "depthcache.json"
_SUFFIXES = {"png8": ".png", "png16": ".png", "npy": ".npy", "npz": ".npz"}
_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile
)  # fmt: skip


@dataclass(kw_only=True)
class MapSource:
    """Maps by name.

    Attributes:
        shapes: (H, W) by name, or why the entry is no map.
        read: values by name.
    """

    shapes: dict[str, tuple[int, int] | str]
    read: Callable[[str], npt.NDArray[Any]]


@contextmanager
def opened_source(source: Path, source_format: str) -> Iterator[MapSource]:
    """Maps in a file or folder of a format; the file is open inside the block.

    Raises:
        CacheMismatchError: the source is not of that format.
    """
    with ExitStack() as held:
        try:
            maps = _open(source, source_format, held)
        except _UNREADABLE as error:
            raise CacheMismatchError(
                f"{source} cannot be read as {source_format}: {error}; name its format, or the "
                "folder of the maps"
            ) from error
        yield maps


def _open(source: Path, source_format: str, held: ExitStack) -> MapSource:
    if source_format == "hdf5":
        import h5py

        file = held.enter_context(h5py.File(source, "r"))
        shapes: dict[str, tuple[int, int] | str] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                shapes[name] = _map_shape(node.shape)

        file.visititems(visit)
        return MapSource(shapes=shapes, read=lambda name: np.asarray(file[name]))
    if source_format == "zarr":
        import zarr

        group: Any = zarr.open_group(source, mode="r")
        members = group.members(max_depth=None)
        return MapSource(
            shapes={n: _map_shape(node.shape) for n, node in members if hasattr(node, "shape")},
            read=lambda name: np.asarray(group[name][...]),
        )
    if source.is_file() and source_format == "npz":
        arrays = held.enter_context(np.load(source))
        return MapSource(
            shapes={name: _map_shape(arrays[name].shape) for name in arrays.files},
            read=lambda name: np.asarray(arrays[name]),
        )
    return _open_folder(source, source_format)


def _open_folder(source: Path, source_format: str) -> MapSource:
    if not source.is_dir():
        raise NotADirectoryError("it is no folder")
    suffix = _SUFFIXES[source_format]
    files = {
        path.relative_to(source).as_posix().removesuffix(path.suffix): path
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.suffix.lower() == suffix and path.name[:2] != "._"
    }
    sidecar = source / SIDECAR
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
    return MapSource(shapes=shapes, read=read)


def _load_array(path: Path) -> npt.NDArray[Any]:
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, mmap_mode="r"))
    with np.load(path) as arrays:
        if len(arrays.files) != 1:
            raise ValueError(f"{len(arrays.files)} arrays in the file, expected one")
        return np.asarray(arrays[arrays.files[0]])


def _load_picture(path: Path) -> npt.NDArray[Any]:
    """Grey values of a picture; those of an indexed one come from its palette.

    Raises:
        ValueError: a colour picture, or one with transparent cells, which have no value.
    """
    with Image.open(path) as picture:
        if picture.mode not in ("1", "L", "RGB") or "transparency" in picture.info:
            if picture.mode == "F" or picture.mode.startswith("I"):
                return np.asarray(picture)
            rgba = np.asarray(picture.convert("RGBA"))
            if (rgba[..., 3] < 255).any():
                raise ValueError("a picture with transparent cells, which have no depth")
            values = rgba[..., :3]
        else:
            values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise ValueError("a colour picture, or one with a colour palette, not a depth map")
        values = values[..., 0]
    return values


def _map_shape(shape: tuple[int, ...]) -> tuple[int, int] | str:
    """(H, W) of (H, W), (1, H, W) or (H, W, 1); else what is wrong."""
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    elif len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    if len(shape) != 2 or 0 in shape:
        return f"shape {tuple(shape)} is not that of one map"
    return int(shape[0]), int(shape[1])


def digest_source(source: Path) -> str:
    """sha256 over names below the source and contents, so that moving the source changes none."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for path in files:
        name = "" if path == source else path.relative_to(source).as_posix()
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()
