"""Depth maps for other programs: each function writes maps in one format."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from depthcache.exchange.sources import SIDECAR
from depthcache.format.segment_format import canonical_json

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
        archive.comment = canonical_json(about)
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
    (out / SIDECAR).write_bytes(canonical_json({**about, "ranges": {}}))


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
        (out / SIDECAR).write_bytes(canonical_json({**about, "ranges": ranges}))

    return write


WRITERS: dict[str, Callable[..., None]] = {
    "hdf5": _write_hdf5,
    "npy": _write_npy,
    "npz": _write_npz,
    "png8": _write_pictures(np.uint8),
    "png16": _write_pictures(np.uint16),
    "zarr": _write_zarr,
}
