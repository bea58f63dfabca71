"""BBTP: box tightness as multiple-instance learning. Source: arXiv 1904.07512 (NeurIPS 2019).

Every row and column that crosses a box holds a cell of its object, and the others hold none. What
the paper leaves open, or could not be checked against it, is marked **choice** in docs/method.md.

Shape legend: I mask instances, H×W the mask grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from segtrain.losses.supervision import MaskBatch, Supervision
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.neighbours import HALF_DIRECTIONS, pair_slices
from segtrain.process_group import joint_normaliser


class BBTP(Supervision):
    """Bags of sweeping lines and a smoothness term, in place of every other mask loss.

    Args:
        smoothness_weight: of the pairwise term.
        smooth_along_depth: smooth only between neighbours that pseudo depth links; not the paper's.
        **consistency: `consistency_weight` and `warmup_iterations`, see `Supervision`; nor these.
    """

    def __init__(
        self,
        *,
        smoothness_weight: float = 0.05,
        smooth_along_depth: bool = False,
        **consistency: Any,
    ) -> None:
        super().__init__(name="BBTP", **consistency)
        self.smoothness_weight = smoothness_weight
        self.smooth_along_depth = smooth_along_depth

    def needs_depth(self, *, predicts_depth: bool) -> bool:
        """To smooth along depth, or for consistency."""
        return self.smooth_along_depth or super().needs_depth(predicts_depth=predicts_depth)

    def losses(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """The unary and the pairwise term."""
        edges = masks.depth_edges[masks.image_indices] if self.smooth_along_depth else None
        return {
            "loss_bags": bag_loss(masks.mask_logits, masks.extents),
            "loss_smooth": self.smoothness_weight * smoothness_loss(masks.mask_logits, edges),
            **self.depth_terms(masks),
        }


def bag_loss(mask_logits_IHW: torch.Tensor, extents_I4: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the bags, whose probability is their largest cell's.

    Positive bags are the parts inside the box of the rows and columns that cross it, negative bags
    the whole rows and columns that do not: −log max m in a positive one, −log(1 − max m) in a
    negative one; mean over a mask's bags, then over the masks.

    Args:
        mask_logits_IHW: log-odds.
        extents_I4: filled cells of each box; a mask whose box fills none has no bags.

    Returns:
        Scalar; graph-connected zero without masks.
    """
    num_instances, height, width = mask_logits_IHW.shape
    start_r, stop_r, start_c, stop_c = extents_I4[:, :, None].unbind(1)
    is_filled_I = ((stop_r > start_r) & (stop_c > start_c))[:, 0]
    normaliser = joint_normaliser(is_filled_I.sum())
    if num_instances == 0:
        return mask_logits_IHW.sum() * 0.0
    inside = draw_extents(extents_I4, (height, width))
    in_box = mask_logits_IHW.masked_fill(~inside, -torch.inf)
    total = mask_logits_IHW.new_zeros(num_instances)
    for axis, size, start, stop in ((2, height, start_r, stop_r), (1, width, start_c, stop_c)):
        lines = torch.arange(size, device=mask_logits_IHW.device)
        crosses = (lines >= start) & (lines < stop) & is_filled_I[:, None]
        # Elsewhere the maximum is −∞, whose gradient would be NaN.
        largest = torch.where(crosses, in_box.amax(axis), 0.0)
        total = total + torch.where(
            crosses, F.softplus(-largest), F.softplus(mask_logits_IHW.amax(axis))
        ).sum(1)
    return (total * is_filled_I).sum() / (height + width) / normaliser


def smoothness_loss(
    mask_logits_IHW: torch.Tensor, edges_I8HW: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of (m_p − m_q)² over the neighbouring cells p, q of all masks, or over linked ones.

    Args:
        mask_logits_IHW: log-odds.
        edges_I8HW: which neighbours count; None means all.

    Returns:
        Scalar; graph-connected zero without masks.
    """
    masks = mask_logits_IHW.sigmoid()
    total, count = masks.sum() * 0.0, masks.new_zeros(())
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(masks.shape[1], masks.shape[2], direction)
        squares = (masks[:, *p] - masks[:, *q]).square()
        if edges_I8HW is None:
            count = count + squares.numel()
        else:
            linked = edges_I8HW[:, direction, *p]
            squares, count = squares * linked, count + linked.sum()
        total = total + squares.sum()
    return total / joint_normaliser(count)
