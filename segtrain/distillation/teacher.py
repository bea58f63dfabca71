"""The teacher of the self-distillation: what it sees, which box each mask teaches, the loss.

Source: arXiv 2403.01214, Eq. 7 to 11. Shape legend: G boxes, D detections, H×W the mask grid.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from segtrain.distillation.matching import (
    box_affinity,
    depth_matching_scores,
    match_predictions,
    possible_matches,
)
from segtrain.distillation.teaching import (
    has_mask_in_box,
    reliable_dice_loss,
    resize_teacher_masks,
    update_teacher,
)
from segtrain.losses.supervision import BatchBoxes, Entries, MaskBatch
from segtrain.modeling.fcos import Detections
from segtrain.precision import multiplies_bfloat16

SoftMasks = list[tuple[Detections, torch.Tensor]]


@dataclass(kw_only=True)
class DistillationSettings:
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
        teacher_precision: "bf16" computes the teacher in bfloat16, "student" as precisely as the
            student; "auto" is "bf16" on CPUs that have instructions for it, else "student".
        teacher_nms_threshold: IoU above which the teacher drops a lower-scored box; None means the
            student's. A higher one leaves the matching more masks to choose from.
    """

    loss_weight: float = 4.0
    depth_matching: bool = True
    box_affinity: Literal["iou", "giou"] = "iou"
    alpha: float = 0.8
    beta: float = 0.2
    beta_decays: bool = True
    total_iterations: int = 90_000
    score_threshold: float = 0.8
    teacher_precision: Literal["auto", "student", "bf16"] = "auto"
    teacher_nms_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.teacher_precision not in {"auto", "student", "bf16"}:
            raise ValueError(
                'teacher_precision must be "auto", "student" or "bf16", got '
                f"{self.teacher_precision!r}"
            )
        if not 0 <= self.alpha <= 1 or not 0 <= self.beta <= 1 or self.alpha + self.beta > 1 + 1e-9:
            raise ValueError(
                f"alpha ({self.alpha}) and beta ({self.beta}) must be at least 0 with a sum of at "
                "most 1; lower one of them"
            )
        if self.total_iterations < 1:
            raise ValueError(f"total_iterations must be at least 1, got {self.total_iterations}")
        nms = self.teacher_nms_threshold
        if nms is not None and not 0 < nms <= 1:
            raise ValueError(f"teacher_nms_threshold must be an IoU in (0, 1] or null, got {nms}")

    @property
    def needs_depth(self) -> bool:
        """Whether the matching reads depth."""
        return self.depth_matching

    def make_teacher(self, student: nn.Module) -> Teacher:
        """A teacher that starts as a frozen copy of the student."""
        network = copy.deepcopy(student)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return Teacher(network, self)

    def teaches_in_bfloat16(self, device: torch.device) -> bool:
        """Whether the teacher computes in bfloat16, whatever the student does."""
        if self.teacher_precision == "auto":
            return multiplies_bfloat16(device)
        return self.teacher_precision == "bf16"

    def beta_at(self, iteration: int) -> float:
        """β(t), 0 without depth matching."""
        if not self.depth_matching:
            return 0.0
        if not self.beta_decays:
            return self.beta
        return self.beta * max(1.0 - iteration / self.total_iterations, 0.0)


class Teacher:
    """A moving average of the student whose masks teach it; the trainer owns it.

    Args:
        network: a CondInst of the student's form; put in evaluation mode.
        settings: of the matching and of the loss.
    """

    def __init__(self, network: Any, settings: DistillationSettings) -> None:
        self.network = network.eval()
        self.settings = settings
        if settings.teacher_nms_threshold is not None:
            network.fcos_settings = dataclasses.replace(
                network.fcos_settings, nms_threshold=settings.teacher_nms_threshold
            )

    def __str__(self) -> str:
        device = next(iter(self.network.parameters())).device
        is_rounded = self.settings.teaches_in_bfloat16(device)
        return "the teacher" + (", which computes in bfloat16," if is_rounded else "")

    def update(self, student: nn.Module, momentum: float) -> None:
        """Move a step of the moving average towards the student."""
        update_teacher(self.network, student, momentum)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights and buffers."""
        state: dict[str, torch.Tensor] = self.network.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over weights and buffers."""
        self.network.load_state_dict(state)

    @torch.no_grad()
    def predict(self, entries: Entries, truth: BatchBoxes, iteration: int) -> SoftMasks:
        """Detections of each image that may be matched to a box, and their soft masks (D, H, W).

        Computed in bfloat16 if the settings say so, else as precisely as the caller. What can never
        be matched is not computed: other classes than the image's, masks of detections that are too
        far from every box.

        Args:
            entries: `teacher_image` is the teacher's own view of a photo, `image` else.
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

        device = truth.extents.device
        precision = (
            torch.autocast(device.type, dtype=torch.bfloat16)
            if settings.teaches_in_bfloat16(device)
            else contextlib.nullcontext()
        )
        self.network.eval()
        with precision:
            found: SoftMasks = self.network.predict_soft_masks(
                [_teacher_image(entry) for entry in entries], truth.classes, may_be_matched
            )
        return found

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
            in_student = resize_teacher_masks(
                soft_masks, _size(_teacher_image(entry)), _size(entry["image"]), masks.padded_size
            )
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
        teacher_height, teacher_width = _size(_teacher_image(entry))
        height, width = _size(entry["image"])
        scale = found.boxes.new_tensor([width / teacher_width, height / teacher_height] * 2)
        return box_affinity(boxes_G4, found.boxes * scale, self.settings.box_affinity)


def _teacher_image(entry: dict[str, Any]) -> torch.Tensor:
    """(3, H, W): the teacher's own view of a photo where there is one."""
    image: torch.Tensor = entry.get("teacher_image", entry["image"])
    return image


def _size(image: torch.Tensor) -> tuple[int, int]:
    """Height and width."""
    return int(image.shape[-2]), int(image.shape[-1])
