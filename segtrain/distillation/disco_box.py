"""DiscoBox: a structured teacher refines its masks by what the picture shows.

Source: arXiv 2105.06464. The student learns from its boxes (the projection term, as bags of rows
and columns) and from the masks of a teacher that is averaged from the start: the minimum of an
energy with the teacher's prediction as unary potential and Gaussian kernels of colour and position
between neighbours. What could not be checked against the paper is marked **choice** in
docs/method.md.

Shape legend: B images, G boxes, H×W the student's mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from segtrain.distillation.averaged_teacher import (
    AveragedTeacher,
    TeacherSettings,
    to_student_masks,
)
from segtrain.distillation.teaching import has_mask_in_box, pseudo_mask_loss
from segtrain.losses.colour import mask_grid_lab
from segtrain.losses.supervision import BatchBoxes, Entries, MaskBatch, clean_image, warm_up
from segtrain.mask_grid.mean_field import gaussian_kernels, mean_field


@dataclass(kw_only=True)
class DiscoBoxSettings(TeacherSettings):
    """The teacher's energy, and how much its masks teach.

    Attributes:
        mask_weight: of the loss to the refined masks.
        warmup_iterations: over which that weight grows, as BoxInst's pairwise term does.
        pairwise_weight: of the pairwise potential, beside the teacher's log-odds.
        dilations: distances of the 3×3 neighbours on the mask grid, cells.
        color_width: of the colour kernel, in CIELAB.
        position_width: of the position kernel, cells.
        reads_depth: whether pseudo depth is a third kernel; not the paper's.
        depth_width: of that kernel, of depth in 0..255.
        num_updates: of the mean field.
    """

    is_the_method: ClassVar[bool] = True

    mask_weight: float = 1.0
    warmup_iterations: int = 10_000
    pairwise_weight: float = 1.0
    dilations: list[int] = field(default_factory=lambda: [1, 2])
    color_width: float = 6.0
    position_width: float = 3.0
    reads_depth: bool = False
    depth_width: float = 4.0
    num_updates: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_nms_threshold is not None:
            raise ValueError(
                f"teacher_nms_threshold={self.teacher_nms_threshold}: DiscoBox draws one mask for "
                "every box and drops none; leave it out"
            )
        self.require_at_least(0.0, "mask_weight", "warmup_iterations", "pairwise_weight")
        self.require_at_least(1.0, "num_updates")
        self.require_at_least(1e-3, "color_width", "position_width", "depth_width")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(
                f"dilations must be distances of at least 1 cell, got {list(self.dilations)}"
            )

    @property
    def needs_depth(self) -> bool:
        """Whether depth is a kernel."""
        return self.reads_depth

    def make_teacher(self, student: nn.Module) -> DiscoBox:
        """A teacher that starts as a frozen copy of the student."""
        return DiscoBox.copy_of(student, self)


class DiscoBox(AveragedTeacher):
    """A moving average of the student whose masks pass a mean field before they teach.

    Args:
        network: a CondInst of the student's form.
        settings: of the mean field and of the loss.
    """

    def __init__(self, network: Any, settings: DiscoBoxSettings) -> None:
        super().__init__(network, settings)
        self.settings = settings

    def predict(self, entries: Entries, truth: BatchBoxes, iteration: int) -> list[torch.Tensor]:  # noqa: ARG002
        """The soft mask of every box of each image, in the teacher's view."""
        return self.draw(entries, truth)

    def losses(self, masks: MaskBatch, predictions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss of the student's masks to the refined ones; a box whose mask is empty has none."""
        settings = self.settings
        refined_GHW = self.refine(masks, predictions)
        teaches_G = has_mask_in_box(refined_GHW, masks.truth.extents)
        masks.metrics["pseudo_mask_share"] = teaches_G.float().sum() / max(len(teaches_G), 1)
        taught = masks.select(torch.nonzero(teaches_G[masks.box_indices])[:, 0])
        loss = pseudo_mask_loss(
            taught.mask_logits,
            refined_GHW[taught.box_indices],
            taught.mask_logits.new_ones(len(taught.mask_logits)),
            taught.extents,
        )
        weight = settings.mask_weight * warm_up(masks.iteration, settings.warmup_iterations)
        return {"loss_pseudo": weight * loss}

    @torch.no_grad()
    def refine(self, masks: MaskBatch, predictions: list[torch.Tensor]) -> torch.Tensor:
        """The mean field of every box's mask on the student's mask grid, (G, H, W)."""
        settings = self.settings
        in_student = [
            to_student_masks(entry, own, masks.padded_size)
            for entry, own in zip(masks.entries, predictions, strict=True)
        ]
        images = [clean_image(entry).to(masks.device) for entry in masks.entries]
        features = [(mask_grid_lab(images, masks.padded_size), settings.color_width)]
        if settings.reads_depth:
            features.append((masks.inverse_depth_255[:, None], settings.depth_width))
        return mean_field(
            torch.cat(in_student).float(),
            gaussian_kernels(
                features,
                masks.validity,
                dilations=settings.dilations,
                position_width=settings.position_width,
            ),
            masks.truth.image_indices,
            masks.truth.extents,
            dilations=settings.dilations,
            weight=settings.pairwise_weight,
            num_iterations=settings.num_updates,
        )
