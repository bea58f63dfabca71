"""Which of the teacher's masks teach, and what an empty one would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.distillation.teacher import DistillationSettings
from segtrain.losses.projection import dice_distance
from segtrain.losses.supervision import BatchBoxes, MaskBatch
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.fcos import Detections

BOX = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
CLASS = torch.zeros(1, dtype=torch.int64)


def _masks(make_batch: Callable[..., Any], logit: float) -> tuple[MaskBatch, torch.Tensor]:
    batch = make_batch(1)[:1]
    batch[0]["instances"].gt_boxes.tensor = BOX
    del batch[0]["teacher_image"]
    logits = torch.full((1, 24, 32), logit, requires_grad=True)
    size = (96, 128)
    truth = BatchBoxes.of(batch, size, torch.device("cpu"))
    masks = MaskBatch(
        entries=batch, padded_size=size, truth=truth, box_indices=CLASS, mask_logits=logits
    )
    return masks, logits


def _predict(probability: float) -> list[tuple[Detections, torch.Tensor]]:
    cell = torch.zeros(1, 2)
    found = Detections(
        boxes=BOX,
        scores=torch.ones(1),
        classes=CLASS,
        levels=CLASS,
        cells=cell.long(),
        locations=cell,
    )
    return [(found, torch.full((1, 24, 32), probability))]


def test_dice_of_two_empty_masks_has_a_huge_gradient() -> None:
    """The reason: 2 t / (Σx² + Σt² + ε) is at most 1 / √ε = 316 over a mask."""

    def gradient_norm(probability: float, target: float) -> float:
        x = torch.full((1, 64), probability, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(dice_distance(x, torch.full_like(x, target)).sum(), x)
        return gradient.norm().item()

    assert gradient_norm(1e-6, 4e-4) == pytest.approx(316, rel=0.02)
    assert gradient_norm(1e-6, 0.51) < 1
    assert gradient_norm(0.5, 0.9) < 1


@pytest.mark.parametrize("depth_matching", [True, False])
def test_an_empty_mask_teaches_nothing(
    make_model: Callable[..., CondInst], make_batch: Callable[..., Any], depth_matching: bool
) -> None:
    model = make_model()
    settings = DistillationSettings(score_threshold=0.5, depth_matching=depth_matching)
    teacher = settings.make_teacher(model)

    masks, logits = _masks(make_batch, -7.0)
    empty = teacher.losses(masks, _predict(1e-4))["loss_dice"]
    assert empty.item() == 0
    assert masks.metrics["reliable_share"] == 0
    (left_out,) = torch.autograd.grad(empty, logits)
    assert left_out.norm().item() == 0

    masks, logits = _masks(make_batch, 0.0)
    taught = teacher.losses(masks, _predict(0.9))["loss_dice"]
    assert masks.metrics["reliable_share"] == 1
    (gradient,) = torch.autograd.grad(taught, logits)
    assert 0 < gradient.norm().item() < settings.loss_weight
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_teacher_drops_fewer_boxes_than_the_student(make_model: Callable[..., CondInst]) -> None:
    student = make_model()
    settings = DistillationSettings(teacher_nms_threshold=0.9)
    assert settings.make_teacher(student).network.fcos_settings.nms_threshold == 0.9
    assert student.fcos_settings.nms_threshold == 0.6
    with pytest.raises(ValueError, match="teacher_nms_threshold"):
        DistillationSettings(teacher_nms_threshold=90)
