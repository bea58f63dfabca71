"""DiscoBox: what its structured teacher teaches, and when nothing."""

from __future__ import annotations

import dataclasses
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


def _drawn(mask: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    return [mask], torch.zeros(1, 16, 12, 16)


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
    first = teacher.losses(masks, _drawn(prediction))["loss_pseudo"]
    last = teacher.losses(_masks(two_tone, logits, iteration=99), _drawn(prediction))["loss_pseudo"]
    assert first.item() == pytest.approx(last.item() / 10)
    (gradient,) = torch.autograd.grad(last, logits)
    assert (gradient[0, 8:16, 8:16] < 0).all()
    assert (gradient[0, 17:20, 17:20] > 0).all()
    # A student that says what its teacher says has nothing to learn.
    same = torch.logit(refined, eps=1e-6)
    assert teacher.losses(_masks(two_tone, same, 99), _drawn(prediction))["loss_pseudo"] < 1e-3


def test_an_empty_mask_teaches_nothing(teacher: DiscoBox, two_tone: list[dict[str, Any]]) -> None:
    logits = torch.full((1, 24, 32), -7.0, requires_grad=True)
    masks = _masks(two_tone, logits, iteration=99)
    loss = teacher.losses(masks, _drawn(torch.full((1, 24, 32), 0.01)))["loss_pseudo"]
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
    settings = DiscoBoxSettings(
        reads_depth=reads_depth, memory_entries=2 * reads_depth, teacher_precision="student"
    )
    model = make_model(distillation=settings, color=False).train()
    assert model.needs_depth == reads_depth
    teacher = settings.make_teacher(model)
    losses = model(make_batch(num_boxes), teacher=teacher)
    assert {"loss_proj", "loss_pseudo"} < set(losses)
    assert "loss_color" not in losses
    assert ("loss_contrast" in losses) == reads_depth
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_remembered_objects_have_their_say(
    make_model: Callable[..., CondInst], two_tone: list[dict[str, Any]]
) -> None:
    """Where picture and teacher tell nothing, a like object of the class does."""
    two_tone[0]["image"].zero_()
    settings = DiscoBoxSettings(
        warmup_iterations=1,
        memory_entries=2,
        num_bins=8,
        correspondence_weight=5.0,
        pairwise_weight=1.0,
    )
    teacher = settings.make_teacher(make_model())
    assert teacher.memory is not None
    features = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(0))
    square = torch.full((1, 24, 32), 0.05)
    square[:, 8:16, 8:16] = 0.95
    logits = torch.zeros(1, 24, 32, requires_grad=True)
    student = torch.randn(1, 16, 12, 16, requires_grad=True)

    def step(soft_mask: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        masks = dataclasses.replace(_masks(two_tone, logits, iteration=9), mask_features=student)
        objects = teacher._read_objects(masks, features)
        refined = teacher.refine(masks, [soft_mask], objects)
        return teacher.losses(masks, ([soft_mask], features)), refined

    unsure = torch.full((1, 24, 32), 0.5)
    _, alone = step(unsure)
    assert (alone[0] < 0.5).all()  # the background around the box wins
    first, _ = step(square)
    assert first["loss_contrast"].item() == 0  # nothing to compare it with yet
    second, refined = step(unsure)
    assert refined[0, 9:15, 9:15].min() > 0.5
    assert refined[0, :6].max() < 0.5
    assert second["loss_contrast"] > 0
    (gradient,) = torch.autograd.grad(second["loss_contrast"], student)
    assert gradient.norm() > 0
    # A resumed teacher remembers; what is delivered has no memory.
    resumed = settings.make_teacher(make_model())
    resumed.load_state_dict(teacher.state_dict())
    assert resumed.memory is not None
    kept, own = (t.memory.state_dict() for t in (resumed, teacher) if t.memory is not None)
    assert all(torch.equal(kept[name], own[name]) for name in own)
    assert teacher.weights().keys() == teacher.network.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": []}, "dilations must be"),
        ({"num_updates": 0}, "num_updates must be at least 1"),
        ({"memory_entries": -1}, "memory_entries must be at least 0"),
        ({"color_width": 0.0}, "color_width must be at least"),
        ({"teacher_nms_threshold": 0.9}, "drops none; leave it out"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscoBoxSettings(**settings)
