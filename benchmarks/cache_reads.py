"""Random reads of single maps beside other readers and files, and opening large caches.

    python benchmarks/cache_reads.py --images DIR --side 384
    python benchmarks/cache_reads.py --open 118000

All readers of a map run in turn in every round; ratios are medians over the rounds. Warm reads cost
processor time alone, so their ratios are also given in that, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorstore
import zarr
from depth_maps import get_maps
from numcodecs import blosc
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.format.quantisation import dequantise, quantise
from depthcache.format.segment_format import canonical_json, fingerprint_folder
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.local_folder import LocalStore

SHARD_ROWS = 64
COLD_READS = 24
# In a process that imports nothing else, so that its memory is the reader's.
_OPEN_ONCE = """
import json, re, sys, time
from pathlib import Path
from depthcache import DepthCache, image_key
status = Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1024
before, start, cpu = peak(), time.perf_counter(), time.process_time()
cache = DepthCache.open(sys.argv[1])
num_maps = len(cache)
opened, opened_cpu = time.perf_counter(), time.process_time()
keys = [image_key(b"%d" % number) for number in range(2000)]
found = time.process_time()
assert not cache.missing(keys)
missing = time.process_time()
cache.read(keys[7])
print(json.dumps({
    "open_seconds": opened - start, "open_processor_seconds": opened_cpu - cpu,
    "lookup_microseconds": 1e6 * (missing - found) / len(keys),
    "process_mib": peak(), "added_mib": peak() - before,
    "added_bytes_per_map": (peak() - before) * 2**20 / num_maps,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="photos; without, made-up maps")
    parser.add_argument("--num-images", type=int, default=96)
    parser.add_argument("--side", type=int, default=384, help="network input, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--open", type=int, metavar="MAPS", help="open a cache of so many instead")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    blosc.use_threads = False  # as in the worker processes of a data loader
    if arguments.open:
        result = measure_opening(arguments.open)
    else:
        maps = get_maps(arguments.images, arguments.num_images, arguments.side)
        result = measure_reads(maps, arguments.rounds)
    print(json.dumps(result, indent=1))


def measure_reads(maps: dict[str, Any], num_rounds: int) -> dict[str, Any]:
    """Maps a second as float32, warm and cold, by every reader."""
    with tempfile.TemporaryDirectory() as folder:
        readers = open_readers(Path(folder), maps)
        for key in sorted(maps)[:8]:
            for read in readers.values():
                assert np.abs(read(key) - maps[key]).max() <= np.ptp(maps[key]) / 8000
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        result: dict[str, Any] = {
            "num_maps": len(maps),
            "shape": [*next(iter(maps.values())).shape],
        }
        for state in ("warm", "cold"):
            walls: dict[str, list[float]] = {name: [] for name in readers}
            processors: dict[str, list[float]] = {name: [] for name in readers}
            for number in range(num_rounds):
                order = random.Random(number).sample(sorted(maps), len(maps))
                for name, read in readers.items():
                    wall, processor = (
                        time_reads(read, order, [])
                        if state == "warm"
                        else time_reads(read, order[:COLD_READS], files)
                    )
                    walls[name].append(wall)
                    processors[name].append(processor)
            milliseconds = {n: round(1e3 * statistics.median(s), 3) for n, s in walls.items()}
            result[state] = {
                "ms_a_map": milliseconds,
                "depthcache_times_as_fast_as": compare(walls),
                "in_processor_time": compare(processors),
            }
        result["bytes"] = compare_bytes(Path(folder), len(maps))
    return result


def open_readers(folder: Path, maps: dict[str, Any]) -> dict[str, Callable[[str], Any]]:
    """Write the maps as a cache and as 16-bit PNGs; key → float32 map, by each reader.

    The peers know the row of a key for nothing, and the ranges too.
    """
    array_path = write_cache(folder / "cache", maps)
    pictures = folder / "png"
    pictures.mkdir()
    ranges = {}
    for key in sorted(maps):
        codes, ranges[key] = quantise(maps[key], 16)
        Image.fromarray(codes).save(pictures / f"{key}.png")
    rows = {key: row for row, key in enumerate(sorted(maps))}
    array = zarr.open_array(folder / "cache" / array_path, mode="r")
    low_high = zarr.open_array(
        folder / "cache" / array_path.replace("/maps/", "/ranges/"), mode="r"
    )[:]
    where = {"driver": "file", "path": str(folder / "cache" / array_path)}
    store = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
    cache = DepthCache.open(folder / "cache")

    def decode(codes: Any, row: int) -> Any:
        low, high = (float(value) for value in low_high[row])
        return dequantise(np.asarray(codes), (low, high), 12)

    def read_zarr(key: str) -> Any:
        return decode(array[rows[key]], rows[key])

    def read_tensorstore(key: str) -> Any:
        return decode(store[rows[key]].read().result(), rows[key])

    def read_pillow(key: str) -> Any:
        with Image.open(pictures / f"{key}.png") as image:
            return dequantise(np.asarray(image).astype(np.uint16), ranges[key], 16)

    def read_cv2(key: str) -> Any:
        codes = cv2.imread(str(pictures / f"{key}.png"), cv2.IMREAD_UNCHANGED)
        return dequantise(codes, ranges[key], 16)

    return {
        "depthcache": cache.read,
        "zarr-python": read_zarr,
        "tensorstore": read_tensorstore,
        "PNG16 (Pillow)": read_pillow,
        "PNG16 (OpenCV)": read_cv2,
    }


def write_cache(root: Path, maps: dict[str, Any]) -> str:
    """One segment through the real writer; returns the path of its maps' array."""
    fingerprint = {"model": "benchmark", "format_version": 1}
    folder = fingerprint_folder(fingerprint)
    store = LocalStore(root)
    store.put(f"{folder}/fingerprint.json", canonical_json(fingerprint))
    shapes = {key: inverse_depth.shape for key, inverse_depth in maps.items()}
    plan = plan_segment(shapes, fingerprint=folder, shard_rows=SHARD_ROWS)
    prefix = f"{folder}/segments/{plan.segment_id}"
    for shard in plan.shards:
        write_shard(store, prefix, shard, maps, {}, shard_rows=SHARD_ROWS, bits=12)
    seal_segment(store, prefix, plan, bits=12, provenance={})
    return f"{prefix}/maps/{plan.shards[0].bucket}"


def time_reads(
    read: Callable[[str], Any], keys: Sequence[str], evicted: Sequence[Path]
) -> tuple[float, float]:
    """Seconds a map, of the clock and of all threads; `evicted` files are not in the page cache."""
    wall = processor = 0.0
    gc.disable()
    for key in keys:
        for path in evicted:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        start = (time.perf_counter(), time.process_time())
        read(key)
        wall += time.perf_counter() - start[0]
        processor += time.process_time() - start[1]
    gc.enable()
    return wall / len(keys), processor / len(keys)


def compare(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median over the rounds of each peer's time by ours."""
    return {
        name: round(
            statistics.median(t / o for t, o in zip(found, seconds["depthcache"], strict=True)), 2
        )
        for name, found in seconds.items()
        if name != "depthcache"
    }


def compare_bytes(folder: Path, num_maps: int) -> dict[str, Any]:
    """Stored bytes a map: shards with index and ranges, and PNGs."""
    arrays = [p for kind in ("maps", "ranges") for p in folder.glob(f"cache/*/*/*/{kind}/*/c/**/*")]
    stored = sum(path.stat().st_size for path in arrays if path.is_file())
    png = sum(path.stat().st_size for path in folder.glob("png/*"))
    return {
        "a_map": round(stored / num_maps),
        "a_png16": round(png / num_maps),
        "ratio": round(stored / png, 3),
    }


def measure_opening(num_maps: int) -> dict[str, Any]:
    """Time and memory to open a cache of many tiny maps, in processes of their own."""
    values = np.random.default_rng(0).random((64, 4, 4), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder), {image_key(b"%d" % n): values[n % 64] for n in range(num_maps)})
        command = [sys.executable, "-c", _OPEN_ONCE, folder]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(3)]
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    return {"num_maps": num_maps, **medians}


if __name__ == "__main__":
    main()
