"""Losses of the FCOS detector."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from segtrain.precision import widen
from segtrain.process_group import joint_normaliser

Quality = Literal["centerness", "iou"]


def focal_loss_sum(logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Sigmoid focal loss (α 0.25, γ 2), summed.

    With x = logit for a negative and −logit for a positive: α_t · sigmoid(x)² · softplus(x).
    Source: arXiv 1708.02002.

    Args:
        logits_NK: classification logits.
        labels_N: class of each row, K = background.
    """
    return _FocalSum.apply(logits_NK, labels_N)


class _FocalSum(torch.autograd.Function):
    """Keeps the logits only: no target map, no intermediate maps."""

    @staticmethod
    def forward(ctx: object, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)  # type: ignore[attr-defined]
        rows = torch.nonzero(labels < logits.shape[1])[:, 0]
        positive = widen(logits[rows, labels[rows]])
        wide = widen(logits)
        total = 0.75 * (wide.sigmoid().square_() * F.softplus(wide)).sum()
        total = total - 0.75 * (positive.sigmoid().square() * F.softplus(positive)).sum()
        total = total + 0.25 * ((-positive).sigmoid().square() * F.softplus(-positive)).sum()
        return total

    @staticmethod
    def backward(ctx: object, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, labels = ctx.saved_tensors  # type: ignore[attr-defined]

        def slope(x: torch.Tensor) -> torch.Tensor:
            # d/dx [s² softplus(x)] = s² · (2 (1 − s) softplus(x) + s)
            s = x.sigmoid()
            result = F.softplus(x).mul_(1 - s).mul_(2).add_(s)
            return result.mul_(s).mul_(s)

        wide = widen(logits)
        gradient = slope(wide).mul_(0.75)
        rows = torch.nonzero(labels < logits.shape[1])[:, 0]
        gradient[rows, labels[rows]] = -0.25 * slope(-wide[rows, labels[rows]])
        return gradient.mul_(grads[0]).to(logits.dtype), None


def offset_ious(
    offsets_P4: torch.Tensor, targets_P4: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and GIoU of boxes given as distances from a common location.

    IoU = (intersection + 1) / (union + 1) in stride units; GIoU = IoU − (hull − union) / hull, as
    published checkpoints were trained.

    Returns:
        (P,) and (P,).
    """
    left, top, right, bottom = offsets_P4.unbind(1)
    target_left, target_top, target_right, target_bottom = targets_P4.unbind(1)
    area = (left + right) * (top + bottom)
    target_area = (target_left + target_right) * (target_top + target_bottom)
    width = torch.minimum(left, target_left) + torch.minimum(right, target_right)
    height = torch.minimum(top, target_top) + torch.minimum(bottom, target_bottom)
    hull = (torch.maximum(left, target_left) + torch.maximum(right, target_right)) * (
        torch.maximum(top, target_top) + torch.maximum(bottom, target_bottom)
    )
    intersection = width * height
    union = area + target_area - intersection
    iou = (intersection + 1.0) / (union + 1.0)
    return iou, iou - (hull - union) / hull


def fcos_losses(
    class_logits_NK: torch.Tensor,
    labels_N: torch.Tensor,
    offsets_P4: torch.Tensor,
    quality_logits_P: torch.Tensor,
    target_offsets_P4: torch.Tensor,
    target_centerness_P: torch.Tensor,
    *,
    quality: Quality,
) -> dict[str, torch.Tensor]:
    """Classification, box and box-quality losses.

    Source: FCOS, arXiv 1904.01355, with GIoU; the IoU branch as quality is the other reading that
    the paper's best rows use.

    Args:
        class_logits_NK: all locations in flattened order.
        labels_N: classes, K = background.
        offsets_P4: predicted l, t, r, b ≥ 0 of the positives, in strides.
        quality_logits_P: predicted quality of the positives.
        target_offsets_P4: targets in strides.
        target_centerness_P: in [0, 1].
        quality: what the quality branch predicts.

    Returns:
        loss_fcos_cls, loss_fcos_loc and loss_fcos_ctr or loss_fcos_iou; zeros stay connected.
    """
    num_positives = joint_normaliser(
        torch.tensor(float(len(offsets_P4)), device=class_logits_NK.device)
    )
    losses = {"loss_fcos_cls": focal_loss_sum(class_logits_NK, labels_N) / num_positives}
    iou, giou = offset_ious(widen(offsets_P4), target_offsets_P4)
    logits = widen(quality_logits_P)
    if quality == "centerness":
        weight = joint_normaliser(target_centerness_P.sum(), minimum=1e-6)
        losses["loss_fcos_loc"] = ((1 - giou) * target_centerness_P).sum() / weight
        target, name = target_centerness_P, "loss_fcos_ctr"
    else:
        losses["loss_fcos_loc"] = (1 - giou).sum() / num_positives
        target, name = iou.detach(), "loss_fcos_iou"
    # IoU with the +1 smoothing may exceed 1 by rounding only; BCE accepts it.
    losses[name] = (
        F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / num_positives
    )
    return losses
