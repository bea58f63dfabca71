"""The whole model: every switch trains, every parameter gets a gradient, every box gets a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks

from segtrain.distillation import teacher as teacher_module
from segtrain.distillation.teacher import DistillationSettings, Teacher
from segtrain.distillation.teaching import update_teacher
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.fcos import Detections

FCOS_LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
BOXINST = FCOS_LOSSES | {"loss_proj", "loss_color"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, BOXINST),
        ({"depth_layer": True}, BOXINST | {"loss_depth"}),
        ({"consistency": True, "color": False}, BOXINST - {"loss_color"} | {"loss_consistency"}),
        (
            {"depth_layer": True, "consistency": True, "depth_form": "add", "quality": "iou"},
            BOXINST - {"loss_fcos_ctr"} | {"loss_fcos_iou", "loss_depth", "loss_consistency"},
        ),
    ],
)
@pytest.mark.parametrize("num_boxes", [0, 3])
def test_every_switch_trains_every_parameter(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    settings: dict[str, Any],
    names: set[str],
    num_boxes: int,
) -> None:
    model = make_model(**settings).train()
    losses = model(make_batch(num_boxes))
    assert set(losses) == names
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    # DDP waits for every parameter, so even unused ones must be connected.
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    if num_boxes == 0:
        assert all(v.item() == 0 for k, v in losses.items() if k != "loss_fcos_cls")


def test_teacher_teaches_and_stays_out_of_the_state_dict(
    make_model: Callable[..., CondInst], make_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    settings = DistillationSettings(score_threshold=0.01)
    student = make_model(consistency=True, distillation=settings).train()
    teacher = make_model(consistency=True, distillation=settings)
    teacher.fcos_settings.score_threshold = 0.0
    keys = set(student.state_dict())
    losses = student(make_batch(), Teacher(teacher, settings))
    assert set(student.state_dict()) == keys
    assert losses["loss_dice"].item() > 0
    assert student.pop_metrics()["num_reliable_masks"] >= 1
    assert student.pop_metrics() == {}


@pytest.mark.parametrize("student_dtype", [None, torch.bfloat16])
def test_a_teacher_in_bfloat16_teaches_nearly_the_same(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    student_dtype: torch.dtype | None,
) -> None:
    losses = {}
    for precision in ("student", "bf16"):
        settings = DistillationSettings(score_threshold=0.01, teacher_precision=precision)
        student = make_model(consistency=True, distillation=settings).train()
        teacher = make_model(consistency=True, distillation=settings)
        teacher.fcos_settings.score_threshold = 0.0
        with torch.autocast("cpu", dtype=student_dtype, enabled=student_dtype is not None):
            losses[precision] = student(make_batch(), Teacher(teacher, settings))
    difference = (losses["bf16"]["loss_dice"] - losses["student"]["loss_dice"]).abs().item()
    if student_dtype is None:
        assert 0 < difference < 0.05 * losses["student"]["loss_dice"].item()
        assert torch.equal(losses["bf16"]["loss_proj"], losses["student"]["loss_proj"])
    else:
        assert difference == 0
    with pytest.raises(ValueError, match="teacher_precision"):
        DistillationSettings(teacher_precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "device", "capabilities", "is_bfloat16"),
    [
        ("auto", "cpu", {"avx512_bf16": True}, True),
        ("auto", "cpu", {"avx512_f": True, "avx512_bf16": False}, False),
        ("auto", "cpu", {"bf16": True}, True),
        ("auto", "cuda", {"avx512_bf16": True}, False),
        ("student", "cpu", {"avx512_bf16": True}, False),
        ("bf16", "cpu", {}, True),
    ],
)
def test_a_teacher_computes_in_bfloat16_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch,
    precision: Any,
    device: str,
    capabilities: dict[str, bool],
    is_bfloat16: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    settings = DistillationSettings(teacher_precision=precision)
    assert settings.teaches_in_bfloat16(torch.device(device)) == is_bfloat16


def test_soft_masks_of_some_classes_are_those_of_all(
    make_model: Callable[..., CondInst], make_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    model = make_model(depth_layer=True).eval()
    model.fcos_settings.score_threshold = 0.0
    images = [entry["image"] for entry in make_batch()]
    best = model.predict_soft_masks(images)
    # Classes that nobody asked for must not use up the limits.
    model.fcos_settings.num_before_nms = model.fcos_settings.num_detections = 10**6
    everything = model.predict_soft_masks(images)
    assert len(everything[0][0].classes) > len(best[0][0].classes)
    wanted = [found.classes[:2] for found, _ in everything]
    wanted[-1] = wanted[-1][:0]  # an image without boxes
    chosen = model.predict_soft_masks(images, wanted)
    assert len(chosen[-1][0].classes) == 0
    nothing = model.predict_soft_masks(images, [classes[:0] for classes in wanted])
    assert [len(found.classes) for found, _ in nothing] == [0] * len(images)
    for (found, masks), (some, their_masks), classes in zip(
        everything, chosen, wanted, strict=True
    ):
        kept = torch.isin(found.classes, classes)
        assert torch.equal(some.boxes, found.boxes[kept])
        assert torch.equal(some.classes, found.classes[kept])
        torch.testing.assert_close(their_masks, masks[kept], rtol=1e-5, atol=1e-6)
    assert 0 < len(chosen[0][0].classes) < len(everything[0][0].classes)


@pytest.mark.parametrize("depth_matching", [True, False])
def test_masks_that_are_not_drawn_teach_nothing(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    depth_matching: bool,
) -> None:
    settings = DistillationSettings(score_threshold=0.01, depth_matching=depth_matching)
    student = make_model(consistency=True, distillation=settings).train()
    teacher = make_model(consistency=True, distillation=settings)
    teacher.fcos_settings.score_threshold = 0.0
    student.set_iteration(89_000)  # β is small: untrained boxes hardly differ in affinity
    drawn = []
    predict = teacher.predict_soft_masks

    def count_masks(*arguments: Any) -> list[tuple[Detections, torch.Tensor]]:
        predictions = predict(*arguments)
        drawn.append(sum(len(masks) for _, masks in predictions))
        return predictions

    monkeypatch.setattr(teacher, "predict_soft_masks", count_masks)
    batch = make_batch()
    losses = student(batch, Teacher(teacher, settings))
    monkeypatch.setattr(
        teacher_module,
        "possible_matches",
        lambda *known, **_: torch.ones_like(known[3], dtype=torch.bool),
    )
    all_drawn = student(batch, Teacher(teacher, settings))
    assert drawn[0] < drawn[1]
    assert all_drawn["loss_dice"].item() > 0
    torch.testing.assert_close(losses["loss_dice"], all_drawn["loss_dice"], rtol=1e-5, atol=0)


def test_update_teacher_moves_parameters_and_buffers(make_model: Callable[..., CondInst]) -> None:
    teacher, student = make_model(), make_model()
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    update_teacher(teacher, student, 0.75)
    for key, value in teacher.state_dict().items():
        expected = before[key] + (0.25 if value.is_floating_point() else 1)
        torch.testing.assert_close(value, expected)


def test_masks_supervise_only_where_the_config_says_so(
    make_model: Callable[..., CondInst], make_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    batch = make_batch()
    for entry in batch:
        entry["instances"].gt_masks = BitMasks(torch.zeros(3, 96, 128, dtype=torch.bool))
        entry["instances"].gt_has_mask = torch.tensor([True, False, False])
    boxes_only = make_model().train()(batch)
    masks = make_model(supervision="masks").train()(batch)
    mixed = make_model(supervision="mixed").train()(batch)
    assert "loss_mask" not in boxes_only
    assert "loss_proj" not in masks
    assert masks["loss_mask"].item() == pytest.approx(1.0, abs=1e-4)
    assert {"loss_mask", "loss_proj", "loss_color"} <= set(mixed)


def test_inference_and_masks_for_boxes(
    make_model: Callable[..., CondInst], make_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    model = make_model(score_threshold=0.0, num_detections=7).eval()
    # Untrained, half of the boxes would have no area and be left out.
    torch.nn.init.constant_(model.proposal_generator.fcos_head.bbox_pred.bias, 1.0)
    batch = make_batch()
    detected = model(batch)[0]["instances"]
    assert detected.pred_masks.shape == (7, 192, 256)
    assert detected.pred_masks.dtype == torch.bool
    assert bool((detected.scores.diff() <= 0).all())
    prompted = model.predict_masks_for_boxes(batch)[1]
    torch.testing.assert_close(
        prompted.pred_boxes.tensor, batch[1]["instances"].gt_boxes.tensor * 2
    )
    for mask, box in zip(prompted.pred_masks, prompted.pred_boxes.tensor, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert len(rows) > 0
        assert rows.min() >= box[1].floor()
        assert columns.max() < box[2].ceil()
    assert model.predict_masks_for_boxes(make_batch(0))[0].pred_masks.shape == (0, 192, 256)


def test_boxes_in_the_padding_are_left_out(make_model: Callable[..., CondInst]) -> None:
    model = make_model(score_threshold=0.0, num_detections=2000).eval()
    head = model.proposal_generator.fcos_head
    torch.nn.init.zeros_(head.bbox_pred.weight)
    torch.nn.init.constant_(head.bbox_pred.bias, 0.25)  # ±2 px on p3, whose cells are 8 px wide
    image = torch.zeros(3, 33, 97, dtype=torch.uint8)  # padded to 64×128
    (result,) = model([{"image": image, "height": 33, "width": 97}])
    instances = result["instances"]
    boxes = instances.pred_boxes.tensor
    assert len(boxes) > 100
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    assert len(instances.pred_masks) == len(instances.scores) == len(boxes)


def test_missing_depth_is_refused_with_the_remedy(
    make_model: Callable[..., CondInst], make_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    batch = make_batch()
    del batch[1]["inverse_depth_255"]
    with pytest.raises(ValueError, match="pipeline depth"):
        make_model(consistency=True).train()(batch)
