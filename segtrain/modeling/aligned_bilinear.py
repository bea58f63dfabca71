"""Up-sampling whose samples stay aligned with the pixel grid of the input image."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def aligned_bilinear(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """Up-sample by a whole factor; row y samples the input at max(y − factor // 2, 0) / factor.

    A cell of a stride-s map stands for the pixel s // 2 of its block, which the usual
    half-pixel convention would move. Source: CondInst, arXiv 2003.05664.

    Args:
        maps: (N, C, H, W) float.
        factor: whole number ≥ 1.

    Returns:
        (N, C, factor·H, factor·W).

    Raises:
        ValueError: factor is below 1.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if factor == 1:
        return maps
    height, width = maps.shape[-2:]
    # Repeated borders on all four sides, then a cut: no copy of the large result.
    fine = F.interpolate(
        F.pad(maps, (1, 1, 1, 1), mode="replicate"),
        size=(factor * (height + 1) + 1, factor * (width + 1) + 1),
        mode="bilinear",
        align_corners=True,
    )
    first = factor - factor // 2
    return fine[:, :, first : first + factor * height, first : first + factor * width]


def aligned_bilinear_matrix(size: int, factor: int) -> torch.Tensor:
    """The same up-sampling along one axis as a (factor·size, size) matrix."""
    basis = torch.eye(size).reshape(1, size, size, 1)
    return aligned_bilinear(basis, factor)[0, :, :, 0].T.contiguous()
