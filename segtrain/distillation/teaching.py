"""How an averaged teacher follows the student, and what its masks teach.

Shape legend: I student masks, G boxes of the batch, J teacher predictions, H×W the mask grid.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from segtrain.losses.projection import dice_distance
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.upsampling import aligned_bilinear_matrix
from segtrain.process_group import joint_normaliser


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


def pseudo_mask_loss(
    mask_logits_IHW: torch.Tensor,
    targets_IHW: torch.Tensor,
    weights_I: torch.Tensor,
    extents_I4: torch.Tensor,
) -> torch.Tensor:
    """Dice distance over the map, and divergence of the cells' labels in the box, to a teacher's.

    The divergence is the cross entropy less the teacher's own entropy: the same gradient, and zero
    where the student says what the teacher says.

    Args:
        mask_logits_IHW: student log-odds.
        targets_IHW: the teacher's mask of each, bool or probabilities; 0 outside its box.
        weights_I: how much each teaches.
        extents_I4: filled cells of each box.

    Returns:
        Scalar: Σ weight × (dice + mean divergence) / I; graph-connected zero without masks.
    """
    normaliser = joint_normaliser(mask_logits_IHW.new_tensor(float(len(mask_logits_IHW))))
    if len(mask_logits_IHW) == 0:
        return mask_logits_IHW.sum() * 0.0
    targets = targets_IHW.to(mask_logits_IHW.dtype)
    inside = draw_extents(extents_I4, tuple(mask_logits_IHW.shape[1:]))
    entropies = torch.special.entr(targets) + torch.special.entr(1 - targets)
    divergences = (
        F.binary_cross_entropy_with_logits(mask_logits_IHW, targets, reduction="none") - entropies
    )
    areas_I = inside.flatten(1).sum(1).clamp(min=1)
    in_box_I = (divergences * inside).flatten(1).sum(1) / areas_I
    return (
        weights_I * (dice_distance(mask_logits_IHW.sigmoid(), targets) + in_box_I)
    ).sum() / normaliser


def has_mask_in_box(masks_GHW: torch.Tensor, extents_G4: torch.Tensor) -> torch.Tensor:
    """Whether a soft mask is above 1/2 anywhere in its box, bool (G,)."""
    inside_GHW = draw_extents(extents_G4, tuple(masks_GHW.shape[1:]))
    return ((masks_GHW > 0.5) & inside_GHW).flatten(1).any(1)
