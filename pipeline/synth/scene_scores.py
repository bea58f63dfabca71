"""How good masks of generated objects are, and what the score must say for that."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.synth.object_paints import draw_pattern_tiles
from pipeline.synth.object_scenes import ObjectScene, list_objects
from pipeline.synth.scene_chunks import NUM_TILES, draw_usable
from segtrain.labeller import Labeller, ObjectMask, label_boxes
from segtrain.labeller.mask_scores import UNCALIBRATED, ScoreCalibration, fit_calibration


@dataclasses.dataclass(frozen=True)
class SceneMasks:
    """Masks of generated objects and what is known of them.

    Attributes:
        masks: as they were labelled.
        ious: with the true masks.
        filled: IoU of the filled boxes.
        camouflaged: whether an object looks like what is behind it.
    """

    masks: list[ObjectMask]
    ious: list[float]
    filled: list[float]
    camouflaged: list[bool]


def label_scenes(
    labeller: Labeller, seed: int, num_scenes: int, *, with_depth: bool = False
) -> SceneMasks:
    """Label all objects of new scenes."""
    rng = np.random.default_rng(seed)
    tiles = draw_pattern_tiles(rng, NUM_TILES)
    recent: list[ObjectScene] = []
    result = SceneMasks([], [], [], [])
    for _ in range(num_scenes):
        scene = draw_usable(rng, tiles, recent, camouflage=0.2)
        objects = list_objects(scene)
        boxes = np.array([item.box for item in objects], np.float32)
        depth = scene.inverse_depth if with_depth else None
        masks = label_boxes(labeller, scene.image, boxes, depth)
        for item, mask in zip(objects, masks, strict=True):
            truth, found = scene.owners == item.index, mask.whole()
            x1, y1, x2, y2 = item.box
            result.masks.append(mask)
            result.ious.append(float((found & truth).sum() / (found | truth).sum()))
            result.filled.append(float(truth.sum() / ((x2 - x1) * (y2 - y1))))
            result.camouflaged.append(bool(scene.camouflaged[item.index]))
    return result


def calibrate_on_scenes(labeller: Labeller, seed: int, num_scenes: int) -> ScoreCalibration:
    """The calibration of a network's scores, from generated objects without depth.

    Raises:
        ValueError: fewer than 50 masks.
    """
    uncalibrated = dataclasses.replace(labeller, calibration=UNCALIBRATED)
    seen = label_scenes(uncalibrated, seed, num_scenes)
    kept = [(m.signs, iou) for m, iou in zip(seen.masks, seen.ious, strict=True) if m.signs]
    return fit_calibration([signs for signs, _ in kept], [iou for _, iou in kept])
