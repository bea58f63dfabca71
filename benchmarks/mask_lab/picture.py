"""A picture of the gain: scenes, their depth, and the masks that two rows learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.mask_lab.crops import centred_views
from benchmarks.mask_lab.experiment import TEST_MARGINS, mask_iou, predict, true_mask_in_box
from benchmarks.mask_lab.network import Decoder, fill_bank
from benchmarks.mask_lab.scenes import Scenes
from benchmarks.mask_lab.supervision import ROWS
from pipeline.synth.contact_sheet import OBJECT_COLOURS

_GAP = 4
_HEADER = 24


def draw_gain(
    scenes: Scenes,
    networks: dict[str, Path],
    titles: dict[str, str],
    *,
    quantiles: Sequence[float] = (0.5, 0.7, 0.85, 0.95),
) -> npt.NDArray[np.uint8]:
    """Draw image | inverse depth | masks of each network | truth for a few scenes.

    Scenes are those at the given quantiles of the last network's gain over the first one, the mean
    IoU of a scene's objects, so that nobody has to believe that they were not picked.

    Args:
        scenes: held-out scenes.
        networks: row → weights, in the order of the columns.
        titles: row → heading of its column.
        quantiles: of the gain, one scene each.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    banks = [fill_bank(scenes, centred_views(scenes, margin)) for margin in TEST_MARGINS]
    masks: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for name, weights in networks.items():
        decoder = Decoder()
        decoder.load_state_dict(torch.load(weights, weights_only=True))
        masks[name] = predict(decoder.eval(), banks, scenes, ROWS[name])
    truth = [true_mask_in_box(scenes, item) for item in scenes.objects]
    first, *_, last = masks
    gains = np.array(
        [
            mask_iou(b, t) - mask_iou(a, t)
            for a, b, t in zip(masks[first], masks[last], truth, strict=True)
        ]
    )
    by_scene = [
        gains[scenes.objects[:, 0] == scene].mean() for scene in range(len(scenes.images_SHW3))
    ]
    order = np.argsort(by_scene)
    chosen = [int(order[round(quantile * (len(order) - 1))]) for quantile in quantiles]
    columns = [
        ("image", [scenes.images_SHW3[scene] for scene in chosen]),
        ("sensed depth", [_paint_depth(scenes.sensed_SHW[scene]) for scene in chosen]),
        *[(titles[name], [_overlay(scenes, masks[name], s) for s in chosen]) for name in masks],
        ("truth", [_overlay(scenes, truth, scene) for scene in chosen]),
    ]
    return np.concatenate(
        [_stack_column(title, panels, is_first=not n) for n, (title, panels) in enumerate(columns)],
        axis=1,
    )


def _overlay(
    scenes: Scenes, masks: list[npt.NDArray[np.bool_]], scene: int
) -> npt.NDArray[np.uint8]:
    image = scenes.images_SHW3[scene]
    shown = (image * 0.35).astype(np.uint8)
    for index in np.flatnonzero(scenes.objects[:, 0] == scene):
        _, number, x1, y1, x2, y2, _ = scenes.objects[index].tolist()
        colour = OBJECT_COLOURS[number % len(OBJECT_COLOURS)]
        part = shown[y1:y2, x1:x2]
        pixels = image[y1:y2, x1:x2][masks[index]]
        part[masks[index]] = (0.4 * pixels + 0.6 * colour).astype(np.uint8)
        cv2.rectangle(shown, (x1, y1), (x2 - 1, y2 - 1), tuple(int(c) for c in colour), 1)
    return shown


def _paint_depth(inverse_depth_255: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    # The square root shows the steps between far things, as an eye sees them.
    levels = (np.sqrt(np.clip(inverse_depth_255, 0, 255) / 255) * 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def _stack_column(
    title: str, panels: Sequence[npt.NDArray[np.uint8]], *, is_first: bool
) -> npt.NDArray[np.uint8]:
    width = panels[0].shape[1]
    header = np.full((_HEADER, width, 3), 255, np.uint8)
    cv2.putText(
        header, title, (2, _HEADER - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA
    )
    gap = np.full((_GAP, width, 3), 255, np.uint8)
    parts = [header]
    for panel in panels:
        parts += [panel, gap]
    column = np.concatenate(parts[:-1])
    if is_first:
        return column
    return np.concatenate([np.full((len(column), _GAP, 3), 255, np.uint8), column], axis=1)
