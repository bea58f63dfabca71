"""Which neighbouring pixels pseudo depth links: the consistency map of Eq. 3 to 5.

Shape legend: B images, 8 neighbours, H×W the mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segtrain.losses.pairwise import edges_from_similarity
from segtrain.mask_grid.neighbours import HALF_DIRECTIONS, neighbour_similarity, pair_slices


@dataclass(frozen=True, kw_only=True)
class DepthLinks:
    """When two neighbours are equally near; frozen, as the loss and the matching share one map.

    Attributes:
        threshold: τ, least similarity of a link.
        slant_invariant: compare second differences instead of values, so that a slanted plane,
            whose inverse depth is affine in the image, is linked as a level one is.
    """

    threshold: float = 0.5
    slant_invariant: bool = False

    def edges(
        self, inverse_depth_255_BHW: torch.Tensor, validity_BHW: torch.Tensor
    ) -> torch.Tensor:
        """The consistency map 1[S_pq ≥ τ], (B, 8, H, W) bool.

        Args:
            inverse_depth_255_BHW: pseudo depth in 0..255.
            validity_BHW: 1 in the image, 0 in its padding, which is nobody's neighbour.
        """
        measure = slant_similarity if self.slant_invariant else depth_similarity
        return edges_from_similarity(measure(inverse_depth_255_BHW, validity_BHW), self.threshold)


def depth_similarity(
    inverse_depth_255_BHW: torch.Tensor, validity_BHW: torch.Tensor
) -> torch.Tensor:
    """S_pq = exp(−|d_p − d_q| / 2), (B, 8, H, W). Source: Eq. 3 of arXiv 2403.01214."""
    return neighbour_similarity(inverse_depth_255_BHW[:, None], validity_BHW)


def slant_similarity(
    inverse_depth_255_BHW: torch.Tensor, validity_BHW: torch.Tensor
) -> torch.Tensor:
    """S_pq = exp(−min(|δ²d_p|, |δ²d_q|) / 2) with second differences along the pair's direction.

    With the neighbours' distance δ, δ²d_p = d_(p−δ) − 2 d_p + d_(p+δ) is how far q lies from the
    plane through p and the pixel behind it; the pair is linked if either side's plane reaches the
    other, and at a step in depth neither does. Where a third pixel is outside the image that side
    has no say.

    Returns:
        (B, 8, H, W) in [0, 1]; 0 where the neighbour is outside the image.
    """
    height, width = inverse_depth_255_BHW.shape[1:]
    similarity = inverse_depth_255_BHW.new_zeros(len(inverse_depth_255_BHW), 8, height, width)
    is_valid = validity_BHW > 0
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(height, width, direction)
        step = torch.full_like(inverse_depth_255_BHW, torch.inf)
        step[:, *p] = inverse_depth_255_BHW[:, *q] - inverse_depth_255_BHW[:, *p]
        known = torch.zeros_like(is_valid)
        known[:, *p] = is_valid[:, *p] & is_valid[:, *q]
        # At q: the step that begins there less the one that ends there.
        second = torch.full_like(inverse_depth_255_BHW, torch.inf)
        both = known[:, *p] & known[:, *q]
        second[:, *q] = torch.where(both, (step[:, *q] - step[:, *p]).abs(), torch.inf)
        value = torch.exp(-0.5 * torch.minimum(second[:, *p], second[:, *q])) * known[:, *p]
        similarity[:, direction, *p] = value
        similarity[:, 7 - direction, *q] = value
    return similarity
