"""The mask grid of an image: which cells are real image, and what they hold."""

from __future__ import annotations

import torch
from torch.nn import functional as F

MASK_STRIDE = 4


def image_validity(
    image_size: tuple[int, int],
    original_height: int,
    padded_size: tuple[int, int],
    bottom_pixels_removed: int = 10,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Mark the real image inside its padding, without its lowest rows.

    Many COCO photos carry a border there; `bottom_pixels_removed` counts pixels of the original.

    Returns:
        (padded height, padded width) float, 0 or 1.
    """
    height, width = image_size
    mask = torch.zeros(padded_size, device=device)
    removed = int(bottom_pixels_removed * height / original_height)
    mask[: max(height - removed, 0), :width] = 1.0
    return mask


def sample_mask_grid(maps: torch.Tensor) -> torch.Tensor:
    """The pixel that each cell stands for, (..., H / 4, W / 4) of (..., H, W)."""
    return maps[..., MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE]


def downsample_to_mask_grid(image_CHW: torch.Tensor, padded_size: tuple[int, int]) -> torch.Tensor:
    """Mean of every 4×4 block of an image or depth map, zero-padded at the right and bottom.

    Returns:
        (C, padded height / 4, padded width / 4) float, in the units of the input.
    """
    height, width = image_CHW.shape[-2:]
    padded = F.pad(image_CHW.float(), (0, padded_size[1] - width, 0, padded_size[0] - height))
    return F.avg_pool2d(padded[None], MASK_STRIDE)[0]
