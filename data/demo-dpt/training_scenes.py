"""Scenes for the demo depth model, drawn without end by worker processes and kept on the device.

The way of a scene: `draw_scenes` renders blocks in its own process, `SceneStore` moves them to the
device that trains, `SceneStore.draw_batch` cuts, flips and tints them there. Seeds are neither
those of the demo and of the laboratory, nor those of the tests and of `evaluate_demo_dpt.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import queue
import sys
import threading
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.synth import PRESETS, draw_pattern_tiles, draw_scene, render_scene

TRAINING_SEED = 900001
SCENE_SIZE = 256
_BLOCK = 16
_PATIENCE_SECONDS = 120

Block = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures and what a network should say about them.

    Attributes:
        images: (B, 3, S, S) float32 in -1..1.
        inverse_depth: (B, S, S) float32, 0..1 within each picture, larger = nearer.
        farthest: (B, 1, 1) float32, inverse depth of the farthest point in that scale's unit:
            (inverse_depth + farthest) is proportional to 1 / metres.
        kind: (B, S, S) float32, 0 room, 1 object, 2 camouflaged object.
    """

    images: Tensor
    inverse_depth: Tensor
    farthest: Tensor
    kind: Tensor


def draw_scene_number(index: int, tiles: npt.NDArray[np.uint8]) -> Block:
    """One training scene: image (3, H, W), inverse depth (H, W) and `Batch.kind` (H, W).

    Of eight scenes four are the demo's, three the miniature's and one the labeller's. Every eighth
    is rendered larger and shrunk, as the image processor does with pictures of other sizes.
    """
    if index % 8 == 7:
        flat = draw_scene(np.random.default_rng([TRAINING_SEED, index, 1]), tiles, size=SCENE_SIZE)
        hidden = np.append(flat.camouflaged, False)[flat.owners]  # an owner of -1 reads the last
        kind = (flat.owners >= 0).astype(np.uint8) + hidden
        inverse_depth = 0.1 + 0.6 * flat.inverse_depth  # as if from 1.4 to 10 metres
        image = flat.image
    else:
        settings = PRESETS["rooms" if index % 8 < 4 else "miniature"]
        size = SCENE_SIZE * 3 // 2 if index % 16 in (0, 12) else SCENE_SIZE
        scene = render_scene(TRAINING_SEED, (size, size), index=index, settings=settings)
        kind = np.zeros((size, size), np.uint8)
        for mask, appearance in zip(scene.masks, scene.appearances, strict=True):
            kind[mask] = 2 if appearance == "camouflaged" else 1
        image, inverse_depth = scene.image, scene.inverse_depth
        if size != SCENE_SIZE:
            image = cv2.resize(image, (SCENE_SIZE, SCENE_SIZE), interpolation=cv2.INTER_AREA)
            nearest = ((np.arange(SCENE_SIZE) + 0.5) * size / SCENE_SIZE).astype(int)
            inverse_depth, kind = (part[np.ix_(nearest, nearest)] for part in (inverse_depth, kind))
    return image.transpose(2, 0, 1), inverse_depth.astype(np.float16), kind


def draw_scenes(blocks: Any, first: int, step: int) -> None:
    """Put blocks of scenes number first, first + step, … into a queue, until the process ends."""
    cv2.setNumThreads(0)
    tiles = draw_pattern_tiles(np.random.default_rng([TRAINING_SEED, first]), 100)
    index = first
    while True:
        scenes = [draw_scene_number(index + step * k, tiles) for k in range(_BLOCK)]
        index += step * _BLOCK
        blocks.put(tuple(np.stack(part) for part in zip(*scenes, strict=True)))


class SceneStore:
    """The scenes drawn so far, on the device that trains; full, it forgets the oldest.

    Start it before anything touches the GPU: its workers are forked where that is possible.
    """

    def __init__(self, *, workers: int, first: int = 0) -> None:
        """Start `workers` processes; `first` is the number of the first scene.

        Raises:
            ValueError: no workers.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}; expected at least 1 to draw scenes")
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._blocks: Any = context.Queue(maxsize=4 * workers)
        self._workers = [
            context.Process(
                target=draw_scenes, args=(self._blocks, first + k, workers), daemon=True
            )
            for k in range(workers)
        ]
        for worker in self._workers:
            worker.start()
        self._filling = threading.Thread(target=self._take_all, daemon=True)
        self._is_wanted = threading.Event()
        self._is_wanted.set()
        self.num_drawn = 0

    @property
    def num_workers(self) -> int:
        """How many still draw."""
        return sum(worker.is_alive() for worker in self._workers)

    def fill(self, device: torch.device, *, capacity: int, least: int) -> None:
        """Allocate on the device, wait for `least` scenes, and go on filling in the background."""
        self._capacity = max(_BLOCK, capacity - capacity % _BLOCK)
        shape = (self._capacity, SCENE_SIZE, SCENE_SIZE)
        self._images = torch.zeros((shape[0], 3, *shape[1:]), dtype=torch.uint8, device=device)
        self._inverse_depth = torch.zeros(shape, dtype=torch.float16, device=device)
        self._kind = torch.zeros(shape, dtype=torch.uint8, device=device)
        while self.num_drawn < min(least, self._capacity):
            self._take(_PATIENCE_SECONDS)
        self._filling.start()

    def draw_batch(self, batch_size: int, size: int, rng: torch.Generator) -> Batch:
        """Random scenes, each cut to another aspect or whole, flipped or not, in another light."""
        device = self._images.device
        num_held = min(self.num_drawn, self._capacity)
        picked = torch.randint(num_held, (batch_size,), device=device, generator=rng)
        grid = draw_windows(batch_size, size, rng)
        fine = grid if size == SCENE_SIZE else _refine(grid)
        images = functional.grid_sample(
            self._images[picked].float() / 255, fine, padding_mode="border", align_corners=False
        )
        if size != SCENE_SIZE:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        maps = torch.stack([self._inverse_depth[picked].float(), self._kind[picked].float()], 1)
        maps = functional.grid_sample(
            maps, grid, mode="nearest", padding_mode="border", align_corners=False
        )
        lowest, highest = maps[:, 0].amin((1, 2), True), maps[:, 0].amax((1, 2), True)
        span = (highest - lowest).clamp(min=1e-3)
        return Batch(
            images=change_light(images, rng) * 2 - 1,
            inverse_depth=(maps[:, 0] - lowest) / span,
            farthest=lowest / span,
            kind=maps[:, 1],
        )

    def stop(self) -> None:
        """End the workers, after the thread that listens to them."""
        self._is_wanted.clear()
        if self._filling.is_alive():
            self._filling.join()
        for worker in self._workers:
            worker.terminate()

    def _take(self, patience_seconds: float) -> None:
        try:
            block: Block = self._blocks.get(timeout=patience_seconds)
        except queue.Empty:
            raise RuntimeError(
                f"no scene in {patience_seconds} seconds; {self.num_workers} of "
                f"{len(self._workers)} workers run: see their messages above"
            ) from None
        first = self.num_drawn % self._capacity
        held = (self._images, self._inverse_depth, self._kind)
        for store, part in zip(held, block, strict=True):
            store[first : first + _BLOCK] = torch.from_numpy(part).to(store.device)
        self.num_drawn += _BLOCK

    def _take_all(self) -> None:
        while self._is_wanted.is_set():
            with contextlib.suppress(RuntimeError):  # training goes on with the scenes it has
                self._take(patience_seconds=1.0)


def draw_windows(batch_size: int, size: int, rng: torch.Generator) -> Tensor:
    """(B, S, S, 2) sampling grids of windows of 60 to 100 % of each side; half are whole."""
    uniform = torch.rand((batch_size, 6), device=rng.device, generator=rng)
    whole = uniform[:, :1] < 0.5
    sides = torch.where(whole, 1.0, 0.6 + 0.4 * uniform[:, 1:3])
    centre = (2 * uniform[:, 3:5] - 1) * (1 - sides)
    mirror = torch.where(uniform[:, 5] < 0.5, -1.0, 1.0)
    steps = (torch.arange(size, device=rng.device) + 0.5) * 2 / size - 1
    columns = (steps[None] * (sides[:, :1] * mirror[:, None]) + centre[:, :1])[:, None, :]
    rows = (steps[None] * sides[:, 1:] + centre[:, 1:])[:, :, None]
    return torch.stack(torch.broadcast_tensors(columns, rows), dim=3)


def _refine(grid: Tensor) -> Tensor:
    """The same windows on a grid of `SCENE_SIZE`; exact, for the grid is affine."""
    first, last = grid[:, 0, 0], grid[:, -1, -1]
    half_cell = (last - first)[:, None] / (grid.shape[1] - 1) / 2
    low, high = first[:, None] - half_cell, last[:, None] + half_cell
    steps = (torch.arange(SCENE_SIZE, device=grid.device)[None, :, None] + 0.5) / SCENE_SIZE
    axes = low + (high - low) * steps
    return torch.stack(torch.broadcast_tensors(axes[:, None, :, 0], axes[:, :, None, 1]), dim=3)


def change_light(images: Tensor, rng: torch.Generator) -> Tensor:
    """Exposure, tint, gamma and noise for most, another order of channels for some; in 0..1.

    Args:
        images: (B, 3, S, S) in 0..1.
        rng: on the same device.
    """
    batch_size = images.shape[0]
    uniform = torch.rand((batch_size, 7, 1, 1), device=images.device, generator=rng)
    touched = (uniform[:, :1] < 0.7).float()
    tint = (0.75 + 0.5 * uniform[:, 1:2]) * (0.9 + 0.2 * uniform[:, 2:5])
    lit = (images * tint).clamp(1e-4, 1) ** (0.8 + 0.45 * uniform[:, 5:6])
    lit = lit + 0.01 * torch.randn(images.shape, device=images.device, generator=rng)
    images = images + touched * (lit - images)
    order = torch.rand((batch_size, 3), device=images.device, generator=rng).argsort(1)
    shuffled = images.gather(1, order[:, :, None, None].expand_as(images))
    return torch.where(uniform[:, 6:] < 0.25, shuffled, images)
