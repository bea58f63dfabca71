"""BoxTeacher by hand: which mask a box gets, how sure the teacher is, and what that teaches."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import pytest
import torch

from segtrain.distillation.averaged_teacher import to_student_boxes, to_teacher_boxes
from segtrain.distillation.box_teacher import (
    BoxTeacherSettings,
    affinity_loss,
    assign_surest,
    mask_aware_confidence,
)
from segtrain.distillation.teaching import pseudo_mask_loss
from segtrain.modeling.condinst import CondInst

EXTENTS = torch.tensor([[1, 4, 1, 4]])


def test_confidence_by_hand() -> None:
    masks = torch.zeros(3, 5, 5)
    masks[0, 1, 1:4] = torch.tensor([0.9, 0.7, 0.4])  # the last is no mask
    masks[0, 0, 0] = 1.0  # outside the box
    masks[1, 2, 2] = 0.5  # not above 1/2
    masks[2, 1:4, 1:4] = 1.0
    scores = torch.tensor([0.5, 0.9, 0.0])
    confidences = mask_aware_confidence(scores, masks, EXTENTS.expand(3, 4))
    assert confidences.tolist() == pytest.approx([sqrt(0.5 * 0.8), 0.0, 0.0])


def test_a_box_gets_the_surest_prediction_that_overlaps_it_most() -> None:
    iou = torch.tensor(
        [
            [0.9, 0.6, 0.49, 0.8, 0.6],
            [0.0, 0.7, 0.00, 0.0, 0.0],
            [0.1, 0.0, 0.00, 0.0, 0.0],
        ]
    )
    same_class = torch.ones(3, 5, dtype=torch.bool)
    same_class[0, 3] = False
    scores = torch.tensor([0.3, 0.9, 0.95, 0.99, 0.4])
    # Of box 0: prediction 1 is box 1's, 2 is too far, 3 of another class, 4 surer than 0.
    assert assign_surest(iou, scores, same_class, 0.5).tolist() == [4, 1, -1]
    assert assign_surest(iou[:, :0], scores[:0], same_class[:, :0], 0.5).tolist() == [-1] * 3
    assert assign_surest(iou[:0], scores, same_class[:0], 0.5).tolist() == []


def test_a_student_that_equals_its_teacher_has_no_loss() -> None:
    torch.manual_seed(0)
    inside = torch.zeros(1, 8, 9)
    extents = torch.tensor([[1, 7, 2, 9]])
    inside[:, 1:7, 2:9] = 1
    labels = ((torch.rand(4, 8, 9) > 0.5) & (inside > 0)).expand(4, 8, 9)
    logits = 40.0 * (2 * labels.float() - 1)
    weights = torch.tensor([0.9, 0.1, 1.0, 0.5])
    arguments = (labels, weights, extents.expand(4, 4))
    assert pseudo_mask_loss(logits, *arguments).item() == pytest.approx(0, abs=1e-5)
    assert affinity_loss(logits, *arguments).item() == pytest.approx(0, abs=1e-5)
    # Probabilities teach without the teacher's own doubt.
    soft = torch.rand(4, 8, 9) * inside
    student = torch.logit(soft, eps=1e-6)
    assert pseudo_mask_loss(student, soft, *arguments[1:]).item() == pytest.approx(0, abs=1e-4)
    assert pseudo_mask_loss(student + 1, soft, *arguments[1:]).item() > 0.05
    assert pseudo_mask_loss(-logits, *arguments).item() > 1
    assert affinity_loss(-logits, *arguments).item() == pytest.approx(0, abs=1e-5)


def test_losses_are_weighted_by_confidence() -> None:
    labels = torch.zeros(2, 5, 5, dtype=torch.bool)
    labels[:, 1:4, 1:4] = True
    logits = torch.zeros(2, 5, 5, dtype=torch.float64)
    extents = EXTENTS.expand(2, 4)
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64)
    # Dice of a map of 1/2: 1 − 2 · 4.5 / (25 / 4 + 9); every cell is log 2 from its label.
    dice = 1 - 9 / (6.25 + 9 + 1e-5)
    expected = (dice + log(2)) * 1.25 / 2
    assert pseudo_mask_loss(logits, labels, weights, extents).item() == pytest.approx(expected)
    # Every linked pair of two halves is as likely alike as not.
    assert affinity_loss(logits, labels, weights, extents).item() == pytest.approx(log(2) * 0.625)
    none = (logits[:0], labels[:0], weights[:0], extents[:0])
    assert pseudo_mask_loss(*none).item() == affinity_loss(*none).item() == 0


def test_affinity_links_by_hand() -> None:
    """A row of seven cells, 1 1 1 0 0 0 0: only pairs two apart on one side of 1/2 count."""
    labels = torch.tensor([[[1, 1, 1, 0, 0, 0, 0]]], dtype=torch.bool)
    # m̃: cells 0 and 1 see themselves and one like neighbour, unlike cell 1's, which is 0.
    smoothed = [1.0, 0.5, 0.75, 0.25, 0.0, 0.0, 0.0]
    linked = [(p, p + 2) for p in range(5) if (smoothed[p] - 0.5) * (smoothed[p + 2] - 0.5) > 0]
    assert linked == [(0, 2), (3, 5), (4, 6)]
    logits = torch.tensor([[[0.3, -1.0, 0.8, 2.0, -0.5, 1.5, 0.1]]], dtype=torch.float64)
    m = logits.sigmoid()[0, 0].tolist()
    extents = torch.tensor([[0, 1, 0, 4]])  # cells 0 to 3
    values = [-log(m[p] * m[q] + (1 - m[p]) * (1 - m[q])) for p, q in linked[:2]]
    # Both cells of the first pair are in the box, one of the second, none of the third.
    expected = (2 * values[0] + values[1]) / 3
    weights = torch.ones(1, dtype=torch.float64)
    loss = affinity_loss(logits, labels, weights, extents)
    assert loss.item() == pytest.approx(expected)


def test_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(2, 5, 6) > 0.5
    extents = torch.tensor([[1, 3, 0, 2], [0, 5, 2, 6]])
    weights = torch.tensor([0.3, 0.9], dtype=torch.float64)
    for loss in (pseudo_mask_loss, affinity_loss):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, labels, weights, extents), (logits,))


def test_boxes_go_to_the_teachers_view_and_back() -> None:
    entry = {"image": torch.zeros(3, 40, 60), "teacher_image": torch.zeros(3, 80, 90)}
    boxes = torch.tensor([[4.0, 6.0, 20.0, 30.0]])
    assert to_teacher_boxes(entry, boxes).tolist() == [[6.0, 12.0, 30.0, 60.0]]
    torch.testing.assert_close(to_student_boxes(entry, to_teacher_boxes(entry, boxes)), boxes)


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_a_model_learns_from_it(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    num_boxes: int,
) -> None:
    settings = BoxTeacherSettings(min_iou=0.0, teacher_precision="student")
    model = make_model(distillation=settings, score_threshold=0.001).train()
    assert not model.needs_depth
    teacher = settings.make_teacher(model)
    losses = model(make_batch(num_boxes), teacher=teacher)
    assert {"loss_proj", "loss_color", "loss_pseudo", "loss_affinity"} < set(losses)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in teacher.network.parameters())
    share = model.pop_metrics()["pseudo_mask_share"]
    assert (share > 0) == (num_boxes > 0)
    # Its weight grows: the first of ten thousand steps here, beyond the last one there.
    model.set_iteration(20_000)
    later = model(make_batch(num_boxes), teacher=teacher)
    assert losses["loss_pseudo"].item() * 10_000 == pytest.approx(
        later["loss_pseudo"].item(), rel=0.05
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_iou": 1.5}, "min_iou must be in"),
        ({"mask_weight": -1.0}, "mask_weight must be at least 0"),
        ({"teacher_precision": "fp8"}, "teacher_precision"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxTeacherSettings(**settings)
