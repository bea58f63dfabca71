"""What teaches masks of crops from boxes: the detector's terms over the whole crop, and a teacher.

L = w_proj · projection + w_colour · pairwise on colour + w_depth · pairwise on depth
  + w_out · cross-entropy to background outside the box + w_teacher · dice to the teacher's mask.

Shape legend: N crops, G×G mask grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from segtrain.labeller.crop_batches import CropBatch
from segtrain.labeller.settings import LabellerSettings
from segtrain.losses.colour import rgb_to_lab
from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
from segtrain.losses.projection import dice_distance, projection_loss
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.neighbours import neighbour_similarity
from segtrain.process_group import joint_normaliser


class TeacherMasks(NamedTuple):
    """What the teacher says of a batch.

    Attributes:
        masks: (N, G, G) probabilities, 0 outside the box.
        agreement: (N,) IoU of its masks of the crop and of its mirror image.
    """

    masks: torch.Tensor
    agreement: torch.Tensor


def crop_losses(
    logits_NGG: torch.Tensor,
    batch: CropBatch,
    teacher: TeacherMasks | None,
    settings: LabellerSettings,
) -> dict[str, torch.Tensor]:
    """Weighted terms of a batch.

    The pairwise terms visit every pair of the crop, not only those in the box: inside a box alone
    they can only grow masks (docs/method.md).

    Args:
        logits_NGG: the student's.
        batch: the crops.
        teacher: the teacher's masks; None without a teacher.
        settings: weights and thresholds.

    Returns:
        Scalars by name; their sum is the loss.
    """
    num, height, width = logits_NGG.shape
    extents_N4 = batch.extents
    losses = {"projection": settings.projection_weight * projection_loss(logits_NGG, extents_N4)}
    edges = [
        edges_from_similarity(
            neighbour_similarity(rgb_to_lab(batch.colour), batch.valid),
            settings.colour_threshold,
        )
    ]
    names = [("colour", settings.colour_weight)]
    if settings.has_depth_loss:
        with_depth = batch.valid * batch.has_depth[:, None, None]
        edges.append(
            edges_from_similarity(
                neighbour_similarity(batch.depth_255, with_depth),
                settings.consistency_threshold,
            )
        )
        names.append(("consistency", settings.consistency_weight))
    whole_N4 = extents_N4.new_tensor([[0, height, 0, width]]).expand(num, 4)
    own_N = torch.arange(num, device=logits_NGG.device)
    terms = pairwise_losses(logits_NGG, edges, own_N, [whole_N4] * len(edges))
    losses |= {name: weight * term for (name, weight), term in zip(names, terms, strict=True)}
    inside = draw_extents(extents_N4, (height, width))
    if settings.outside_weight:
        outside = F.softplus(logits_NGG) * ~inside
        normaliser = joint_normaliser((~inside).sum())
        losses["outside"] = settings.outside_weight * outside.sum() / normaliser
    if teacher is not None:
        losses["teacher"] = settings.teacher_weight * teacher_dice(
            logits_NGG, teacher, settings.teacher_agreement
        )
    return losses


def teacher_dice(
    logits_NGG: torch.Tensor, teacher: TeacherMasks, agreement_power: float
) -> torch.Tensor:
    """Dice distance to the teacher's probabilities; masks that are empty there do not count.

    Source: Eq. 10 of arXiv 2403.01214; every box here has its own teacher mask, so none is matched.
    """
    weight_N = (teacher.masks.flatten(1).amax(1) > 0.5) * teacher.agreement**agreement_power
    distance_N = dice_distance(logits_NGG.sigmoid(), teacher.masks)
    return (distance_N * weight_N).sum() / joint_normaliser(weight_N.sum())


def known_mask_loss(logits_NGG: torch.Tensor, target_NGG: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and dice distance to masks that are known, mean over crops.

    Args:
        logits_NGG: log-odds.
        target_NGG: share of every cell that is object, 0..1.
    """
    entropy = F.binary_cross_entropy_with_logits(logits_NGG, target_NGG)
    return entropy + dice_distance(logits_NGG.sigmoid(), target_NGG).mean()
