"""What cutting masks anew by depth is worth, for depth of several qualities.

    python -m benchmarks.depth_refinement --preset miniature --num-scenes 80 --seed 910003

Scenes of `pipeline data synth`, the labeller as it ships, given true boxes. One line for each kind
of depth: mean IoU with the true masks without and with the refinement, by how the object is
painted, and how many masks it takes, betters or worsens.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from benchmarks.labeller_iou import iou
from pipeline.resources import demo_dpt_path, labeller_path
from pipeline.synth import PRESETS, Scene, render_scene
from segtrain.labeller import Labeller, label_boxes, load_labeller

_SIZE = (256, 256)
_NOTICED = 0.05  # of IoU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="miniature", choices=list(PRESETS))
    parser.add_argument("--num-scenes", type=int, default=80)
    parser.add_argument("--seed", type=int, default=910003)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scenes = [
        render_scene(arguments.seed, _SIZE, index=index, settings=PRESETS[arguments.preset])
        for index in range(arguments.num_scenes)
    ]
    labeller = load_labeller(labeller_path())
    for kind in arguments.kinds:
        print(json.dumps({"depth": kind} | measure(labeller, scenes, KINDS[kind])), flush=True)


def measure(
    labeller: Labeller, scenes: list[Scene], read_depth: Callable[[Scene], np.ndarray]
) -> dict[str, Any]:
    """Both ways over all objects."""
    ious: dict[str, list[tuple[float, float]]] = defaultdict(list)
    num_refined = 0
    for scene in scenes:
        x, y, width, height = scene.boxes_xywh.astype(np.float32).T
        boxes, depth = np.stack([x, y, x + width, y + height], 1), read_depth(scene)
        both = [
            label_boxes(dataclasses.replace(labeller, refines=refines), scene.image, boxes, depth)
            for refines in (False, True)
        ]
        for truth, name, before, after in zip(scene.masks, scene.appearances, *both, strict=True):
            pair = (iou(before.whole(), truth), iou(after.whole(), truth))
            ious["all"].append(pair)
            ious[name].append(pair)
            num_refined += after.source == "refined"
    change = np.diff(np.array(ious["all"]), axis=1)[:, 0]
    without, refined = np.array(ious["all"]).T
    return {
        "objects": len(change),
        "without": {name: round(float(np.mean(v, 0)[0]), 4) for name, v in ious.items()},
        "with": {name: round(float(np.mean(v, 0)[1]), 4) for name, v in ious.items()},
        "at_least_75": [round(float((v >= 0.75).mean()), 4) for v in (without, refined)],
        "refined": round(num_refined / len(change), 3),
        "better": round(float((change > _NOTICED).mean()), 3),
        "worse": round(float((change < -_NOTICED).mean()), 3),
    }


def _noisy(scene: Scene, levels: float) -> np.ndarray:
    """True inverse depth with noise of so many of 255 levels of its range."""
    noise = np.random.default_rng(scene.image[0, 0].tolist()).normal(size=_SIZE)
    spread = levels / 255 * np.ptp(scene.inverse_depth)
    return (scene.inverse_depth + spread * noise).astype(np.float32)


def _coarse(scene: Scene, factor: int) -> np.ndarray:
    """As a sensor of fewer pixels has it, enlarged linearly."""
    small = cv2.resize(
        scene.inverse_depth, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA
    )
    return cv2.resize(small, _SIZE[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _shifted(scene: Scene, pixels: int) -> np.ndarray:
    """Beside the picture, as from a second camera that is not registered well."""
    shifted = np.roll(scene.inverse_depth, pixels, 1).astype(np.float32)
    shifted[:, :pixels] = shifted[:, pixels : pixels + 1]
    return shifted


def _predicted(scene: Scene) -> np.ndarray:
    """By the demo depth model."""
    processor, model = _load_demo_dpt(demo_dpt_path())
    inputs = processor(images=scene.image, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).predicted_depth[0].numpy()


@functools.cache
def _load_demo_dpt(folder: Path) -> tuple[Any, Any]:
    processor = AutoImageProcessor.from_pretrained(folder)
    return processor, AutoModelForDepthEstimation.from_pretrained(folder).eval()


KINDS: dict[str, Callable[[Scene], np.ndarray]] = {
    "true": functools.partial(_noisy, levels=0),
    "noise of 4 levels": functools.partial(_noisy, levels=4),
    "noise of 8 levels": functools.partial(_noisy, levels=8),
    "half the resolution": functools.partial(_coarse, factor=2),
    "1 pixel beside": functools.partial(_shifted, pixels=1),
    "2 pixels beside": functools.partial(_shifted, pixels=2),
    "predicted": _predicted,
}

if __name__ == "__main__":
    main()
