"""Up-sampling whose samples stay aligned with the pixel grid of the input image."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from segtrain.precision import widen


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
    if torch.is_grad_enabled() and maps.requires_grad and not torch.onnx.is_in_onnx_export():
        finer: torch.Tensor = _AlignedBilinear.apply(maps, factor)
        return finer
    return _upsample(maps, factor)


class _AlignedBilinear(torch.autograd.Function):
    """Its gradient is a few strided sums: torch's own steps back took ten times as long."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, factor: int) -> torch.Tensor:
        ctx.factor = factor
        return _upsample(maps, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grad_outputs
        rows = _gather_samples(widen(grad), ctx.factor, dim=-2)
        return _gather_samples(rows, ctx.factor, dim=-1).to(grad.dtype), None


def _gather_samples(grad: torch.Tensor, factor: int, dim: int) -> torch.Tensor:
    """Add up along one axis what each cell gave to its samples.

    Sample factor·i + phase lies (phase − factor // 2) / factor cells after cell i, between it and
    a neighbour, or beyond the border, where the last cell stands in for the neighbour.
    """
    middle = factor // 2
    phases = grad.unflatten(dim, (grad.shape[dim] // factor, factor))
    total = phases.select(dim, middle).clone()
    for phase in range(factor):
        if phase == middle:  # its samples lie on the cells
            continue
        samples = phases.select(dim, phase)
        share = abs(phase - middle) / factor
        total.add_(samples, alpha=1 - share)
        if phase > middle:
            neighbours, givers, border = slice(1, None), slice(None, -1), slice(-1, None)
        else:
            neighbours, givers, border = slice(None, -1), slice(1, None), slice(None, 1)
        _along(total, dim, neighbours).add_(_along(samples, dim, givers), alpha=share)
        _along(total, dim, border).add_(_along(samples, dim, border), alpha=share)
    return total


def _along(values: torch.Tensor, dim: int, cells: slice) -> torch.Tensor:
    return values[..., cells] if dim == -1 else values[..., cells, :]


def _upsample(maps: torch.Tensor, factor: int) -> torch.Tensor:
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
    basis = torch.eye(size)[None, :, None]
    return aligned_bilinear(basis, factor)[0, :, 0].T.contiguous()
