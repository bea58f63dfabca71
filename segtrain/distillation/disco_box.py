"""DiscoBox: a structured teacher refines its masks by what the picture shows.

Source: arXiv 2105.06464. The student learns from its boxes (the projection term, as bags of rows
and columns) and from the masks of a teacher that is averaged from the start: the minimum of an
energy with the teacher's prediction as unary potential and Gaussian kernels of colour and position
between neighbours. With a memory, corresponding places of other objects of the class have their say
in that energy, and their features are made alike. What could not be checked against the paper is
marked **choice** in docs/method.md.

Shape legend: B images, G boxes, C channels, P bins of a box, H×W the student's mask grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from segtrain.distillation.averaged_teacher import (
    AveragedTeacher,
    TeacherSettings,
    to_student_masks,
    to_teacher_boxes,
)
from segtrain.distillation.object_memory import BoxBins, ObjectMemory
from segtrain.distillation.teaching import has_mask_in_box, pseudo_mask_loss
from segtrain.losses.colour import mask_grid_lab
from segtrain.losses.supervision import BatchBoxes, Entries, MaskBatch, clean_image, warm_up
from segtrain.mask_grid.mean_field import gaussian_kernels, mean_field
from segtrain.mask_grid.validity import MASK_STRIDE

Drawn = tuple[list[torch.Tensor], torch.Tensor]

_FEATURE_STRIDE = 8
_MEMORY = "memory."


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
        memory_entries: objects of a class that are remembered; 0 leaves out what follows, the
            correspondence between pictures.
        correspondence_weight: of the potential to corresponding places of remembered objects.
        contrast_weight: of the loss that makes features of corresponding places alike.
        num_bins: R, bins of a box each way in which correspondence is found.
        temperature: of the softmax over bins.
    """

    is_the_method: ClassVar[bool] = True

    mask_weight: float = 1.0
    warmup_iterations: int = 10_000
    pairwise_weight: float = 2.0
    dilations: list[int] = field(default_factory=lambda: [1, 2])
    color_width: float = 6.0
    position_width: float = 3.0
    reads_depth: bool = False
    depth_width: float = 10.0
    num_updates: int = 10
    memory_entries: int = 0
    correspondence_weight: float = 1.0
    contrast_weight: float = 0.1
    num_bins: int = 14
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_nms_threshold is not None:
            raise ValueError(
                f"teacher_nms_threshold={self.teacher_nms_threshold}: DiscoBox draws one mask for "
                "every box and drops none; leave it out"
            )
        self.require_at_least(0.0, "mask_weight", "warmup_iterations", "pairwise_weight")
        self.require_at_least(0.0, "memory_entries", "correspondence_weight", "contrast_weight")
        self.require_at_least(1.0, "num_updates", "num_bins")
        self.require_at_least(1e-3, "color_width", "position_width", "depth_width", "temperature")
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


@dataclass(frozen=True, kw_only=True)
class _Objects:
    """The objects of a batch, as the teacher sees them."""

    bins: BoxBins  # in the student's frame
    features: torch.Tensor  # (G, C, P) of the teacher
    classes: torch.Tensor  # (G,)


class DiscoBox(AveragedTeacher):
    """A moving average of the student whose masks pass a mean field before they teach.

    Args:
        network: a CondInst of the student's form.
        settings: of the mean field and of the loss.
    """

    settings: DiscoBoxSettings

    def __init__(self, network: Any, settings: DiscoBoxSettings) -> None:
        super().__init__(network, settings)
        self.memory = (
            ObjectMemory(network.num_classes, settings.memory_entries, settings.temperature)
            if settings.memory_entries
            else None
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights and the memory."""
        if self.memory is None:
            return self.weights()
        kept = {_MEMORY + name: value for name, value in self.memory.state_dict().items()}
        return self.weights() | kept

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""
        kept = {name for name in state if name.startswith(_MEMORY)}
        self.network.load_state_dict({n: v for n, v in state.items() if n not in kept})
        if self.memory is not None:
            self.memory.load_state_dict({n.removeprefix(_MEMORY): state[n] for n in kept})

    def predict(self, entries: Entries, truth: BatchBoxes, iteration: int) -> Drawn:  # noqa: ARG002
        """The soft mask of every box of each image, in the teacher's view, and features."""
        return self.draw(entries, truth)

    def losses(self, masks: MaskBatch, predictions: Drawn) -> dict[str, torch.Tensor]:
        """Loss of the student's masks to the refined ones; a box whose mask is empty has none.

        With a memory also the loss of the student's features to corresponding ones.
        """
        settings = self.settings
        soft_masks, features = predictions
        weight = warm_up(masks.iteration, settings.warmup_iterations)
        objects = None if self.memory is None else self._read_objects(masks, features.float())
        refined_GHW = self.refine(masks, soft_masks, objects)
        teaches_G = has_mask_in_box(refined_GHW, masks.truth.extents)
        masks.metrics["pseudo_mask_share"] = teaches_G.float().sum() / max(len(teaches_G), 1)
        taught = masks.select(torch.nonzero(teaches_G[masks.box_indices])[:, 0])
        pseudo = pseudo_mask_loss(
            taught.mask_logits,
            refined_GHW[taught.box_indices],
            taught.mask_logits.new_ones(len(taught.mask_logits)),
            taught.extents,
        )
        losses = {"loss_pseudo": settings.mask_weight * weight * pseudo}
        if self.memory is not None and objects is not None:
            assert masks.mask_features is not None
            own_GCP = objects.bins.read(
                masks.mask_features[masks.truth.image_indices].float(), _FEATURE_STRIDE
            )
            masks_GP = objects.bins.read(refined_GHW[:, None], MASK_STRIDE)[:, 0]
            contrast = self.memory.contrast(own_GCP, objects.features, masks_GP, objects.classes)
            losses["loss_contrast"] = settings.contrast_weight * weight * contrast
            self.memory.add(
                objects.features[teaches_G], masks_GP[teaches_G], objects.classes[teaches_G]
            )
        return losses

    @torch.no_grad()
    def refine(
        self, masks: MaskBatch, soft_masks: list[torch.Tensor], objects: _Objects | None = None
    ) -> torch.Tensor:
        """The mean field of every box's mask on the student's mask grid, (G, H, W)."""
        settings = self.settings
        in_student = [
            to_student_masks(entry, own, masks.padded_size)
            for entry, own in zip(masks.entries, soft_masks, strict=True)
        ]
        teacher_GHW = torch.cat(in_student).float()
        images = [clean_image(entry).to(masks.device) for entry in masks.entries]
        features = [(mask_grid_lab(images, masks.padded_size), settings.color_width)]
        if settings.reads_depth:
            features.append((masks.inverse_depth_255[:, None], settings.depth_width))
        evidence_GHW = None
        if self.memory is not None and objects is not None:
            said_GP = self.memory.transfer(objects.features, objects.classes)
            size = (int(teacher_GHW.shape[1]), int(teacher_GHW.shape[2]))
            drawn = objects.bins.draw(said_GP, size, MASK_STRIDE)
            evidence_GHW = settings.correspondence_weight * drawn
        return mean_field(
            teacher_GHW,
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
            evidence_IHW=evidence_GHW,
        )

    @torch.no_grad()
    def _read_objects(self, masks: MaskBatch, features_BCHW: torch.Tensor) -> _Objects:
        """What the teacher's features say of the boxes."""
        boxes = [
            to_teacher_boxes(*own) for own in zip(masks.entries, masks.truth.boxes, strict=True)
        ]
        seen = BoxBins(torch.cat(boxes), self.settings.num_bins)
        return _Objects(
            bins=BoxBins(torch.cat(masks.truth.boxes), self.settings.num_bins),
            features=seen.read(features_BCHW[masks.truth.image_indices], _FEATURE_STRIDE),
            classes=torch.cat(masks.truth.classes),
        )
