"""What supervises masks and boxes, as pure functions of tensors.

The functions below are the public face: they need torch only, so that any code base can train with
them. Sizes are in cells of the mask grid; `filled_pixels` and `mask_grid_extents` turn boxes into
cells, at any stride::

    extents_I4 = mask_grid_extents(filled_pixels(boxes_I4, image_size), stride=4)
    loss = projection_loss(mask_logits_IHW, extents_I4)
    edges = edges_from_similarity(similarity_B8HW, threshold=0.3)
    (colour,) = pairwise_losses(mask_logits_IHW, [edges], image_indices_I, [extents_I4])
"""

from __future__ import annotations

from segtrain.losses.bbtp import bag_loss, smoothness_loss
from segtrain.losses.colour import color_similarity, rgb_to_lab
from segtrain.losses.consistency import depth_similarity, slant_similarity
from segtrain.losses.depth import depth_loss
from segtrain.losses.level_set import boundary_length, chan_vese_energy
from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
from segtrain.losses.projection import dice_distance, projection_loss
from segtrain.mask_grid.bitmasks import filled_pixels, mask_grid_extents
from segtrain.mask_grid.neighbours import neighbour_similarity

__all__ = [
    "bag_loss",
    "boundary_length",
    "chan_vese_energy",
    "color_similarity",
    "depth_loss",
    "depth_similarity",
    "dice_distance",
    "edges_from_similarity",
    "filled_pixels",
    "mask_grid_extents",
    "neighbour_similarity",
    "pairwise_losses",
    "projection_loss",
    "rgb_to_lab",
    "slant_similarity",
    "smoothness_loss",
]
