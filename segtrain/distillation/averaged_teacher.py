"""What every teacher of this package is: a moving average of the student with its own view.

Shape legend: B images, G boxes, D detections, H×W the student's mask grid.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from segtrain.distillation.teaching import resize_teacher_masks, update_teacher
from segtrain.losses.supervision import BatchBoxes, Entries, clean_image
from segtrain.modeling.fcos import Detections
from segtrain.precision import multiplies_bfloat16

SoftMasks = list[tuple[Detections, torch.Tensor]]


@dataclass(kw_only=True)
class TeacherSettings:
    """How a teacher predicts.

    Attributes:
        teacher_precision: "bf16" computes the teacher in bfloat16, "student" as precisely as the
            student; "auto" is "bf16" on CPUs that have instructions for it, else "student".
        teacher_nms_threshold: IoU above which the teacher drops a lower-scored box; None means the
            student's. A higher one leaves more masks to choose from.
    """

    # Whether the method is nothing without its teacher, so that a run must have one.
    is_the_method: ClassVar[bool] = False

    teacher_precision: Literal["auto", "student", "bf16"] = "auto"
    teacher_nms_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.teacher_precision not in {"auto", "student", "bf16"}:
            raise ValueError(
                'teacher_precision must be "auto", "student" or "bf16", got '
                f"{self.teacher_precision!r}"
            )
        nms = self.teacher_nms_threshold
        if nms is not None and not 0 < nms <= 1:
            raise ValueError(f"teacher_nms_threshold must be an IoU in (0, 1] or null, got {nms}")

    @property
    def needs_depth(self) -> bool:
        """Whether the teacher reads depth."""
        return False

    def teaches_in_bfloat16(self, device: torch.device) -> bool:
        """Whether the teacher computes in bfloat16, whatever the student does."""
        if self.teacher_precision == "auto":
            return multiplies_bfloat16(device)
        return self.teacher_precision == "bf16"

    def require_at_least(self, least: float, *names: str) -> None:
        """Refuse a setting below its least value.

        Raises:
            ValueError: names it.
        """
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least:g}, got {getattr(self, name)}")


class AveragedTeacher:
    """A moving average of the student; the trainer owns it.

    Args:
        network: a CondInst of the student's form; put in evaluation mode.
        settings: of its predictions.
    """

    def __init__(self, network: Any, settings: TeacherSettings) -> None:
        self.network = network.eval()
        self.settings = settings
        if settings.teacher_nms_threshold is not None:
            network.fcos_settings = dataclasses.replace(
                network.fcos_settings, nms_threshold=settings.teacher_nms_threshold
            )

    @classmethod
    def copy_of(cls, student: nn.Module, settings: Any) -> Self:
        """A teacher that starts as a frozen copy of the student."""
        network = copy.deepcopy(student)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return cls(network, settings)

    def __str__(self) -> str:
        device = next(iter(self.network.parameters())).device
        is_rounded = self.settings.teaches_in_bfloat16(device)
        return "the teacher" + (", which computes in bfloat16," if is_rounded else "")

    def update(self, student: nn.Module, momentum: float) -> None:
        """Move a step of the moving average towards the student."""
        update_teacher(self.network, student, momentum)

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights and buffers of the averaged student."""
        state: dict[str, torch.Tensor] = self.network.state_dict()
        return state

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights, and what else a resumed run needs."""
        return self.weights()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state)

    @torch.no_grad()
    def detect(
        self, entries: Entries, truth: BatchBoxes, keep: Callable[[int, Detections], torch.Tensor]
    ) -> SoftMasks:
        """Detections of each image that `keep` says to draw, and their soft masks (D, …).

        Computed in bfloat16 if the settings say so, else as precisely as the caller. Other classes
        than the image's are not looked for.
        """
        self.network.eval()
        with self._precision(truth.extents.device):
            found: SoftMasks = self.network.predict_soft_masks(
                [teacher_image(entry) for entry in entries], truth.classes, keep
            )
        return found

    @torch.no_grad()
    def draw(self, entries: Entries, truth: BatchBoxes) -> tuple[list[torch.Tensor], torch.Tensor]:
        """A soft mask for every box of each image, in the teacher's view; as precise as `detect`.

        It is that of the location that predicts the box best.

        Returns:
            The masks of each image, and the mask branch's features (B, C, H, W) at stride 8.
        """
        self.network.eval()
        boxes = [to_teacher_boxes(*own) for own in zip(entries, truth.boxes, strict=True)]
        with self._precision(truth.extents.device):
            drawn: tuple[list[torch.Tensor], torch.Tensor] = self.network.soft_masks_for_boxes(
                [teacher_image(entry) for entry in entries], boxes, truth.classes
            )
        return drawn

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.settings.teaches_in_bfloat16(device):
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def teacher_image(entry: dict[str, Any]) -> torch.Tensor:
    """(3, H, W): the teacher's own view of a photo where there is one, never a perturbed one."""
    image: torch.Tensor = entry["teacher_image"] if "teacher_image" in entry else clean_image(entry)
    return image


def to_student_boxes(entry: dict[str, Any], boxes_D4: torch.Tensor) -> torch.Tensor:
    """Boxes that were found in the teacher's view, in the student's."""
    return boxes_D4 * _scale(entry, boxes_D4)


def to_teacher_boxes(entry: dict[str, Any], boxes_G4: torch.Tensor) -> torch.Tensor:
    """Boxes of the student's view in the teacher's."""
    return boxes_G4 / _scale(entry, boxes_G4)


def to_student_masks(
    entry: dict[str, Any], soft_masks: torch.Tensor, padded_size: tuple[int, int]
) -> torch.Tensor:
    """Soft masks of the teacher's view on the student's mask grid, (D, H, W)."""
    sizes = _size(teacher_image(entry)), _size(entry["image"])
    return resize_teacher_masks(soft_masks, *sizes, padded_size)


def _scale(entry: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:
    (seen_height, seen_width), (height, width) = _size(teacher_image(entry)), _size(entry["image"])
    return boxes.new_tensor([width / seen_width, height / seen_height] * 2)


def _size(image: torch.Tensor) -> tuple[int, int]:
    """Height and width."""
    return int(image.shape[-2]), int(image.shape[-1])
