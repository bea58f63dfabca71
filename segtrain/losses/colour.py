"""CIELAB colour and the colour similarity of neighbouring pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segtrain.mask_grid.neighbours import neighbour_similarity
from segtrain.mask_grid.validity import downsample_to_mask_grid, image_validity, sample_mask_grid

# sRGB primaries under D65, and the D65 white point of the 2° observer.
_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(rgb_255: torch.Tensor) -> torch.Tensor:
    """Convert sRGB to CIELAB (D65, 2° observer).

    Args:
        rgb_255: (..., 3, H, W) in 0..255.

    Returns:
        Same shape, float32: L in 0..100, a and b unscaled.
    """
    rgb = rgb_255.to(torch.float64) / 255.0
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64, device=rgb.device)
    white = torch.tensor(_WHITE, dtype=torch.float64, device=rgb.device)
    xyz = torch.einsum("ic,...chw->...ihw", matrix, linear) / white[:, None, None]
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = f.unbind(-3)
    return torch.stack((116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)), dim=-3).float()


def color_similarity(
    images_bgr: Sequence[torch.Tensor],
    original_heights: Sequence[int],
    padded_size: tuple[int, int],
    bottom_pixels_removed: int = 10,
) -> torch.Tensor:
    """Colour similarity of the eight neighbours on the mask grid.

    Source: BoxInst, arXiv 2012.02310. The block mean is truncated to whole values before the
    conversion, as published checkpoints were trained.

    Args:
        images_bgr: (3, H, W) each, 0..255, before normalisation and padding.
        original_heights: heights in pixels before resizing.
        padded_size: height and width of the padded batch, multiples of 4.
        bottom_pixels_removed: rows of the original image that take no part.

    Returns:
        (B, 8, padded height / 4, padded width / 4) in [0, 1].
    """
    masks = []
    for image, original_height in zip(images_bgr, original_heights, strict=True):
        height, width = image.shape[-2:]
        masks.append(
            sample_mask_grid(
                image_validity(
                    (height, width),
                    original_height,
                    padded_size,
                    bottom_pixels_removed,
                    image.device,
                )
            )
        )
    return neighbour_similarity(mask_grid_lab(images_bgr, padded_size), torch.stack(masks))


def mask_grid_lab(images_bgr: Sequence[torch.Tensor], padded_size: tuple[int, int]) -> torch.Tensor:
    """CIELAB of images on the mask grid, (B, 3, padded height / 4, padded width / 4).

    The block mean is truncated to whole values before the conversion.
    """
    return torch.stack(
        [
            rgb_to_lab(downsample_to_mask_grid(image, padded_size).flip(0).to(torch.uint8))
            for image in images_bgr
        ]
    )
