"""The eight dilated neighbours of a pixel, and similarities of what lies there.

Shape legend: B images, C channels, H×W the mask grid (stride 4 of the padded input), 8 neighbours.
"""

from __future__ import annotations

import torch

DILATION = 2
# (dy, dx) in the order of the recorded maps; neighbour 7 − k is opposite to neighbour k.
NEIGHBOUR_OFFSETS: tuple[tuple[int, int], ...] = tuple(
    (dy * DILATION, dx * DILATION) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
)
# Every unordered pair of neighbours once: the four offsets that point right or down.
HALF_DIRECTIONS = (4, 5, 6, 7)


def pair_slices(
    height: int, width: int, direction: int, dilation: int = DILATION
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the pixels p and of their neighbours p + offset where both are inside the map."""
    dy, dx = (step * dilation // DILATION for step in NEIGHBOUR_OFFSETS[direction])

    def cut(size: int, step: int) -> tuple[slice, slice]:
        start = min(max(-step, 0), size)
        stop = max(min(size, size - step), start)
        return slice(start, stop), slice(start + step, max(stop + step, start + step))

    rows_p, rows_q = cut(height, dy)
    columns_p, columns_q = cut(width, dx)
    return (rows_p, columns_p), (rows_q, columns_q)


def neighbour_similarity(features_BCHW: torch.Tensor, mask_BHW: torch.Tensor) -> torch.Tensor:
    """Similarity exp(−‖f_p − f_q‖ / 2) of every pixel to its eight neighbours.

    Only the neighbour's mask counts, not the centre's. Source: BoxInst, arXiv 2012.02310, for
    colour; Eq. 3 of arXiv 2403.01214 for depth on the 0..255 scale.

    Args:
        features_BCHW: CIELAB colour or depth in 0..255.
        mask_BHW: 1 where a pixel may be a neighbour.

    Returns:
        (B, 8, H, W) in [0, 1]; 0 where the neighbour is masked or outside the map.
    """
    num_images, _, height, width = features_BCHW.shape
    similarity = features_BCHW.new_zeros(num_images, 8, height, width)
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(height, width, direction)
        difference = features_BCHW[:, :, *p] - features_BCHW[:, :, *q]
        value = torch.exp(-0.5 * torch.linalg.vector_norm(difference, dim=1))
        similarity[:, direction, *p] = value * mask_BHW[:, *q]
        similarity[:, 7 - direction, *q] = value * mask_BHW[:, *p]
    return similarity
