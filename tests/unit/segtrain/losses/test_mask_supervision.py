"""What the switches of the supervision change, each alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.losses.mask_supervision import LossSettings
from segtrain.losses.supervision import BatchBoxes, MaskBatch, warm_up
from segtrain.modeling.condinst import CondInst

MakeModel = Callable[..., CondInst]
MakeBatch = Callable[..., list[dict[str, Any]]]


def _losses(make_model: MakeModel, batch: Any, iteration: int, **settings: Any) -> dict[str, float]:
    model = make_model(warmup_iterations=100, total_iterations=1000, **settings).train()
    model.set_iteration(iteration)
    return {name: value.item() for name, value in model(batch).items()}


def test_weights_over_the_run() -> None:
    assert [warm_up(t, 100) for t in (0, 49, 99, 500)] == [0.01, 0.5, 1.0, 1.0]
    assert [warm_up(t, 100, 200) for t in (0, 199, 249, 299, 500)] == [0, 0, 0.5, 1, 1]


def test_consistency_starts_late_and_is_weighted(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    full = _losses(make_model, batch, 999, consistency=True)["loss_consistency"]
    assert full > 0
    late = {"consistency": True, "consistency_start": 0.5}
    assert _losses(make_model, batch, 400, **late)["loss_consistency"] == 0
    assert _losses(make_model, batch, 549, **late)["loss_consistency"] == pytest.approx(full / 2)
    assert _losses(make_model, batch, 999, **late)["loss_consistency"] == pytest.approx(full)
    half = _losses(make_model, batch, 999, consistency=True, consistency_weight=0.5)
    assert half["loss_consistency"] == pytest.approx(full / 2)
    with pytest.raises(ValueError, match=r"consistency_start.*share"):
        LossSettings(consistency_start=10_000)


def test_consistency_belongs_to_the_whole_map_and_color_can(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    assert not LossSettings().consistency_inside_box_only
    batch = make_batch()
    everywhere = _losses(make_model, batch, 999, consistency=True, color_everywhere=True)
    inside = _losses(make_model, batch, 999, consistency=True, consistency_inside_box_only=True)
    assert everywhere["loss_consistency"] != pytest.approx(inside["loss_consistency"], rel=1e-5)
    assert everywhere["loss_color"] == inside["loss_color"]
    assert everywhere["loss_color_everywhere"] != pytest.approx(inside["loss_color"], rel=1e-5)
    # Boxes that fill the picture make the two readings one.
    for entry in batch:
        entry["instances"].gt_boxes.tensor[:] = torch.tensor([0.0, 0.0, 128.0, 96.0])
    everywhere = _losses(make_model, batch, 999, consistency=True, color_everywhere=True)
    assert everywhere["loss_color_everywhere"] == pytest.approx(everywhere["loss_color"], rel=1e-5)


def test_the_control_takes_a_weight_of_its_own(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    once = _losses(make_model, batch, 999, color_everywhere=True)
    heavy = _losses(make_model, batch, 999, color_everywhere=True, color_everywhere_weight=5.0)
    assert heavy["loss_color_everywhere"] == pytest.approx(5 * once["loss_color_everywhere"])
    assert heavy["loss_color"] == pytest.approx(once["loss_color"])


def test_surroundings_lie_between_the_box_and_the_whole_map(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    batch = make_batch()

    def terms(**settings: Any) -> tuple[float, float]:
        losses = _losses(
            make_model, batch, 999, consistency=True, color_everywhere=True, **settings
        )
        return losses["loss_consistency"], losses["loss_color_everywhere"]

    whole = terms()
    assert terms(surroundings=100.0) == pytest.approx(whole)
    inside = terms(consistency_inside_box_only=True, surroundings=0.0)
    assert terms(surroundings=0.0) == pytest.approx(inside)
    near = terms(surroundings=0.3)
    assert near[0] not in (pytest.approx(whole[0], rel=1e-5), pytest.approx(inside[0], rel=1e-5))
    with pytest.raises(ValueError, match="surroundings"):
        LossSettings(surroundings=-0.1)


def test_margins_stay_on_the_map_and_empty_boxes_empty() -> None:
    masks = MaskBatch(
        entries=[],
        padded_size=(80, 120),
        truth=BatchBoxes(
            boxes=[],
            classes=[],
            extents=torch.tensor([[2, 12, 20, 30], [5, 5, 7, 9]]),
            image_indices=torch.zeros(2, dtype=torch.int64),
        ),
        box_indices=torch.tensor([0, 1]),
        mask_logits=torch.zeros(2, 20, 30),
    )
    assert masks.extents_around(0.5).tolist() == [[0, 17, 15, 30], [5, 5, 6, 10]]
    assert masks.extents_around(None).tolist() == [[0, 20, 0, 30]] * 2


def test_depth_cuts_the_links_of_colour(make_model: MakeModel, make_batch: MakeBatch) -> None:
    batch = make_batch()
    assert make_model(color_cut_by_depth=True).needs_depth
    whole = _losses(make_model, batch, 999)["loss_color"]
    for entry in batch:  # one plane: nothing to cut
        size = entry["image"].shape[-2:]
        entry["inverse_depth_255"] = torch.arange(size[1]).float().expand(size) * 0.7
    assert _losses(make_model, batch, 999, color_cut_by_depth=True)["loss_color"] == whole
    for entry in batch:  # a different depth everywhere: nothing left
        entry["inverse_depth_255"] = torch.rand(entry["image"].shape[-2:]) * 1e5
    assert _losses(make_model, batch, 999, color_cut_by_depth=True)["loss_color"] < 0.1 * whole


def test_annotated_masks_need_no_depth(make_model: MakeModel) -> None:
    assert not make_model(supervision="masks", consistency=True, depth_layer=True).needs_depth
    assert make_model(consistency=True).needs_depth
    assert make_model(depth_layer=True).needs_depth
    assert not make_model(depth_layer=True, depth_weight=0.0).needs_depth


def test_gate_is_off_open_or_half_open(make_model: MakeModel, make_batch: MakeBatch) -> None:
    image = make_batch()[0]["image"]

    def mask_and_depth(**settings: Any) -> tuple[float, float]:
        model = make_model(depth_layer=True, score_threshold=0.0, **settings).eval()
        torch.nn.init.zeros_(model.controller.weight)
        torch.nn.init.constant_(model.controller.bias[-1:], 2.0)  # every mask logit
        depth = model.predict_depth([{"image": image}])[0].mean().item()
        return torch.logit(model.predict_soft_masks([image])[0][1]).mean().item(), depth

    half, wide = 0.5, 1 / (1 + math.exp(-3))
    assert mask_and_depth() == pytest.approx((2 * half, half), rel=1e-4)
    assert mask_and_depth(depth_bias=3.0) == pytest.approx((2 * wide, wide), rel=1e-4)
    assert mask_and_depth(depth_form="off") == pytest.approx((2.0, half), rel=1e-4)
    assert mask_and_depth(depth_form="add", depth_bias=3.0) == pytest.approx((5.0, wide), rel=1e-4)


def test_misspelled_choices_are_refused(make_model: MakeModel) -> None:
    for name in ("supervision", "depth_pooling", "depth_form", "quality", "threshold_on"):
        with pytest.raises(ValueError, match=name):
            make_model(**{name: "nothing"})
    with pytest.raises(TypeError, match="consistancy"):
        make_model(consistancy=True)


def test_threshold_on_class_times_quality_keeps_fewer(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    images = [entry["image"] for entry in make_batch()]
    counts = {
        kind: len(
            make_model(threshold_on=kind, score_threshold=0.0075, num_detections=10**6)
            .eval()
            .predict_soft_masks(images)[0][0]
            .scores
        )
        for kind in ("class", "class_times_quality")
    }
    assert counts["class_times_quality"] == 0 < counts["class"]
