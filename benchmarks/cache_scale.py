"""How time and memory grow with a cache: 1,000 to 100,000 small maps.

    python benchmarks/cache_scale.py [--sizes 1000 10000 100000]

Every task runs in a process of its own. Processor seconds do not depend on what else the machine
does; with one thread they are the time on an idle one, but for waiting on the disk. The images are
16 bytes each, so that what is measured is the bookkeeping, not the decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1_000, 10_000, 100_000)
_SIDE, _SHARD_ROWS, _NUM_READS = 16, 256, 2000


def make_cache(folder: Path, num_maps: int) -> None:
    """Images, a COCO file that lists them, and a cache of a random map for each."""
    from depthcache import image_key
    from depthcache.format.segment_format import canonical_json, fingerprint_folder
    from depthcache.format.shard_planning import plan_segment
    from depthcache.segments.writer import seal_segment, write_shard
    from depthcache.storage.local_folder import LocalStore

    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    keys = []
    for number in range(num_maps):
        content = b"P5\n# %06d\n1 1\n255\n\0" % number  # a PGM of one pixel
        (folder / "images" / f"{number:06}.pgm").write_bytes(content)
        keys.append(image_key(content))
    images = [
        {"id": number, "file_name": f"{number:06}.pgm", "width": 1, "height": 1}
        for number in range(num_maps)
    ]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (folder / "coco.json").write_text(json.dumps(document))
    fingerprint = {"model": "random maps", "format_version": 1}
    name = fingerprint_folder(fingerprint)
    store = LocalStore(folder / "cache")
    store.put(f"{name}/fingerprint.json", canonical_json(fingerprint))
    shapes = dict.fromkeys(keys, (_SIDE, _SIDE))
    plan = plan_segment(shapes, fingerprint=name, shard_rows=_SHARD_ROWS)
    prefix = f"{name}/segments/{plan.segment_id}"
    for shard in plan.shards:
        maps = {key: generator.random((_SIDE, _SIDE), dtype=np.float32) for key in shard.keys}
        write_shard(store, prefix, shard, maps, {}, shard_rows=_SHARD_ROWS, bits=12)
    seal_segment(store, prefix, plan, bits=12, provenance={})


def open_cache(folder: Path) -> int:
    """Open it and list every key."""
    from depthcache import DepthCache

    return len(list(DepthCache.open(folder / "cache").keys()))


def read_maps(folder: Path) -> int:
    """Open it and read 2,000 maps at random."""
    from depthcache import DepthCache

    cache = DepthCache.open(folder / "cache")
    keys = list(cache.keys())
    chosen = random.Random(0).choices(keys, k=_NUM_READS)
    for key in chosen:
        cache.read(key)
    return len(keys)


def list_root(folder: Path) -> int:
    """`pipeline cache ls`."""
    from depthcache.cache_reader import list_caches

    return int(list_caches(str(folder / "cache"))[0]["num_maps"])


def verify_root(folder: Path) -> int:
    """`pipeline cache verify`."""
    from depthcache.segments.verification import verify_cache

    report = verify_cache(folder / "cache")
    assert report.problems == []
    return report.num_maps


def scan_images(folder: Path) -> int:
    """What `pipeline depth` does before it computes: hash every image, ask the cache."""
    from depthcache import DepthCache
    from depthcache.stage_one.image_contents import read_contents

    contents = read_contents(sorted((folder / "images").iterdir()))
    missing = DepthCache.open(folder / "cache").missing(list(contents.paths))
    assert missing == [], missing[:3]
    return contents.num_unique


def scan_run(folder: Path) -> int:
    """How `pipeline run` finds that its depth is done: read the COCO file, look at the images."""
    from pipeline.datasets.image_lists import list_coco_images
    from pipeline.runs.stages import digest_file_list

    images = list_coco_images(folder / "coco.json", folder / "images")
    digest_file_list(images)
    return len(images)


TASKS: dict[str, Callable[[Path], int]] = {
    "open, list keys": open_cache,
    f"read {_NUM_READS:,} maps": read_maps,
    "`cache ls`": list_root,
    "`cache verify`": verify_root,
    "`depth`: hash images, ask the cache": scan_images,
    "`run`: find the depth done": scan_run,
}


def measure(task: str, folder: Path) -> dict[str, float]:
    """Run a task in a process of its own: processor seconds, and MiB beyond what it imports."""
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_task(task: str, folder: Path) -> dict[str, float]:
    """Run a task here, once on the folder's own import of modules and once measured."""
    with tempfile.TemporaryDirectory() as tiny:
        make_cache(Path(tiny), 10)
        TASKS[task](Path(tiny))  # imports what it needs
    memory, cpu = _peak_mib(), time.process_time()
    num_maps = TASKS[task](folder)
    return {
        "maps": num_maps,
        "cpu_seconds": time.process_time() - cpu,
        "mib": _peak_mib() - memory,
    }


def _peak_mib() -> float:
    # Of this program: ru_maxrss begins with what the process held before it became this one.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def format_tables(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: tasks by number of maps."""
    sizes = sorted({row["size"] for row in rows})
    head = ["task", *(f"{size:,} maps" for size in sizes), "growth of the last step"]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for task in dict.fromkeys(row["task"] for row in rows):
        found = {row["size"]: row for row in rows if row["task"] == task}
        cells = [
            f"{found[size]['cpu_seconds']:.2f} s, {found[size]['mib']:.0f} MiB" for size in sizes
        ]
        growth = "–"
        if len(sizes) > 1:
            times = found[sizes[-1]]["cpu_seconds"] / max(found[sizes[-2]]["cpu_seconds"], 1e-6)
            growth = f"{times:.1f} for {sizes[-1] / sizes[-2]:.0f} times the maps"
        lines.append(" | ".join([task, *cells, growth]))
    return "\n".join(f"| {line} |" for line in lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.task:
        print(json.dumps(run_task(arguments.task, arguments.folder)))
        return
    rows = []
    for size in sorted(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            make_cache(Path(folder), size)
            rows += [{"task": t, "size": size, **measure(t, Path(folder))} for t in TASKS]
        print(json.dumps(rows[-len(TASKS) :]), file=sys.stderr)
    print(format_tables(rows))


if __name__ == "__main__":
    main()
