"""Kills stage one at random times, resumes it, and compares every byte with a run left in peace.

    python benchmarks/kill_resume.py --kills 80
    python benchmarks/kill_resume.py --kills 20 --cluster

Without --cluster the process that computes is killed; with it, by turns a dask worker and the
coordinator. When a root is finished, the next one is begun, until there were as many kills.
Checked for every root: all objects are those of the reference, a shard that was present at a kill
is never written again, the resumed run begins its count there, and after `gc` nothing is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from random_dpt import write_dpt

from depthcache.segments.garbage_collection import collect_garbage
from depthcache.segments.verification import verify_cache
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.settings import StageOneSettings

NUM_IMAGES = 48
SHARD_ROWS = 4
# In a process of its own: this one forks, and dask's threads would not survive that.
_CLUSTER = """
import json, logging, sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None,
                      silence_logs=logging.CRITICAL) as cluster:
        print(cluster.scheduler_address, flush=True)
        for _ in sys.stdin:
            nannies = cluster.workers.values()
            print(json.dumps([n.process.pid for n in nannies if n.process]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=80)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_and_resume(Path(folder), arguments.kills, arguments.seed, arguments.cluster)
    print(json.dumps(result, indent=1))


def kill_and_resume(folder: Path, num_kills: int, seed: int, on_cluster: bool) -> dict[str, Any]:
    """Do as the module says; raises AssertionError when a check fails."""
    images = write_images(folder / "images")
    model = folder / "model"
    wait_for(fork(lambda: write_dpt(model, hidden_size=16, num_layers=4, side=32)))
    start = time.monotonic()
    wait_for(fork_run(images, model, folder / "reference", None, None))
    usual_seconds = time.monotonic() - start
    reference = read_objects(folder / "reference")
    cluster = Cluster(folder) if on_cluster else None
    rng = random.Random(seed)
    kills: dict[str, int] = {"computing process": 0, "worker": 0, "coordinator": 0}
    num_roots, num_present_at_kill = 0, []
    try:
        while sum(kills.values()) < num_kills:
            root = folder / f"root-{num_roots}"
            while sum(kills.values()) < num_kills:
                present = find_shards(root)
                address = cluster.address if cluster else None
                begun = time.monotonic()
                child = fork_run(images, model, root, len(present), address)
                # By turns at a random time, and a random moment after a random number of shards.
                seconds = rng.uniform(0.0, 1.3) * usual_seconds
                is_running = True
                if rng.random() < 0.5:
                    num_wanted = rng.randrange(len(present), NUM_IMAGES // SHARD_ROWS + 1)
                    is_running = wait_for_shards(child, root, num_wanted)
                    seconds = rng.uniform(0.0, 0.05) * usual_seconds
                if not (is_running and sleep_beside(child, seconds)):
                    # It finished before the kill. On a busy machine it may take longer next time.
                    if not present:
                        usual_seconds = time.monotonic() - begun
                    break
                if cluster is not None and sum(kills.values()) % 2 == 0:
                    victim = rng.choice(cluster.worker_pids())
                    os.kill(victim, signal.SIGKILL)
                    kills["worker"] += 1
                    assert not sleep_beside(child, 900), "a run that lost a worker does not end"
                    break
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills["coordinator" if cluster else "computing process"] += 1
                left = find_shards(root)
                num_present_at_kill.append(len(left))
                # With a cluster, tasks that were in flight may end and be done again.
                if cluster is None:
                    assert present.items() <= left.items(), "a finished shard was written again"
            wait_for(fork_run(images, model, root, None, None))
            collect_garbage(root, min_age_seconds=0)
            assert read_objects(root) == reference, f"{root} differs from the reference"
            assert verify_cache(root).problems == []
            num_roots += 1
    finally:
        if cluster is not None:
            cluster.close()
    return {
        "num_kills": sum(kills.values()),
        "killed": {name: number for name, number in kills.items() if number},
        "num_finished_roots": num_roots,
        "num_objects_compared": num_roots * len(reference),
        "kills_by_shards_present": {
            number: num_present_at_kill.count(number) for number in sorted({*num_present_at_kill})
        },
        "num_shards": NUM_IMAGES // SHARD_ROWS,
    }


class Cluster:
    """Two dask workers in a process of their own."""

    def __init__(self, folder: Path) -> None:
        script = folder / "cluster.py"
        script.write_text(_CLUSTER)
        self._process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def worker_pids(self) -> list[int]:
        """Processes of the workers that run now."""
        found: list[int] = []
        while not found:
            print(file=self._process.stdin, flush=True)
            assert self._process.stdout is not None
            found = [pid for pid in json.loads(self._process.stdout.readline()) if pid]
        return found

    def close(self) -> None:
        """End workers and scheduler."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)


def fork_run(
    images: list[Path], model: Path, root: Path, num_present: int | None, scheduler: str | None
) -> int:
    """Stage one in a child; returns its process id."""
    return fork(
        lambda: run_stage(images, model, root, num_present=num_present, scheduler=scheduler)
    )


def run_stage(
    images: list[Path],
    model: Path,
    root: Path,
    *,
    num_present: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Stage one; with `num_present`, checks that it counts so many shards as done at first."""
    import torch

    torch.set_num_threads(1)
    first: list[int] = []

    def check_first(done: int, *_: int) -> None:
        if not first and num_present is not None:
            # A task of a killed coordinator may have ended meanwhile, hence at least.
            assert done >= num_present * SHARD_ROWS, f"began at {done}, not {num_present} shards"
            assert scheduler or done == num_present * SHARD_ROWS
        first.append(done)

    precompute_depth(
        images,
        model,
        str(root),
        StageOneSettings(shard_rows=SHARD_ROWS, batch_size=2, workers=1, scheduler=scheduler),
        progress=check_first,
    )


def fork(action: Callable[[], None]) -> int:
    """Run something in a child that has everything imported already; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        action()
        code = 0
    except BaseException as error:
        print(f"child: {error!r}", file=sys.stderr)
    os._exit(code)


def wait_for(child: int) -> None:
    """Wait for a child that must succeed."""
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a run that was not killed failed"


def sleep_beside(child: int, seconds: float) -> bool:
    """Sleep until the time is over or the child has ended; whether it is still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, "a run that was not killed failed"
            return False
        time.sleep(0.005)
    return True


def wait_for_shards(child: int, root: Path, num_wanted: int) -> bool:
    """Wait until so many shards are there or the child has ended; whether it is still running."""
    while len(find_shards(root)) < num_wanted:
        if not sleep_beside(child, 0.02):
            return False
    return True


def find_shards(root: Path) -> dict[str, tuple[int, int]]:
    """Shards of maps that are there: path → (inode, time of writing)."""
    found = {}
    for path in root.glob("*/segments/*/maps/*/c/*/0/0"):
        status = path.stat()
        found[path.relative_to(root).as_posix()] = (status.st_ino, status.st_mtime_ns)
    return found


def read_objects(root: Path) -> dict[str, bytes]:
    """Bytes of every file; of seals only the list of objects, since they name host and device."""
    objects = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "sealed.json":
                data = json.dumps(json.loads(data)["objects"], sort_keys=True).encode()
            objects[path.relative_to(root).as_posix()] = data
    return objects


def write_images(folder: Path) -> list[Path]:
    """Pictures of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return sorted(folder.iterdir())


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar a run hides the errors
    import torch  # noqa: F401  (imported once, here, so that every fork has it)
    import transformers.models.auto.modeling_auto
    import transformers.models.dpt.modeling_dpt  # noqa: F401

    main()
