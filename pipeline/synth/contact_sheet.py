"""One picture that shows many scenes: photo, masks and depth side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.synth.scene_rendering import Scene

OBJECT_COLOURS = np.array(
    [
        [230, 25, 75],
        [60, 180, 75],
        [255, 225, 25],
        [0, 130, 200],
        [245, 130, 48],
        [145, 30, 180],
        [70, 240, 240],
        [240, 50, 230],
        [210, 245, 60],
        [250, 190, 212],
    ],
    np.uint8,
)
_OUTLINE_CAMOUFLAGED = np.array([255, 0, 0], np.uint8)


def draw_contact_sheet(scenes: Sequence[Scene], *, columns: int = 2) -> npt.NDArray[np.uint8]:
    """Lay scenes out in a grid, each as image | masks | inverse depth.

    Camouflaged objects have a red outline in the mask panel.

    Args:
        scenes: at least one, all of one size.
        columns: scenes per row of the sheet.

    Returns:
        (rows·H, columns·3·W, 3) uint8 RGB, unused cells grey.

    Raises:
        ValueError: no scene was given.
    """
    if not scenes:
        raise ValueError("a contact sheet needs at least one scene")
    strips = [_draw_strip(scene) for scene in scenes]
    height, width = strips[0].shape[:2]
    num_rows = -(-len(strips) // columns)
    sheet = np.full((num_rows * height, columns * width, 3), 128, np.uint8)
    for index, strip in enumerate(strips):
        top, left = (index // columns) * height, (index % columns) * width
        sheet[top : top + height, left : left + width] = strip
    return sheet


def _draw_strip(scene: Scene) -> npt.NDArray[np.uint8]:
    overlay = (scene.image * 0.35).astype(np.uint8)
    for number, mask in enumerate(scene.masks):
        tint = OBJECT_COLOURS[number % len(OBJECT_COLOURS)]
        overlay[mask] = (0.4 * scene.image[mask] + 0.6 * tint).astype(np.uint8)
        if scene.appearances[number] == "camouflaged":
            overlay[_outline(mask)] = _OUTLINE_CAMOUFLAGED
    inverse = scene.inverse_depth
    grey = (255 * (inverse - inverse.min()) / max(float(np.ptp(inverse)), 1e-9)).astype(np.uint8)
    return np.concatenate([scene.image, overlay, np.repeat(grey[..., None], 3, axis=2)], axis=1)


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
