"""Scenes of the miniature with every depth map that a row may use, kept on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from benchmarks.mask_lab.splits import NUM_SCENES, SEEDS
from pipeline.resources import demo_dpt_path
from pipeline.synth import APPEARANCES, PRESETS, render_scene

SCENE_SIZE = 256
SOURCES = ("sensed", "predicted", "noise_2", "noise_4", "noise_8", "inverted", "other_scene")
"""True depth; the demo model's; true depth with noise of 2, 4 or 8 levels of 255; with farther as
larger; and the true depth of another scene, which is the control of everything that depth does."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Scenes:
    """Scenes and their objects.

    Attributes:
        images_SHW3: uint8 RGB.
        sensed_SHW: float32 true inverse depth, 0..255 within each scene, larger = nearer.
        predicted_SHW: the same of the demo depth model.
        owners_SHW: uint8, 0 for background, else number of the scene's object + 1.
        objects: (N, 7) int: scene, object, x1, y1, x2, y2 (ends exclusive), index of appearance.
    """

    images_SHW3: npt.NDArray[np.uint8]
    sensed_SHW: npt.NDArray[np.float32]
    predicted_SHW: npt.NDArray[np.float32]
    owners_SHW: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.int64]

    def inverse_depth_255(self, source: str) -> npt.NDArray[np.float32]:
        """(S, H, W) of one of `SOURCES`.

        Noise has the grain of two pixels, as a sensor's has after its own smoothing.

        Raises:
            ValueError: an unknown source.
        """
        if source == "sensed":
            return self.sensed_SHW
        if source == "predicted":
            return self.predicted_SHW
        if source == "inverted":
            return 255 - self.sensed_SHW
        if source == "other_scene":
            return np.roll(self.sensed_SHW, 1, axis=0)
        if source in SOURCES:
            rng = np.random.default_rng(0)
            size = self.sensed_SHW.shape[1:]
            coarse = rng.normal(
                0, int(source.split("_")[1]), (len(self.sensed_SHW), size[0] // 2, size[1] // 2)
            ).astype(np.float32)
            fine = np.stack([cv2.resize(each, size[::-1]) for each in coarse])
            return np.asarray(self.sensed_SHW + fine, np.float32)
        raise ValueError(f"depth source {source!r} is unknown; expected one of {SOURCES}")


def load_scenes(folder: Path, split: str, num_scenes: int | None = None) -> Scenes:
    """Scenes of a split; rendered, and their depth predicted, on the first call.

    Args:
        folder: where they are kept.
        split: a key of `SEEDS`.
        num_scenes: how many; None for `NUM_SCENES`.
    """
    wanted = num_scenes or NUM_SCENES[split]
    path = folder / f"{split}-{wanted}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished-{split}.npz"
        np.savez(unfinished, **dataclasses.asdict(_render(SEEDS[split], wanted)))
        unfinished.replace(path)
    with np.load(path) as arrays:
        return Scenes(**arrays)


def scale_to_255(inverse_depth: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Scale a map so that its smallest value is 0 and its largest 255."""
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    return np.asarray((inverse_depth - low) / max(high - low, 1e-9) * 255, np.float32)


def _render(seed: int, num_scenes: int) -> Scenes:
    processor = AutoImageProcessor.from_pretrained(demo_dpt_path())
    model = AutoModelForDepthEstimation.from_pretrained(demo_dpt_path()).eval()
    size = (SCENE_SIZE, SCENE_SIZE)
    images, sensed, predicted, owners, objects = [], [], [], [], []
    for index in range(num_scenes):
        scene = render_scene(seed, size, index=index, settings=PRESETS["miniature"])
        with torch.inference_mode():
            output = model(**processor(images=scene.image, return_tensors="pt")).predicted_depth
        owner = np.zeros(size, np.uint8)
        for number, (mask, box) in enumerate(zip(scene.masks, scene.boxes_xywh, strict=True)):
            owner[mask] = number + 1
            x, y, width, height = (int(value) for value in box)
            appearance = APPEARANCES.index(scene.appearances[number])
            objects.append((index, number, x, y, x + width, y + height, appearance))
        images.append(scene.image)
        sensed.append(scale_to_255(scene.inverse_depth))
        predicted.append(cv2.resize(scale_to_255(output[0].numpy()), size))
        owners.append(owner)
    return Scenes(
        images_SHW3=np.stack(images),
        sensed_SHW=np.stack(sensed),
        predicted_SHW=np.stack(predicted),
        owners_SHW=np.stack(owners),
        objects=np.array(objects),
    )
