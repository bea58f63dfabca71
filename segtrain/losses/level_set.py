"""BoxLevelSet's energy on our dynamic mask head. Source: arXiv 2207.09055; Chan and Vese, 2001.

The soft mask is the region of a level set that evolves in its box until what it holds, and what it
leaves, are each as uniform as can be. The paper's head is SOLOv2's; this is its supervision only.
What could not be checked against the paper is marked **choice** in docs/method.md.

Shape legend: B images, I mask instances, C channels, H×W the mask grid.
"""

from __future__ import annotations

from typing import Any

import torch

from segtrain.losses.projection import projection_loss
from segtrain.losses.supervision import MaskBatch, Supervision, clean_image
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.mask_grid.validity import downsample_to_mask_grid
from segtrain.process_group import joint_normaliser


class LevelSet(Supervision):
    """Projection term, Chan–Vese energy on the image and on the mask branch's features, length.

    Args:
        image_weight: of the energy on the image.
        feature_weight: of the energy on the features.
        length_weight: of the boundary's length.
        depth_weight: of the energy on pseudo depth; 0, as in the paper, reads none.
        **consistency: `consistency_weight` and `warmup_iterations`, see `Supervision`; not the
            paper's.
    """

    def __init__(
        self,
        *,
        image_weight: float = 1.0,
        feature_weight: float = 1.0,
        length_weight: float = 0.05,
        depth_weight: float = 0.0,
        **consistency: Any,
    ) -> None:
        super().__init__(name="LevelSet", **consistency)
        self.image_weight, self.feature_weight = image_weight, feature_weight
        self.length_weight, self.depth_weight = length_weight, depth_weight

    def needs_depth(self, *, predicts_depth: bool) -> bool:
        """For the energy on depth, or for consistency."""
        return self.depth_weight > 0 or super().needs_depth(predicts_depth=predicts_depth)

    def losses(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """Projection, energy and length."""
        logits, extents, images = masks.mask_logits, masks.extents, masks.image_indices
        losses = {"loss_proj": projection_loss(logits, extents)}
        for name, weight in (
            ("image", self.image_weight),
            ("feature", self.feature_weight),
            ("depth", self.depth_weight),
        ):
            if weight > 0:
                energy = chan_vese_energy(logits.sigmoid(), _read(masks, name), images, extents)
                losses[f"loss_level_{name}"] = weight * energy
        losses["loss_length"] = self.length_weight * boundary_length(logits.sigmoid(), extents)
        return losses | self.depth_terms(masks)


def chan_vese_energy(
    masks_IHW: torch.Tensor,
    values_BCHW: torch.Tensor,
    image_indices_I: torch.Tensor,
    extents_I4: torch.Tensor,
) -> torch.Tensor:
    """Mean over boxes of Σ m (u − c₁)² + (1 − m)(u − c₂)², over cells and channels of the box.

    c₁ and c₂ are the means of u under m and under 1 − m, in the box; with them each sum is
    Σ w u² − (Σ w u)² / Σ w, so that an instance costs three products with the image.

    Args:
        masks_IHW: soft masks in [0, 1].
        values_BCHW: u, what should be uniform; no gradient is taken of it.
        image_indices_I: image of each mask.
        extents_I4: filled cells of each box; a box that fills none has no energy.

    Returns:
        Scalar; graph-connected zero without masks.
    """
    inside = draw_extents(extents_I4, tuple(masks_IHW.shape[1:])).flatten(1)
    areas_I = inside.sum(1)
    normaliser = joint_normaliser((areas_I > 0).sum())
    total = masks_IHW.sum() * 0.0
    for image in image_indices_I.unique().tolist():
        chosen = torch.nonzero(image_indices_I == image)[:, 0]
        # Around their mean, which changes no deviation, values cancel less.
        u = values_BCHW[image].detach().flatten(1).to(masks_IHW.dtype)
        u = (u - u.mean(1, keepdim=True)).T
        box = inside[chosen].to(masks_IHW.dtype)
        region = masks_IHW[chosen].flatten(1) * box
        energy = (box @ u.square()).sum(1)
        for weights in (region, box - region):
            energy = energy - (weights @ u).square().sum(1) / weights.sum(1).clamp(min=1e-6)
        total = total + (energy / areas_I[chosen].clamp(min=1)).sum() / u.shape[1]
    return total / normaliser


def boundary_length(masks_IHW: torch.Tensor, extents_I4: torch.Tensor) -> torch.Tensor:
    """Mean over boxes of Σ |∇m| in the box as a share of its outline: 1 for a filled box.

    |∇m| is the sum of absolute differences to the right and lower neighbour.
    """
    height, width = masks_IHW.shape[1:]
    inside = draw_extents(extents_I4, (height, width))
    masks = masks_IHW * inside
    outline = (extents_I4[:, 1] - extents_I4[:, 0]) + (extents_I4[:, 3] - extents_I4[:, 2])
    steps = (masks[:, 1:] - masks[:, :-1]).abs().flatten(1).sum(1)
    steps = steps + (masks[:, :, 1:] - masks[:, :, :-1]).abs().flatten(1).sum(1)
    is_filled = inside.flatten(1).any(1)
    lengths = steps / (2 * outline).clamp(min=1)
    return (lengths * is_filled).sum() / joint_normaliser(is_filled.sum())


def _read(masks: MaskBatch, name: str) -> torch.Tensor:
    """(B, C, H, W): what the energy is measured on, each channel of an image of unit deviation."""
    if name == "depth":
        values = masks.inverse_depth_255[:, None]
    elif name == "image":
        images = [clean_image(entry).to(masks.device) for entry in masks.entries]
        values = torch.stack([downsample_to_mask_grid(i, masks.padded_size) for i in images])
    else:
        assert masks.mask_features is not None
        values = aligned_bilinear(masks.mask_features.detach(), 2)
    return values / values.flatten(2).std(2).clamp(min=1e-6)[:, :, None, None]
