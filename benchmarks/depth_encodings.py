"""Ways to store a depth map: bytes, time to write and read, error, and what the losses see of it.

The maps are the demo model's depth of photos, at its own 192 × 192 or at a larger input:

    python benchmarks/depth_encodings.py --images DIR --side 384

Times are processor time of one thread, so that a busy machine does not change them.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from depth_maps import FloatMap, get_maps
from numcodecs import blosc
from numcodecs.blosc import Blosc
from PIL import Image
from torch.nn import functional as F

from depthcache.format.quantisation import dequantise, quantise
from depthcache.format.segment_format import encode_map
from segtrain.data.augmentations import scale_to_255
from segtrain.losses.depth import depth_loss
from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
from segtrain.mask_grid.neighbours import neighbour_similarity

CODECS = [
    (name, level, shuffle, block_bytes)
    for name, levels in (("zstd", (1, 2, 3, 4, 5, 9)), ("lz4", (5,)), ("lz4hc", (9,)))
    for level in levels
    for shuffle in ("bitshuffle", "shuffle")
    for block_bytes in (0, 2**19)  # 0 lets blosc choose
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="photos; without, made-up maps")
    parser.add_argument("--num-images", type=int, default=24)
    parser.add_argument("--side", type=int, default=384, help="network input, a multiple of 32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    blosc.use_threads = False
    maps = list(get_maps(arguments.images, arguments.num_images, arguments.side).values())
    result = {
        "num_maps": len(maps),
        "shape": list(maps[0].shape),
        "bits": compare_bits(maps),
        "codecs": compare_codecs(maps),
    }
    print(json.dumps(result, indent=1))


def compare_bits(maps: Sequence[FloatMap]) -> dict[str, Any]:
    """Every number of bits with the format's codec, float16, and 16-bit PNG."""
    table: dict[str, Any] = {}
    png_bytes = statistics.mean(len(_encode_png(quantise(each, 16)[0])) for each in maps)
    for bits in (8, 10, 11, 12, 14, 16, 32):
        sizes, reads = [], []
        for inverse_depth in maps:
            codes, value_range = quantise(inverse_depth, bits)
            sizes.append(len(encode_map(codes, bits)))
            reads.append(dequantise(codes, value_range, bits))
        table[f"{bits} bits"] = _summarise(maps, reads, sizes, png_bytes)
    halves = [each.astype(np.float16) for each in maps]
    sizes = [len(encode_map(half.view(np.uint16), 16)) for half in halves]
    table["float16"] = _summarise(maps, [h.astype(np.float32) for h in halves], sizes, png_bytes)
    table["png16"] = {"bytes": round(png_bytes)}
    return table


def compare_codecs(maps: Sequence[FloatMap]) -> dict[str, Any]:
    """Codecs of zarr's blosc on 12-bit codes."""
    coded = [quantise(each, 12)[0] for each in maps]
    pngs = [_encode_png(quantise(each, 16)[0]) for each in maps]
    table: dict[str, Any] = {
        "png16 (Pillow)": {
            "of_png16": 1.0,
            "decode_ms": _time(lambda data: np.asarray(Image.open(io.BytesIO(data))), pngs),
        }
    }
    for name, level, shuffle, block_bytes in CODECS:
        mode = Blosc.BITSHUFFLE if shuffle == "bitshuffle" else Blosc.SHUFFLE
        codec = Blosc(cname=name, clevel=level, shuffle=mode, blocksize=block_bytes)
        encoded = [codec.encode(codes) for codes in coded]
        num_bytes = sum(map(len, encoded))
        table[f"{name} {level} {shuffle} {block_bytes or 'auto'}"] = {
            "of_png16": round(num_bytes / sum(map(len, pngs)), 3),
            "bytes": round(num_bytes / len(encoded)),
            "encode_ms": _time(codec.encode, coded),
            "decode_ms": _time(codec.decode, encoded),
        }
    return table


def _summarise(
    maps: Sequence[FloatMap], reads: Sequence[FloatMap], sizes: Sequence[int], png_bytes: float
) -> dict[str, Any]:
    errors = [
        np.abs(read - exact).max() / np.ptp(exact) for read, exact in zip(reads, maps, strict=True)
    ]
    seen = [compare_losses(exact, read) for read, exact in zip(reads, maps, strict=True)]
    return {
        "bytes": round(statistics.mean(sizes)),
        "of_png16": round(statistics.mean(sizes) / png_bytes, 3),
        "max_error_of_range": float(f"{max(errors):.2g}"),
        "max_error_grey_levels": float(f"{255 * max(errors):.2g}"),
        **{name: float(f"{max(each[name] for each in seen):.2g}") for name in seen[0]},
    }


def compare_losses(exact: FloatMap, read: FloatMap) -> dict[str, float]:
    """What the trainer's own loss functions make of a map and of its stored copy.

    The maps go the trainer's way: resized to a short side of 768, scaled to 0..255, every fourth
    pixel mean. Mask logits and predicted depth are random and smooth.
    """
    generator = torch.Generator().manual_seed(0)
    size = (768, 1024)
    cells = (size[0] // 4, size[1] // 4)
    logits = F.interpolate(
        torch.randn(1, 1, 12, 16, generator=generator) * 4, size=cells, mode="bicubic"
    )[0]
    extents = torch.tensor([[20, 170, 30, 200]])
    first = torch.zeros(1, dtype=torch.int64)
    found = []
    for inverse_depth in (exact, read):
        resized = Image.fromarray(inverse_depth).resize(size[::-1], Image.Resampling.BILINEAR)
        scaled = torch.from_numpy(scale_to_255(np.asarray(resized)))
        grid = F.avg_pool2d(scaled[None, None], 4)[0]
        similarity = neighbour_similarity(grid[None], torch.ones_like(grid))
        edges = edges_from_similarity(similarity, 0.5)
        (consistency,) = pairwise_losses(logits, [edges], first, [extents])
        layer = depth_loss(logits.sigmoid(), grid, first, extents)
        found.append((similarity, edges, float(consistency), float(layer)))
    (similarity, edges, consistency, layer), other = found
    return {
        "max_similarity_change": float((similarity - other[0]).abs().max()),
        "edges_changed": float((edges != other[1]).float().mean()),
        "consistency_loss_change": abs(other[2] - consistency) / consistency,
        "depth_loss_change": abs(other[3] - layer) / layer,
    }


def _time(action: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """Median milliseconds of processor time."""
    spent = []
    for argument in arguments:
        start = time.process_time()
        action(argument)
        spent.append(time.process_time() - start)
    return round(1e3 * statistics.median(spent), 3)


def _encode_png(codes: npt.NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(codes).save(buffer, "png")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
