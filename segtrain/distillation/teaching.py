"""Self-distillation: an averaged teacher, its masks on the student's grid, the loss they give.

Which mask teaches which box is decided in `teacher_matching`.

Shape legend: I student masks, G boxes of an image, J teacher predictions, H×W the mask grid.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from segtrain.losses.projection import dice_distance
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.upsampling import aligned_bilinear_matrix
from segtrain.precision import multiplies_bfloat16
from segtrain.process_group import joint_normaliser


@dataclass(kw_only=True)
class DistillationSettings:
    """How teacher masks are matched to boxes. Source: arXiv 2403.01214, Eq. 7 to 11.

    Attributes:
        loss_weight: λ_dice of the reliable dice loss.
        momentum: of the teacher's moving average.
        depth_matching: whether the depth matching score takes part.
        box_affinity: "iou", or "giou".
        alpha: weight of the box affinity.
        beta: weight of the depth matching score at the first iteration.
        beta_decays: β(t) = beta · (1 − t / total_iterations); constant otherwise.
        total_iterations: T, iterations of the schedule.
        score_threshold: least matching score of a mask that teaches.
        teacher_precision: "bf16" computes the teacher in bfloat16, "student" as precisely as the
            student; "auto" is "bf16" on CPUs that have instructions for it, else "student".
    """

    loss_weight: float = 4.0
    momentum: float = 0.999
    depth_matching: bool = True
    box_affinity: Literal["iou", "giou"] = "iou"
    alpha: float = 0.8
    beta: float = 0.2
    beta_decays: bool = True
    total_iterations: int = 90_000
    score_threshold: float = 0.8
    teacher_precision: Literal["auto", "student", "bf16"] = "auto"

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


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy of the student, in evaluation mode."""
    teacher = copy.deepcopy(student)
    teacher.eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float = 0.999) -> None:
    """Move the teacher's parameters and buffers towards the student's, in place.

    teacher ← momentum · teacher + (1 − momentum) · student; whole-number buffers are copied.

    Raises:
        ValueError: the two have different entries.
    """
    student_state = student.state_dict()
    teacher_state = teacher.state_dict()
    if student_state.keys() != teacher_state.keys():
        different = sorted(student_state.keys() ^ teacher_state.keys())
        raise ValueError(
            f"teacher and student differ in {different[:5]}; build both from one config"
        )
    floats = [k for k, v in teacher_state.items() if v.is_floating_point()]
    torch._foreach_lerp_(
        [teacher_state[k] for k in floats],
        [student_state[k].to(teacher_state[k].dtype) for k in floats],
        1.0 - momentum,
    )
    for key, value in teacher_state.items():
        if not value.is_floating_point():
            value.copy_(student_state[key])


def resize_teacher_masks(
    masks_JHW: torch.Tensor,
    teacher_size: tuple[int, int],
    student_size: tuple[int, int],
    student_padded_size: tuple[int, int],
) -> torch.Tensor:
    """Bring soft masks from the teacher's mask grid to the student's, staying probabilities.

    The way is: aligned up-sampling ×4, crop to the teacher's image, bilinear resize to the
    student's image, zero padding, every fourth pixel from 2. Each step works on rows and columns
    apart, so it is two small matrices and no full-resolution map is made.

    Args:
        masks_JHW: probabilities at stride 4 of the teacher's padded image.
        teacher_size: height and width of the teacher's image in pixels.
        student_size: the same of the student's.
        student_padded_size: of the student's padded batch.

    Returns:
        (J, padded height / 4, padded width / 4) in [0, 1].
    """
    rows, columns = (
        _axis_matrix(
            masks_JHW.shape[1 + axis],
            teacher_size[axis],
            student_size[axis],
            student_padded_size[axis],
        ).to(masks_JHW)
        for axis in (0, 1)
    )
    return torch.matmul(torch.matmul(rows, masks_JHW), columns.T)


@functools.lru_cache(maxsize=64)
def _axis_matrix(cells: int, teacher: int, student: int, padded: int) -> torch.Tensor:
    fine = aligned_bilinear_matrix(cells, 4)[:teacher]
    resized = F.interpolate(fine.T[None], size=student, mode="linear", align_corners=False)[0].T
    return F.pad(resized, (0, 0, 0, padded - student))[2::4].contiguous()


def reliable_dice_loss(
    mask_logits_IHW: torch.Tensor,
    box_indices_I: torch.Tensor,
    pseudo_masks_GHW: torch.Tensor,
    matching_scores_G: torch.Tensor,
    extents_G4: torch.Tensor,
    *,
    threshold: float,
) -> torch.Tensor:
    """Dice distance of the student's masks to reliable teacher masks inside the box.

    Source: Eq. 10 of arXiv 2403.01214.

    Args:
        mask_logits_IHW: student log-odds.
        box_indices_I: box of each student mask.
        pseudo_masks_GHW: the matched teacher mask of each box as probabilities.
        matching_scores_G: score of each match, 0 where there is none.
        extents_G4: filled cells of each box.
        threshold: least score of a mask that teaches.

    Returns:
        Scalar: mean over the student masks whose box has a reliable match, graph-connected zero if
        there is none.
    """
    chosen = torch.nonzero(matching_scores_G[box_indices_I] >= threshold)[:, 0]
    normaliser = joint_normaliser(mask_logits_IHW.new_tensor(float(len(chosen))))
    if len(chosen) == 0:
        return mask_logits_IHW.sum() * 0.0
    boxes = box_indices_I[chosen]
    inside = draw_extents(extents_G4[boxes], tuple(mask_logits_IHW.shape[1:]))
    target = pseudo_masks_GHW[boxes] * inside
    return dice_distance(mask_logits_IHW[chosen].sigmoid(), target).sum() / normaliser
