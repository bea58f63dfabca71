"""DiscoBox: what its structured teacher teaches, and when nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.distillation.disco_box import DiscoBox, DiscoBoxSettings
from segtrain.losses.supervision import BatchBoxes, MaskBatch
from segtrain.modeling.condinst import CondInst

BOX = torch.tensor([[16.0, 16.0, 80.0, 80.0]])  # cells 4 to 20 of 24×32


@pytest.fixture
def two_tone(make_batch: Callable[..., Any]) -> list[dict[str, Any]]:
    """One picture: a bright square in the middle of the box, on black."""
    batch: list[dict[str, Any]] = make_batch(1)[:1]
    batch[0]["image"] = torch.zeros(3, 96, 128, dtype=torch.uint8)
    batch[0]["image"][:, 32:64, 32:64] = 200
    batch[0]["instances"].gt_boxes.tensor = BOX
    del batch[0]["teacher_image"]
    return batch


@pytest.fixture
def teacher(make_model: Callable[..., CondInst]) -> DiscoBox:
    return DiscoBoxSettings(warmup_iterations=10).make_teacher(make_model())


def _masks(batch: list[dict[str, Any]], logits: torch.Tensor, iteration: int) -> MaskBatch:
    size = (96, 128)
    return MaskBatch(
        entries=batch,
        padded_size=size,
        truth=BatchBoxes.of(batch, size, torch.device("cpu")),
        box_indices=torch.zeros(len(logits), dtype=torch.int64),
        mask_logits=logits,
        iteration=iteration,
    )


def test_the_refined_mask_teaches_with_a_growing_weight(
    teacher: DiscoBox, two_tone: list[dict[str, Any]]
) -> None:
    prediction = torch.full((1, 24, 32), 0.3)
    prediction[:, 7:15, 9:17] = 0.7  # not quite on the square, cells 8 to 16
    logits = torch.zeros(1, 24, 32, requires_grad=True)
    masks = _masks(two_tone, logits, iteration=0)
    refined = teacher.refine(masks, [prediction])
    expected = torch.zeros(24, 32, dtype=torch.bool)
    expected[8:16, 8:16] = True
    assert torch.equal(refined[0] > 0.5, expected)
    first = teacher.losses(masks, [prediction])["loss_pseudo"]
    last = teacher.losses(_masks(two_tone, logits, iteration=99), [prediction])["loss_pseudo"]
    assert first.item() == pytest.approx(last.item() / 10)
    (gradient,) = torch.autograd.grad(last, logits)
    assert (gradient[0, 8:16, 8:16] < 0).all()
    assert (gradient[0, 17:20, 17:20] > 0).all()
    # A student that says what its teacher says has nothing to learn.
    same = torch.logit(refined, eps=1e-6)
    assert teacher.losses(_masks(two_tone, same, 99), [prediction])["loss_pseudo"] < 1e-3


def test_an_empty_mask_teaches_nothing(teacher: DiscoBox, two_tone: list[dict[str, Any]]) -> None:
    logits = torch.full((1, 24, 32), -7.0, requires_grad=True)
    masks = _masks(two_tone, logits, iteration=99)
    loss = teacher.losses(masks, [torch.full((1, 24, 32), 0.01)])["loss_pseudo"]
    assert loss.item() == masks.metrics["pseudo_mask_share"] == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.norm() == 0


@pytest.mark.parametrize("reads_depth", [False, True])
@pytest.mark.parametrize("num_boxes", [0, 3])
def test_a_model_learns_from_it(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    num_boxes: int,
    reads_depth: bool,
) -> None:
    settings = DiscoBoxSettings(reads_depth=reads_depth, teacher_precision="student")
    model = make_model(distillation=settings, color=False).train()
    assert model.needs_depth == reads_depth
    teacher = settings.make_teacher(model)
    losses = model(make_batch(num_boxes), teacher=teacher)
    assert {"loss_proj", "loss_pseudo"} < set(losses)
    assert "loss_color" not in losses
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in teacher.network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": []}, "dilations must be"),
        ({"num_updates": 0}, "num_updates must be at least 1"),
        ({"color_width": 0.0}, "color_width must be at least"),
        ({"teacher_nms_threshold": 0.9}, "drops none; leave it out"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscoBoxSettings(**settings)
