"""Crops around boxes: windows with margins, pixels in, probabilities back.

Coordinates are continuous: pixel i of a photo covers [i, i + 1). A crop is its window stretched to
a square. Shape legend: N boxes, S crop side, H×W photo.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

# A window is never smaller than this many pixels, so that tiny boxes keep some surroundings.
_LEAST_MARGIN_PIXELS = 1.0
_MOST_SAMPLES = 4


def draw_margins(
    rng: np.random.Generator, num_boxes: int, low: float, high: float
) -> npt.NDArray[np.float32]:
    """Margins as shares of the box for left, top, right and bottom, each at random.

    With a constant margin a network learns where the box is and fills it.

    Returns:
        (N, 4) float32 in [low, high).
    """
    return rng.uniform(low, high, (num_boxes, 4)).astype(np.float32)


def clip_boxes(boxes_N4: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Boxes cut to the photo, (N, 4); one that lies outside has no area."""
    limits = boxes_N4.new_tensor([width, height, width, height])
    return torch.minimum(boxes_N4.clamp(min=0), limits)


def crop_windows(boxes_N4: torch.Tensor, margins_N4: torch.Tensor) -> torch.Tensor:
    """Boxes widened by their margins; a window may reach outside the photo.

    Args:
        boxes_N4: x1, y1, x2, y2 in pixels.
        margins_N4: left, top, right, bottom as shares of the box's side.

    Returns:
        (N, 4) x1, y1, x2, y2.
    """
    sides_N4 = (boxes_N4[:, 2:] - boxes_N4[:, :2]).repeat(1, 2)
    grow_N4 = (margins_N4 * sides_N4).clamp(min=_LEAST_MARGIN_PIXELS)
    return boxes_N4 + grow_N4 * grow_N4.new_tensor([-1.0, -1.0, 1.0, 1.0])


def cut_crops(image_CHW: torch.Tensor, windows_N4: torch.Tensor, size: int) -> torch.Tensor:
    """Resample windows of one photo, averaging where it shrinks; 0 outside the photo.

    Args:
        image_CHW: float.
        windows_N4: x1, y1, x2, y2 in pixels.
        size: S.

    Returns:
        (N, C, S, S).
    """
    pixels_per_cell_N = (windows_N4[:, 2:] - windows_N4[:, :2]).amax(1) / size
    samples_N = pixels_per_cell_N.ceil().clamp(1, _MOST_SAMPLES).long()
    crops = image_CHW.new_empty(len(windows_N4), len(image_CHW), size, size)
    for samples in samples_N.unique().tolist():
        chosen = samples_N == samples
        rois = F.pad(windows_N4[chosen], (1, 0))
        crops[chosen] = roi_align(image_CHW[None], rois, size, 1.0, samples, aligned=True)
    return crops


def boxes_in_crops(boxes_N4: torch.Tensor, windows_N4: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes in the pixels of their crops, (N, 4)."""
    origin_N4 = windows_N4[:, :2].repeat(1, 2)
    scale_N4 = (size / (windows_N4[:, 2:] - windows_N4[:, :2])).repeat(1, 2)
    return (boxes_N4 - origin_N4) * scale_N4


def cell_extents(boxes_N4: torch.Tensor, size: int) -> torch.Tensor:
    """Cells that a box fills: row start, stop, column start, stop; at least one each.

    Returns:
        (N, 4) int64.
    """
    x1, y1, x2, y2 = boxes_N4.round().long().unbind(1)
    x1, y1 = x1.clamp(0, size - 1), y1.clamp(0, size - 1)
    x2, y2 = torch.maximum(x2.clamp(max=size), x1 + 1), torch.maximum(y2.clamp(max=size), y1 + 1)
    return torch.stack((y1, y2, x1, x2), 1)


def box_coverage(boxes_N4: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Share of every pixel that its box covers, (N, height, width)."""
    x1, y1, x2, y2 = boxes_N4[:, :, None].unbind(1)
    columns = torch.arange(width, device=boxes_N4.device)
    rows = torch.arange(height, device=boxes_N4.device)
    across = (torch.minimum(columns + 1, x2) - torch.maximum(columns, x1)).clamp(0, 1)
    down = (torch.minimum(rows + 1, y2) - torch.maximum(rows, y1)).clamp(0, 1)
    return down[:, :, None] * across[:, None, :]


def paste_probabilities(
    probabilities_hw: torch.Tensor,
    window_4: torch.Tensor,
    pixels: tuple[int, int, int, int],
    step: int = 1,
) -> torch.Tensor:
    """Probability at the centres of photo pixels, or of blocks of them.

    Args:
        probabilities_hw: over the window.
        window_4: x1, y1, x2, y2 of the window in the photo.
        pixels: row start, row stop, column start, column stop in the photo.
        step: side of a block; the last ones may reach beyond `pixels`.

    Returns:
        (rows, columns), bilinear, edge values outside the window.
    """
    r0, r1, c0, c1 = pixels
    x1, y1, x2, y2 = window_4.tolist()
    rows = (torch.arange(r0, r1, step) + step / 2 - y1) * (2 / (y2 - y1)) - 1
    columns = (torch.arange(c0, c1, step) + step / 2 - x1) * (2 / (x2 - x1)) - 1
    grid = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1)
    return F.grid_sample(
        probabilities_hw[None, None],
        grid[None].to(probabilities_hw.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0, 0]
