"""The depth layer's own loss."""

from __future__ import annotations

from typing import Any, Literal

import torch

from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.process_group import joint_normaliser

DepthPooling = Literal["pixel", "instance"]


def depth_loss(
    depth_IHW: torch.Tensor,
    inverse_depth_255_BHW: torch.Tensor,
    image_indices_I: torch.Tensor,
    extents_I4: torch.Tensor,
    pooling: DepthPooling = "pixel",
) -> torch.Tensor:
    """Mean squared error of the predicted depth inside the boxes.

    Pooled over all pixels, Σ b · (depth − d / 255)² / Σ b (Eq. 2 of arXiv 2403.01214), or over the
    means of the instances, so that a small object counts as much as a large one.

    Args:
        depth_IHW: predicted inverse depth in [0, 1] on the mask grid.
        inverse_depth_255_BHW: pseudo depth in 0..255 on the mask grid.
        image_indices_I: image of each instance.
        extents_I4: filled cells of each instance's box.
        pooling: "pixel" or "instance".

    Returns:
        Scalar; graph-connected zero when no cell is filled.
    """
    sizes_I = (extents_I4[:, 1] - extents_I4[:, 0]) * (extents_I4[:, 3] - extents_I4[:, 2])
    is_pixelwise = pooling == "pixel"
    weights_I = torch.ones_like(sizes_I, dtype=torch.float32)
    total = _SquaredErrorInBoxes.apply(
        depth_IHW,
        inverse_depth_255_BHW,
        image_indices_I,
        extents_I4,
        weights_I if is_pixelwise else weights_I / sizes_I.clamp(min=1),
    )
    return total / joint_normaliser(sizes_I.sum() if is_pixelwise else (sizes_I > 0).sum())


class _SquaredErrorInBoxes(torch.autograd.Function):
    """Σ w b · (depth − d / 255)², visiting only the boxes; keeps no map of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        depth_IHW: torch.Tensor,
        target_BHW: torch.Tensor,
        image_indices_I: torch.Tensor,
        extents_I4: torch.Tensor,
        weights_I: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(depth_IHW, target_BHW, image_indices_I, extents_I4, weights_I)
        total = torch.zeros((), dtype=torch.float64, device=depth_IHW.device)
        for _, error, weight in _errors(*ctx.to_save):
            total += (error.square() * weight).sum()
        return total.to(torch.float64 if depth_IHW.dtype == torch.float64 else torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grad_outputs
        depth_IHW = ctx.saved_tensors[0]
        gradient = torch.zeros_like(depth_IHW)
        for cells, error, weight in _errors(*ctx.saved_tensors):
            gradient[cells] = (2.0 * grad * error * weight).to(gradient.dtype)
        return gradient, None, None, None, None


def _errors(
    depth_IHW: torch.Tensor,
    target_BHW: torch.Tensor,
    image_indices_I: torch.Tensor,
    extents_I4: torch.Tensor,
    weights_I: torch.Tensor,
) -> Any:
    """Yield (index, depth − d / 255 there, weight); everything at once off the CPU."""
    if depth_IHW.device.type != "cpu":
        if len(depth_IHW):
            error = depth_IHW - target_BHW[image_indices_I] / 255.0
            inside = draw_extents(extents_I4, tuple(depth_IHW.shape[1:]))
            yield slice(None), error * inside, weights_I[:, None, None]
        return
    images, weights = image_indices_I.tolist(), weights_I.tolist()
    for instance, (r0, r1, c0, c1) in enumerate(extents_I4.tolist()):
        if r1 > r0 and c1 > c0:
            cells = (instance, slice(r0, r1), slice(c0, c1))
            error = depth_IHW[cells] - target_BHW[images[instance], r0:r1, c0:c1] / 255.0
            yield cells, error, weights[instance]
