"""Boxes as the pixels they fill: at full resolution and on the mask grid.

A filled box is a rectangle, so four integers say all; bitmaps are drawn only where one is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def filled_pixels(boxes_I4: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """First and one-past-last filled pixel of each box.

    Rows int(y1) to int(y2 + 1) − 1 and columns int(x1) to int(x2 + 1) − 1, cut at the image.

    Args:
        boxes_I4: x1, y1, x2, y2 in pixels.
        image_size: height and width of the padded image.

    Returns:
        (I, 4) int64: row start, row stop, column start, column stop; stop ≥ start.
    """
    height, width = image_size
    x1, y1, x2, y2 = boxes_I4.unbind(1)
    rows_start = y1.long().clamp(0, height)
    rows_stop = (y2 + 1).long().clamp(0, height)
    columns_start = x1.long().clamp(0, width)
    columns_stop = (x2 + 1).long().clamp(0, width)
    return torch.stack(
        (
            rows_start,
            torch.maximum(rows_stop, rows_start),
            columns_start,
            torch.maximum(columns_stop, columns_start),
        ),
        dim=1,
    )


def mask_grid_extents(pixels_I4: torch.Tensor, stride: int = 4) -> torch.Tensor:
    """The same rectangles on the mask grid, whose cell i samples pixel stride // 2 + i · stride.

    Args:
        pixels_I4: as `filled_pixels` returns them.
        stride: pixels per cell.

    Returns:
        (I, 4) int64 cell ranges; a small box may fill no cell.
    """
    return (pixels_I4 - stride // 2 + stride - 1).div(stride, rounding_mode="floor").clamp(min=0)


def draw_extents(extents_I4: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Draw rectangles as bitmaps.

    Returns:
        (I, height, width) bool.
    """
    rows = torch.arange(size[0], device=extents_I4.device)
    columns = torch.arange(size[1], device=extents_I4.device)
    start_r, stop_r, start_c, stop_c = extents_I4[:, :, None].unbind(1)
    in_rows = (rows >= start_r) & (rows < stop_r)
    in_columns = (columns >= start_c) & (columns < stop_c)
    return in_rows[:, :, None] & in_columns[:, None, :]


def filled_centres(pixels_I4: torch.Tensor, boxes_I4: torch.Tensor) -> torch.Tensor:
    """Centroids of the filled pixels, around which BoxInst samples its locations.

    A box that fills no pixel keeps its own centre.

    Returns:
        (I, 2) float x, y.
    """
    rows_start, rows_stop, columns_start, columns_stop = pixels_I4.to(boxes_I4.dtype).unbind(1)
    centres = torch.stack(
        ((columns_start + columns_stop - 1) / 2, (rows_start + rows_stop - 1) / 2), dim=1
    )
    is_filled = (rows_stop > rows_start) & (columns_stop > columns_start)
    box_centres = (boxes_I4[:, :2] + boxes_I4[:, 2:]) / 2
    return torch.where(is_filled[:, None], centres, box_centres)


@torch.no_grad()
def fill_ratio(mask_logits_IHW: torch.Tensor, extents_I4: torch.Tensor) -> torch.Tensor:
    """Mean share of a box that its mask fills; 1 means that masks have turned into boxes."""
    areas = (extents_I4[:, 1] - extents_I4[:, 0]) * (extents_I4[:, 3] - extents_I4[:, 2])
    total = mask_logits_IHW.new_zeros(())
    for logits, (r0, r1, c0, c1) in zip(mask_logits_IHW, extents_I4.tolist(), strict=True):
        if r1 > r0 and c1 > c0:
            total += (logits[r0:r1, c0:c1] > 0).float().mean()
    return total / (areas > 0).sum().clamp(min=1)
