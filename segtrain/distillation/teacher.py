"""The teacher of the self-distillation: what it sees, which box each mask teaches, the loss.

Source: arXiv 2403.01214, Eq. 7 to 11. Shape legend: G boxes, D detections, H×W the mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from segtrain.distillation.averaged_teacher import (
    AveragedTeacher,
    SoftMasks,
    TeacherSettings,
    to_student_boxes,
    to_student_masks,
)
from segtrain.distillation.matching import (
    box_affinity,
    depth_matching_scores,
    match_predictions,
    possible_matches,
)
from segtrain.distillation.teaching import has_mask_in_box, reliable_dice_loss
from segtrain.losses.supervision import BatchBoxes, Entries, MaskBatch
from segtrain.modeling.fcos import Detections


@dataclass(kw_only=True)
class DistillationSettings(TeacherSettings):
    """How teacher masks are matched to boxes. Source: arXiv 2403.01214, Eq. 7 to 11.

    Attributes:
        loss_weight: λ_dice of the reliable dice loss.
        depth_matching: whether the depth matching score takes part.
        box_affinity: "iou", or "giou".
        alpha: weight of the box affinity.
        beta: weight of the depth matching score at the first iteration.
        beta_decays: β(t) = beta · (1 − t / total_iterations); constant otherwise.
        total_iterations: T, iterations of the schedule.
        score_threshold: least matching score of a mask that teaches.
    """

    loss_weight: float = 4.0
    depth_matching: bool = True
    box_affinity: Literal["iou", "giou"] = "iou"
    alpha: float = 0.8
    beta: float = 0.2
    beta_decays: bool = True
    total_iterations: int = 90_000
    score_threshold: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1 or not 0 <= self.beta <= 1 or self.alpha + self.beta > 1 + 1e-9:
            raise ValueError(
                f"alpha ({self.alpha}) and beta ({self.beta}) must be at least 0 with a sum of at "
                "most 1; lower one of them"
            )
        if self.total_iterations < 1:
            raise ValueError(f"total_iterations must be at least 1, got {self.total_iterations}")

    @property
    def needs_depth(self) -> bool:
        """Whether the matching reads depth."""
        return self.depth_matching

    def make_teacher(self, student: nn.Module) -> Teacher:
        """A teacher that starts as a frozen copy of the student."""
        return Teacher.copy_of(student, self)

    def beta_at(self, iteration: int) -> float:
        """β(t), 0 without depth matching."""
        if not self.depth_matching:
            return 0.0
        if not self.beta_decays:
            return self.beta
        return self.beta * max(1.0 - iteration / self.total_iterations, 0.0)


class Teacher(AveragedTeacher):
    """A moving average of the student whose masks teach it where they match a box well.

    Args:
        network: a CondInst of the student's form.
        settings: of the matching and of the loss.
    """

    settings: DistillationSettings

    def predict(self, entries: Entries, truth: BatchBoxes, iteration: int) -> SoftMasks:
        """Detections of each image that may be matched to a box, and their soft masks (D, H, W).

        What can never be matched, being too far from every box, is not drawn.

        Args:
            entries: `teacher_image` is the teacher's own view of a photo, the student's else.
            truth: boxes in the student's frame.
            iteration: for β(t).
        """
        settings = self.settings

        def may_be_matched(image: int, found: Detections) -> torch.Tensor:
            return possible_matches(
                self._affinity(entries[image], truth.boxes[image], found),
                found.scores,
                truth.classes[image],
                found.classes,
                alpha=settings.alpha,
                beta=settings.beta_at(iteration),
            )

        return self.detect(entries, truth, may_be_matched)

    def losses(self, masks: MaskBatch, predictions: SoftMasks) -> dict[str, torch.Tensor]:
        """λ_dice times the reliable dice loss of the student's masks (Eq. 10 and 11).

        An empty teacher mask teaches nothing: where the student's is empty too, the gradient of
        Dice by the probabilities is up to 1 / √ε.
        """
        settings = self.settings
        pseudo_masks_GHW, scores_G = self.match(masks, predictions)
        extents_G4 = masks.truth.extents
        scores_G = scores_G.masked_fill(~has_mask_in_box(pseudo_masks_GHW, extents_G4), -1.0)
        is_reliable_G = scores_G >= settings.score_threshold
        masks.metrics["num_reliable_masks"] = is_reliable_G.sum().float()
        masks.metrics["reliable_share"] = is_reliable_G.float().sum() / max(len(scores_G), 1)
        loss = reliable_dice_loss(
            masks.mask_logits,
            masks.box_indices,
            pseudo_masks_GHW,
            scores_G,
            extents_G4,
            threshold=settings.score_threshold,
        )
        return {"loss_dice": settings.loss_weight * loss}

    @torch.no_grad()
    def match(self, masks: MaskBatch, predictions: SoftMasks) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask of every box on the student's mask grid (G, H, W), and its score c_ij (G,)."""
        settings = self.settings
        beta = settings.beta_at(masks.iteration)
        pseudo_masks, scores = [], []
        first_box = 0
        for image, (detections, soft_masks) in enumerate(predictions):
            boxes = masks.truth.boxes[image]
            extents = masks.truth.extents[first_box : first_box + len(boxes)]
            first_box += len(boxes)
            entry = masks.entries[image]
            in_student = to_student_masks(entry, soft_masks, masks.padded_size)
            affinity = self._affinity(entry, boxes, detections)
            match = match_predictions(
                affinity,
                depth_matching_scores(in_student, masks.depth_edges[image], extents)
                if beta > 0
                else torch.zeros_like(affinity),
                detections.scores,
                masks.truth.classes[image],
                detections.classes,
                alpha=settings.alpha,
                beta=beta,
            )
            chosen = in_student.new_zeros(len(boxes), *in_student.shape[1:])
            is_matched = match.predictions >= 0
            chosen[is_matched] = in_student[match.predictions[is_matched]]
            pseudo_masks.append(chosen)
            scores.append(match.scores)
        return torch.cat(pseudo_masks), torch.cat(scores)

    def _affinity(
        self, entry: dict[str, Any], boxes_G4: torch.Tensor, found: Detections
    ) -> torch.Tensor:
        """(G, D): affinity of boxes to what was found in the teacher's view, in the student's."""
        predicted = to_student_boxes(entry, found.boxes)
        return box_affinity(boxes_G4, predicted, self.settings.box_affinity)
