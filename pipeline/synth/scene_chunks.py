"""Scenes drawn by processes into files, for training: `python -m pipeline.synth.scene_chunks`.

A chunk is an `.npz` of scenes of one size; `scene_crops.ScenePool` reads it. Nothing here imports
torch, so that a drawer starts at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depthcache.storage.durable_files import replaced_file
from pipeline.synth.object_paints import draw_pattern_tiles
from pipeline.synth.object_scenes import ObjectScene, draw_scene, list_objects

NUM_TILES = 400
NOBODY = 255
SCENES_PER_CHUNK = 24
_MOST_OBJECTS = 24
_MOST_WAITING_CHUNKS = 12


@contextmanager
def scene_drawers(
    folder: Path, *, seed: int, num_processes: int, most_chunks: int | None = None
) -> Iterator[None]:
    """Let processes fill a folder with chunks of scenes until the block ends.

    Args:
        folder: where; made if absent.
        seed: of everything drawn.
        num_processes: at least 1.
        most_chunks: each process stops after so many; None waits while nobody takes what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-m",
        "pipeline.synth.scene_chunks",
        str(folder.resolve()),
        str(seed),
    ]
    drawers = [
        subprocess.Popen([*command, str(k), str(most_chunks or 0)], cwd=root)  # noqa: S603 - ours
        for k in range(num_processes)
    ]
    try:
        yield
    finally:
        for drawer in drawers:
            drawer.terminate()
            drawer.wait()


def draw_chunks(folder: Path, seed: int, drawer: int, most_chunks: int | None) -> None:
    """Draw scenes for ever, or `most_chunks` chunks of them."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, drawer))
    tiles = draw_pattern_tiles(rng, NUM_TILES)
    recent: list[ObjectScene] = []
    number = 0
    while most_chunks is None or number < most_chunks:
        if most_chunks is None and len(list(folder.glob("*.npz"))) > _MOST_WAITING_CHUNKS:
            time.sleep(0.2)
            continue
        scenes = [draw_usable(rng, tiles, recent) for _ in range(SCENES_PER_CHUNK)]
        path = folder / f"{number:06}-{drawer:02}.npz"
        with replaced_file(path, is_durable=False) as file:
            np.savez(file, allow_pickle=False, **pack_scenes(rng, scenes))
        number += 1


def draw_usable(
    rng: np.random.Generator,
    tiles: npt.NDArray[np.uint8],
    recent: list[ObjectScene],
    *,
    camouflage: float = 0.08,
) -> ObjectScene:
    """A scene with an object to ask for.

    Args:
        rng: source of everything.
        tiles: of `draw_pattern_tiles`.
        recent: scenes that may stand behind; the new one is added and old ones go.
        camouflage: share of objects that are painted like what is behind them.
    """
    while True:
        backdrop = recent[int(rng.integers(len(recent)))] if recent else None
        scene = draw_scene(rng, tiles, camouflage=camouflage, backdrop=backdrop)
        if list_objects(scene):
            recent.append(scene)
            del recent[:-16]
            return scene


def pack_scenes(rng: np.random.Generator, scenes: list[ObjectScene]) -> dict[str, npt.NDArray[Any]]:
    """Scenes of one size as arrays, with depth as models and sensors would give it."""
    boxes = np.zeros((len(scenes), _MOST_OBJECTS, 4), np.float32)
    owners = np.zeros((len(scenes), _MOST_OBJECTS), np.uint8)
    counts = np.zeros(len(scenes), np.int64)
    for p, scene in enumerate(scenes):
        objects = list_objects(scene)[:_MOST_OBJECTS]
        counts[p] = len(objects)
        boxes[p, : len(objects)] = [item.box for item in objects]
        owners[p, : len(objects)] = [item.index for item in objects]
    return {
        "images": np.stack([scene.image for scene in scenes]),
        "maps": np.stack([np.where(s.owners < 0, NOBODY, s.owners) for s in scenes]).astype(
            np.uint8
        ),
        "depths": np.stack([_disturb_depth(rng, s.inverse_depth) for s in scenes]).astype(
            np.float16
        ),
        "boxes": boxes,
        "owners": owners,
        "counts": counts,
    }


def _disturb_depth(
    rng: np.random.Generator, inverse_depth: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Depth as models and sensors give it: smooth, warped, noisy, of another scale."""
    depth = np.asarray(inverse_depth, np.float32)
    size = depth.shape[0]
    if rng.uniform() < 0.5:
        depth = cv2.GaussianBlur(depth, (0, 0), float(np.exp(rng.uniform(-0.7, 1.6))))
    if rng.uniform() < 0.4:
        bend = cv2.resize(rng.standard_normal((8, 8), np.float32), (size, size))
        depth = depth + np.float32(rng.uniform(0, 0.06)) * bend
    if rng.uniform() < 0.3:
        depth = depth + np.float32(rng.uniform(0, 0.03)) * rng.standard_normal(
            depth.shape, np.float32
        )
    if rng.uniform() < 0.5:
        depth = np.clip(depth, 0, 2) ** np.float32(np.exp(rng.normal(0, 0.4)))
    return depth.astype(np.float32)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("drawer", type=int, help="number of this process")
    parser.add_argument("most_chunks", type=int, help="0: for ever")
    arguments = parser.parse_args()
    draw_chunks(arguments.folder, arguments.seed, arguments.drawer, arguments.most_chunks or None)


if __name__ == "__main__":
    _main()
