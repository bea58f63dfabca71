"""Pairwise terms: neighbouring pixels that look alike, or are equally near, share a label.

For logits a and b of two pixels, −log P(same label) = softplus(a) + softplus(b) − softplus(a + b).
The value is symmetric, so four of the eight directions carry all the work, with the weights of both
directions added. Colour and depth edges weigh the same values, so both terms come from one pass.
Edges are kept once per image; instances visit only the cells of their box.

Shape legend: I instances, B images, T terms, H×W the mask grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.neighbours import DILATION, HALF_DIRECTIONS, pair_slices
from segtrain.process_group import joint_normaliser

# Whole-map processing looks at this many cells at a time, which bounds its memory: 32 instances of
# a photo at short side 800, hundreds of a small one, where launches would cost more than cells.
_CELLS_PER_CHUNK = 32 * 200 * 336


def edges_from_similarity(similarity_B8HW: torch.Tensor, threshold: float) -> torch.Tensor:
    """Edges of the pairwise terms.

    Args:
        similarity_B8HW: see `neighbours.neighbour_similarity`.
        threshold: least similarity of an edge, above 0.

    Returns:
        (B, 8, H, W) bool.

    Raises:
        ValueError: threshold is not above 0, which would count neighbours outside the image.
    """
    if threshold <= 0:
        raise ValueError(f"the similarity threshold must be above 0, got {threshold}")
    return similarity_B8HW >= threshold


def count_edges(
    edges_B8HW: torch.Tensor, image_indices_I: torch.Tensor, extents_I4: torch.Tensor
) -> torch.Tensor:
    """Number of edges whose centre pixel lies in each instance's box, by a summed-area table.

    Returns:
        (I,) int64.
    """
    table = F.pad(edges_B8HW.sum(1).cumsum(1).cumsum(2), (1, 0, 1, 0))
    r0, r1, c0, c1 = extents_I4.unbind(1)
    b = image_indices_I
    return table[b, r1, c1] - table[b, r0, c1] - table[b, r1, c0] + table[b, r0, c0]


def pairwise_losses(
    mask_logits_IHW: torch.Tensor,
    edges: Sequence[torch.Tensor],
    image_indices_I: torch.Tensor,
    extents: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Mean −log P(same label) over the edges of each term.

    Source: BoxInst, arXiv 2012.02310, for colour; Eq. 4 and 5 of arXiv 2403.01214 for depth.

    Args:
        mask_logits_IHW: log-odds on the mask grid.
        edges: T edge maps (B, 8, H, W) bool.
        image_indices_I: image of each instance.
        extents: T tensors (I, 4): the cells whose edges count (the box, or the whole map).

    Returns:
        T scalars; each is Σ over edges / max(number of edges, 1), over all instances of all
        processes; graph-connected zero without instances.
    """
    totals_T = _PairwiseSums.apply(
        mask_logits_IHW, image_indices_I, torch.stack(list(extents)), *edges
    )
    counts = [
        count_edges(term, image_indices_I, extent).sum()
        for term, extent in zip(edges, extents, strict=True)
    ]
    return [
        total / joint_normaliser(count)
        for total, count in zip(totals_T.unbind(), counts, strict=True)
    ]


class _PairwiseSums(torch.autograd.Function):
    """Σ over edges of −log P for T terms; keeps the logits only and recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        mask_logits_IHW: torch.Tensor,
        image_indices_I: torch.Tensor,
        extents_TI4: torch.Tensor,
        *edges: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(mask_logits_IHW, image_indices_I, extents_TI4, *edges)
        totals = torch.zeros(len(edges), dtype=torch.float64, device=mask_logits_IHW.device)
        for chosen, window, weights in _visits(
            mask_logits_IHW, image_indices_I, extents_TI4, edges
        ):
            logits = mask_logits_IHW[(chosen, *window)]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            soft = F.softplus(logits)
            for direction in HALF_DIRECTIONS:
                p, q = pair_slices(logits.shape[1], logits.shape[2], direction)
                values = (logits[:, *p] + logits[:, *q]).neg_()
                # softplus(s) = s + softplus(−s): accurate for large sums of either sign.
                values = soft[:, *p] + soft[:, *q] - F.softplus(values.neg_())
                flat = values.reshape(-1)
                for term, weight in enumerate(weights):
                    pair = weight[:, direction, *p] + weight[:, 7 - direction, *q]
                    totals[term] += torch.dot(pair.reshape(-1).to(flat.dtype), flat)
        work_dtype = torch.float64 if mask_logits_IHW.dtype == torch.float64 else torch.float32
        return totals.to(work_dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_T,) = grad_outputs
        mask_logits_IHW, image_indices_I, extents_TI4, *edges = ctx.saved_tensors
        gradient = torch.zeros_like(mask_logits_IHW)
        for chosen, window, weights in _visits(
            mask_logits_IHW, image_indices_I, extents_TI4, edges
        ):
            logits = mask_logits_IHW[(chosen, *window)]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            single = logits.sigmoid()
            local = torch.zeros_like(logits)
            combined = sum(
                weight.to(logits.dtype) * grad.to(logits.dtype)
                for weight, grad in zip(weights, grad_T.unbind(), strict=True)
            )
            for direction in HALF_DIRECTIONS:
                p, q = pair_slices(logits.shape[1], logits.shape[2], direction)
                pair = combined[:, direction, *p] + combined[:, 7 - direction, *q]
                joint = (logits[:, *p] + logits[:, *q]).sigmoid_()
                local[:, *p] += (single[:, *p] - joint).mul_(pair)
                local[:, *q] += (single[:, *q] - joint).mul_(pair)
            gradient[(chosen, *window)] = local.to(gradient.dtype)
        return (gradient, None, None, *([None] * len(edges)))


def _visits(
    mask_logits_IHW: torch.Tensor,
    image_indices_I: torch.Tensor,
    extents_TI4: torch.Tensor,
    edges: Sequence[torch.Tensor],
) -> Any:
    """Yield (instances, (rows, columns), T weights of shape (n, 8, h, w)).

    On a CPU one instance's box at a time, with the dilation around it; on an accelerator, where
    launches cost more than cells, whole maps of many instances.
    """
    num_instances, height, width = mask_logits_IHW.shape
    if mask_logits_IHW.device.type != "cpu":
        rows, columns = slice(0, height), slice(0, width)
        per_chunk = max(_CELLS_PER_CHUNK // (height * width), 1)
        for start in range(0, num_instances, per_chunk):
            chosen = slice(start, start + per_chunk)
            weights = [
                term[image_indices_I[chosen]]
                & draw_extents(extent[chosen], (height, width))[:, None]
                for term, extent in zip(edges, extents_TI4, strict=True)
            ]
            yield chosen, (rows, columns), [weight.to(torch.float32) for weight in weights]
        return
    images = image_indices_I.tolist()
    extents = extents_TI4.tolist()
    for instance in range(num_instances):
        boxes = [extent[instance] for extent in extents]
        filled = [box for box in boxes if box[1] > box[0] and box[3] > box[2]]
        if not filled:
            continue
        rows = slice(
            max(min(box[0] for box in filled) - DILATION, 0),
            min(max(box[1] for box in filled) + DILATION, height),
        )
        columns = slice(
            max(min(box[2] for box in filled) - DILATION, 0),
            min(max(box[3] for box in filled) + DILATION, width),
        )
        weights = []
        for term, (r0, r1, c0, c1) in zip(edges, boxes, strict=True):
            weight = torch.zeros(1, 8, rows.stop - rows.start, columns.stop - columns.start)
            if r1 > r0 and c1 > c0:
                inner_rows = slice(r0 - rows.start, r1 - rows.start)
                inner_columns = slice(c0 - columns.start, c1 - columns.start)
                weight[0, :, inner_rows, inner_columns] = term[images[instance], :, r0:r1, c0:c1]
            weights.append(weight)
        yield slice(instance, instance + 1), (rows, columns), weights
