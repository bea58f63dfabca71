"""BoxTeacher: high-quality pseudo masks teach by how sure the teacher is. Source: arXiv 2210.05174.

The student's losses are BoxInst's. Its teacher runs along from the start, sees the photo in its own
colours while the student's are perturbed, and gives each box one mask. What could not be checked
against the paper is marked **choice** in docs/method.md.

Shape legend: I student masks, G boxes of an image or of the batch, D detections, H×W the mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from segtrain.distillation.averaged_teacher import (
    AveragedTeacher,
    SoftMasks,
    TeacherSettings,
    to_student_boxes,
    to_student_masks,
)
from segtrain.distillation.matching import box_affinity
from segtrain.distillation.teaching import pseudo_mask_loss
from segtrain.losses.supervision import BatchBoxes, Entries, MaskBatch, warm_up
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.neighbours import HALF_DIRECTIONS, pair_slices
from segtrain.modeling.fcos import Detections
from segtrain.process_group import joint_normaliser


@dataclass(kw_only=True)
class BoxTeacherSettings(TeacherSettings):
    """Which masks teach, and how much.

    Attributes:
        mask_weight: λ_p of the pseudo-mask loss.
        affinity_weight: λ_a of the affinity loss.
        warmup_iterations: over which both grow, as BoxInst's pairwise term does: masks that are
            still boxes would teach that they are.
        min_iou: of a prediction with its box.
        min_confidence: confidence that a mask must exceed to teach.
    """

    is_the_method: ClassVar[bool] = True

    mask_weight: float = 0.5
    affinity_weight: float = 0.1
    warmup_iterations: int = 10_000
    min_iou: float = 0.5
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(0.0, "mask_weight", "affinity_weight", "warmup_iterations")
        for name in ("min_iou", "min_confidence"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def make_teacher(self, student: nn.Module) -> BoxTeacher:
        """A teacher that starts as a frozen copy of the student."""
        return BoxTeacher.copy_of(student, self)


class BoxTeacher(AveragedTeacher):
    """A moving average of the student that gives a box the mask of its surest prediction.

    Args:
        network: a CondInst of the student's form.
        settings: of the assignment and of the losses.
    """

    settings: BoxTeacherSettings

    def predict(self, entries: Entries, truth: BatchBoxes, iteration: int) -> SoftMasks:  # noqa: ARG002
        """What was found for the boxes of each image, and its soft masks (D, H, W)."""

        def is_some_box(image: int, found: Detections) -> torch.Tensor:
            assigned_G = self._assign(entries[image], truth, image, found)
            chosen = torch.zeros_like(found.classes, dtype=torch.bool)
            chosen[assigned_G[assigned_G >= 0]] = True
            return chosen

        return self.detect(entries, truth, is_some_box)

    def losses(self, masks: MaskBatch, predictions: SoftMasks) -> dict[str, torch.Tensor]:
        """Pseudo-mask and affinity loss of the student's masks, weighted by the confidences."""
        settings = self.settings
        labels_GHW, confidences_G = self.label(masks, predictions)
        teaches_G = confidences_G > settings.min_confidence
        masks.metrics["pseudo_mask_share"] = teaches_G.float().sum() / max(len(teaches_G), 1)
        masks.metrics["confidence"] = confidences_G.sum() / teaches_G.sum().clamp(min=1)
        taught = masks.select(torch.nonzero(teaches_G[masks.box_indices])[:, 0])
        arguments = (
            taught.mask_logits,
            labels_GHW[taught.box_indices],
            confidences_G[taught.box_indices],
            taught.extents,
        )
        growth = warm_up(masks.iteration, settings.warmup_iterations)
        return {
            "loss_pseudo": settings.mask_weight * growth * pseudo_mask_loss(*arguments),
            "loss_affinity": settings.affinity_weight * growth * affinity_loss(*arguments),
        }

    @torch.no_grad()
    def label(self, masks: MaskBatch, predictions: SoftMasks) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask of every box, cut to it, bool (G, H, W), and its confidence (G,); 0 for none."""
        labels, confidences = [], []
        truth = masks.truth
        for image, (found, soft_masks) in enumerate(predictions):
            entry = masks.entries[image]
            assigned_G = self._assign(entry, truth, image, found)
            extents_G4 = truth.extents[truth.image_indices == image]
            in_student = to_student_masks(entry, soft_masks, masks.padded_size)
            is_found_G = assigned_G >= 0
            own_GHW = in_student.new_zeros(len(assigned_G), *in_student.shape[1:])
            own_GHW[is_found_G] = in_student[assigned_G[is_found_G]]
            scores_G = own_GHW.new_zeros(len(assigned_G))
            scores_G[is_found_G] = found.scores[assigned_G[is_found_G]].to(scores_G.dtype)
            confidences.append(mask_aware_confidence(scores_G, own_GHW, extents_G4))
            labels.append((own_GHW > 0.5) & draw_extents(extents_G4, tuple(own_GHW.shape[1:])))
        return torch.cat(labels), torch.cat(confidences)

    def _assign(
        self, entry: dict[str, Any], truth: BatchBoxes, image: int, found: Detections
    ) -> torch.Tensor:
        """Detection of each box of an image, (G,)."""
        predicted = to_student_boxes(entry, found.boxes)
        return assign_surest(
            box_affinity(truth.boxes[image], predicted),
            found.scores,
            truth.classes[image][:, None] == found.classes,
            self.settings.min_iou,
        )


def assign_surest(
    iou_GD: torch.Tensor, scores_D: torch.Tensor, is_same_class_GD: torch.Tensor, min_iou: float
) -> torch.Tensor:
    """One prediction for each box: the surest of those that belong to it; −1 without any.

    A prediction belongs to the box of its class that it overlaps most, if by `min_iou`; so no two
    boxes share one.

    Returns:
        (G,) int64.
    """
    if iou_GD.numel() == 0:
        return torch.full((len(iou_GD),), -1, dtype=torch.int64, device=iou_GD.device)
    rated_GD = torch.where(is_same_class_GD, iou_GD, -1.0)
    boxes = torch.arange(len(iou_GD), device=iou_GD.device)
    belongs_GD = (rated_GD.argmax(0) == boxes[:, None]) & (rated_GD >= min_iou)
    best = torch.where(belongs_GD, scores_D, -1.0).max(1)
    return torch.where(best.values >= 0, best.indices, -1)


def mask_aware_confidence(
    scores_G: torch.Tensor, masks_GHW: torch.Tensor, extents_G4: torch.Tensor
) -> torch.Tensor:
    """√(score × mean probability of the mask's cells, those above 1/2 in the box), (G,).

    0 for a mask without such a cell.
    """
    is_mask_GHW = (masks_GHW > 0.5) & draw_extents(extents_G4, tuple(masks_GHW.shape[1:]))
    areas_G = is_mask_GHW.flatten(1).sum(1)
    means_G = (masks_GHW * is_mask_GHW).flatten(1).sum(1) / areas_G.clamp(min=1)
    return (scores_G * means_G).sqrt()


def affinity_loss(
    mask_logits_IHW: torch.Tensor,
    labels_IHW: torch.Tensor,
    weights_I: torch.Tensor,
    extents_I4: torch.Tensor,
) -> torch.Tensor:
    """Noise-reduced affinity: −log P(same label) of neighbours that the teacher's mask links.

    A cell's label is first averaged with the mean of its neighbours', m̃ = (m + mean m) / 2, so that
    lone cells link nothing. A pair is linked where its affinity m̃_p m̃_q + (1 − m̃_p)(1 − m̃_q) is
    above 1/2, that is, where both are on one side of 1/2, and counts once for each of its cells
    that is in the box.

    Args:
        mask_logits_IHW: student log-odds.
        labels_IHW: bool, the teacher's mask of each.
        weights_I: confidence of each.
        extents_I4: filled cells of each box.

    Returns:
        Scalar: Σ weight × mean over the mask's pairs / I; graph-connected zero without masks.
    """
    normaliser = joint_normaliser(mask_logits_IHW.new_tensor(float(len(mask_logits_IHW))))
    if len(mask_logits_IHW) == 0:
        return mask_logits_IHW.sum() * 0.0
    sides = _smoothed(labels_IHW.to(mask_logits_IHW.dtype)) - 0.5
    inside = draw_extents(extents_I4, tuple(mask_logits_IHW.shape[1:])).to(mask_logits_IHW.dtype)
    height, width = mask_logits_IHW.shape[1:]
    soft = F.softplus(mask_logits_IHW)
    total_I, count_I = torch.zeros_like(weights_I), torch.zeros_like(weights_I)
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(height, width, direction)
        links = (sides[:, *p] * sides[:, *q] > 0) * (inside[:, *p] + inside[:, *q])
        joint = mask_logits_IHW[:, *p] + mask_logits_IHW[:, *q]
        values = soft[:, *p] + soft[:, *q] - F.softplus(joint)
        total_I = total_I + (values * links).flatten(1).sum(1)
        count_I = count_I + links.flatten(1).sum(1)
    return (weights_I * total_I / count_I.clamp(min=1)).sum() / normaliser


def _smoothed(masks_IHW: torch.Tensor) -> torch.Tensor:
    """(m + mean of the neighbours' m) / 2, over the neighbours inside the map."""
    height, width = masks_IHW.shape[1:]
    total, count = torch.zeros_like(masks_IHW), torch.zeros_like(masks_IHW[:1])
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(height, width, direction)
        for here, there in ((p, q), (q, p)):
            total[:, *here] += masks_IHW[:, *there]
            count[:, *here] += 1
    return (masks_IHW + total / count.clamp(min=1)) / 2
