"""Mean-field inference in a conditional random field over neighbouring cells.

Source: Krähenbühl and Koltun, arXiv 1210.5644, with neighbours at a few distances in place of all
pairs, as DiscoBox, arXiv 2105.06464, has it.

Shape legend: B images, I masks, K pairs of neighbours (four directions for each dilation), H×W the
mask grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.neighbours import HALF_DIRECTIONS, pair_slices

# Whole maps of this many masks at a time, which bounds the memory.
_MASKS_PER_CHUNK = 32
_LEAST_PROBABILITY = 1e-4


def gaussian_kernels(
    features: Sequence[tuple[torch.Tensor, float]],
    validity_BHW: torch.Tensor,
    *,
    dilations: Sequence[int],
    position_width: float,
) -> torch.Tensor:
    """k_pq = exp(−Σ_f ‖f_p − f_q‖² / 2θ_f² − ‖p − q‖² / 2θ²) of neighbouring cells.

    Args:
        features: maps (B, C, H, W) with their width θ_f, in their own units.
        validity_BHW: 1 where a cell may be a neighbour.
        dilations: distances of the 3×3 neighbours, cells.
        position_width: θ, cells.

    Returns:
        (B, K, H, W) at the first cell of each pair; 0 where the second is masked or outside.
    """
    height, width = validity_BHW.shape[1:]
    steps = len(HALF_DIRECTIONS)
    kernels = validity_BHW.new_zeros(len(validity_BHW), steps * len(dilations), height, width)
    for index, (dilation, direction) in enumerate(_pairs(dilations)):
        p, q = pair_slices(height, width, direction, dilation)
        distance = 1 if direction in (4, 6) else 2  # squared, in dilations
        exponent = validity_BHW.new_full((), distance * dilation**2 / (2 * position_width**2))
        for values, own_width in features:
            difference = (values[:, :, *p] - values[:, :, *q]).square().sum(1)
            exponent = exponent + difference / (2 * own_width**2)
        kernels[:, index, *p] = torch.exp(-exponent) * validity_BHW[:, *p] * validity_BHW[:, *q]
    return kernels


@torch.no_grad()
def mean_field(
    probabilities_IHW: torch.Tensor,
    kernels_BKHW: torch.Tensor,
    image_indices_I: torch.Tensor,
    extents_I4: torch.Tensor,
    *,
    dilations: Sequence[int],
    weight: float,
    num_iterations: int,
    evidence_IHW: torch.Tensor | None = None,
) -> torch.Tensor:
    """Marginals of E(y) = −Σ log m_p(y_p) + weight · Σ k_pq [y_p ≠ y_q], by parallel updates.

    logit Q_p ← logit m_p + weight · Σ_q k_pq (2 Q_q − 1). Cells outside the box are background,
    which their neighbours inside see.

    Args:
        probabilities_IHW: m, soft masks.
        kernels_BKHW: see `gaussian_kernels`.
        image_indices_I: image of each mask.
        extents_I4: filled cells of each box.
        dilations: those of the kernels.
        weight: of the pairwise potential.
        num_iterations: updates.
        evidence_IHW: log-odds beside those of the masks; None for none.

    Returns:
        (I, H, W) in [0, 1], 0 outside the box.
    """
    refined = torch.empty_like(probabilities_IHW)
    size = (int(probabilities_IHW.shape[1]), int(probabilities_IHW.shape[2]))
    for start in range(0, len(probabilities_IHW), _MASKS_PER_CHUNK):
        chosen = slice(start, start + _MASKS_PER_CHUNK)
        inside = draw_extents(extents_I4[chosen], size)
        kernels = kernels_BKHW[image_indices_I[chosen]]
        unary = torch.logit(probabilities_IHW[chosen], eps=_LEAST_PROBABILITY)
        if evidence_IHW is not None:
            unary = unary + evidence_IHW[chosen]
        marginals = probabilities_IHW[chosen] * inside
        for _ in range(num_iterations):
            beliefs = 2 * marginals - 1
            messages = torch.zeros_like(beliefs)
            for index, (dilation, direction) in enumerate(_pairs(dilations)):
                p, q = pair_slices(*size, direction, dilation)
                kernel = kernels[:, index, *p]
                messages[:, *p] += kernel * beliefs[:, *q]
                messages[:, *q] += kernel * beliefs[:, *p]
            marginals = torch.sigmoid(unary + weight * messages) * inside
        refined[chosen] = marginals
    return refined


def _pairs(dilations: Sequence[int]) -> list[tuple[int, int]]:
    return [(dilation, direction) for dilation in dilations for direction in HALF_DIRECTIONS]
