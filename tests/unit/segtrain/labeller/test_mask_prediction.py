"""Boxes in, masks out: geometry, depth, honesty; and the weights that ship."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from pipeline.resources import labeller_path
from pipeline.synth import draw_pattern_tiles, draw_scene, list_objects
from segtrain.errors import CheckpointError
from segtrain.labeller import Labeller, ObjectMask, label_boxes, load_labeller
from segtrain.labeller.crop_network import (
    CropNetwork,
    build_crop_network,
    load_crop_network,
    save_crop_network,
)
from segtrain.labeller.mask_prediction import touched_pixels
from segtrain.modeling.backbones import load_efficientnet_lite_weights
from tests.unit.segtrain.labeller.conftest import draw_disc


@pytest.fixture(scope="module")
def shipped() -> Labeller:
    return load_labeller(labeller_path())


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_a_disc_is_found_with_the_shipped_weights(shipped: Labeller) -> None:
    image, truth, box, _ = draw_disc(0)
    (mask,) = label_boxes(shipped, image, box[None])
    assert _iou(mask.whole(), truth) > 0.85
    assert mask.source == "labeller"
    assert 0.5 < mask.score <= 1
    np.testing.assert_array_equal(mask_api.decode(mask.rle()), mask.whole())


def test_boxes_at_the_border_below_a_pixel_and_outside(shipped: Labeller) -> None:
    image = draw_disc(1)[0]
    boxes = np.array(
        [
            [-5, -5, 40, 30],
            [100.2, 50.6, 100.5, 50.9],
            [90, 70, 400, 400],
            [500, 500, 600, 600],
            [10, 10, 10, 30],
        ],
        np.float32,
    )
    masks = label_boxes(shipped, image, boxes)
    assert [mask.crop.shape for mask in masks] == [(30, 40), (1, 1), (26, 38), (0, 0), (0, 0)]
    assert all(mask.whole().shape == (96, 128) for mask in masks)
    assert [mask.source for mask in masks[1:]][-2:] == ["filled_box", "filled_box"]
    assert all(mask.score == 0 for mask in masks if mask.source == "filled_box")


def test_no_boxes_no_masks(shipped: Labeller) -> None:
    assert label_boxes(shipped, draw_disc(0)[0], np.zeros((0, 4), np.float32)) == []


def test_a_mask_does_not_depend_on_its_neighbours_in_the_batch(shipped: Labeller) -> None:
    image, _, box, _ = draw_disc(2)
    others = np.stack([box, box + 2, box - 3, *[box + k for k in range(12)]])
    (alone,) = label_boxes(shipped, image, box[None])
    together = label_boxes(shipped, image, others)[0]
    assert _iou(alone.whole(), together.whole()) > 0.98


def test_objects_of_one_class_keep_apart(shipped: Labeller) -> None:
    """Of a disc a second box of its class claims a part; one of another class changes nothing."""
    image, _, box, _ = draw_disc(2)
    half_aside = np.array([1, 0, 1, 0], np.float32) * (box[2] - box[0]) / 2
    boxes = np.stack([box, box + half_aside])
    apart = label_boxes(shipped, image, boxes, classes=[4, 4])
    mixed = label_boxes(shipped, image, boxes, classes=[4, 5])
    alone = label_boxes(shipped, image, boxes)
    for a, b in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(a.whole(), b.whole())

    def shared(masks: list[ObjectMask]) -> int:
        return int((masks[0].whole() & masks[1].whole()).sum())

    assert 0 <= shared(apart) < shared(alone)
    with pytest.raises(ValueError, match=r"classes of shape \(1,\) for 2 boxes"):
        label_boxes(shipped, image, boxes, classes=[4])


def test_touched_pixels_hold_the_box() -> None:
    assert touched_pixels(torch.tensor([1.2, 2.0, 3.0, 4.5]), 10, 10) == (2, 5, 1, 3)
    assert touched_pixels(torch.tensor([9.99, 9.99, 10.0, 10.0]), 10, 10) == (9, 10, 9, 10)


class _Everything(torch.nn.Module):
    """A network that finds the whole crop, or nothing."""

    def __init__(self, logit: float, like: CropNetwork) -> None:
        super().__init__()
        self.logit, self.description = logit, like.description

    def forward(self, rgb: torch.Tensor, hints: torch.Tensor) -> torch.Tensor:
        return torch.full((len(rgb), rgb.shape[2] // 2, rgb.shape[3] // 2), self.logit)


@pytest.mark.parametrize("logit", [9.0, -9.0])
def test_a_filled_box_is_called_so_and_scores_nothing(logit: float, shipped: Labeller) -> None:
    blind = dataclasses.replace(shipped, network=_Everything(logit, shipped.network))
    (mask,) = label_boxes(blind, draw_disc(0)[0], np.array([[10, 10, 50, 50]], np.float32))
    assert mask.source == "filled_box"
    assert mask.score == 0
    assert mask.crop.all()


def test_depth_is_used_where_it_is_given_and_must_fit(shipped: Labeller) -> None:
    image, _, box, depth = draw_disc(0)
    assert not label_boxes(shipped, image, box[None])[0].used_depth
    assert label_boxes(shipped, image, box[None], depth)[0].used_depth
    ignoring = dataclasses.replace(shipped, uses_depth=False)
    assert not label_boxes(ignoring, image, box[None], depth)[0].used_depth
    with pytest.raises(ValueError, match="read it from the cache"):
        label_boxes(shipped, image, box[None], depth[:50])


def test_depth_shows_what_colour_hides(shipped: Labeller) -> None:
    _, truth, box, depth = draw_disc(0)
    noise = np.random.default_rng(0).integers(90, 130, (96, 128, 3)).astype(np.uint8)
    (blind,) = label_boxes(shipped, noise, box[None])
    (seeing,) = label_boxes(shipped, noise, box[None], depth)
    assert _iou(seeing.whole(), truth) > 0.97
    assert _iou(seeing.whole(), truth) > _iou(blind.whole(), truth)
    assert (blind.source, seeing.source) == ("labeller", "refined")
    (plain,) = label_boxes(dataclasses.replace(shipped, refines=False), noise, box[None], depth)
    assert plain.source == "labeller"
    blurred = cv2.GaussianBlur(depth, (0, 0), 5)
    (hoping,) = label_boxes(shipped, noise, box[None], blurred)
    assert hoping.source == "labeller"


def test_the_shipped_weights_beat_the_filled_box_on_new_scenes(shipped: Labeller) -> None:
    rng = np.random.default_rng(12345)
    tiles = draw_pattern_tiles(rng, 40)
    found, filled, scores = [], [], []
    for _ in range(8):
        scene = draw_scene(rng, tiles)
        objects = list_objects(scene)
        boxes = np.array([item.box for item in objects], np.float32).reshape(-1, 4)
        for item, mask in zip(objects, label_boxes(shipped, scene.image, boxes), strict=True):
            truth = scene.owners == item.index
            x1, y1, x2, y2 = item.box
            box = np.zeros_like(truth)
            box[y1:y2, x1:x2] = True
            found.append(_iou(mask.whole(), truth))
            filled.append(_iou(box, truth))
            scores.append(mask.score)
    assert np.mean(found) > np.mean(filled) + 0.15
    assert np.corrcoef(scores, found)[0, 1] > 0.3


def test_the_shipped_weights_beat_the_filled_box_on_photos(
    shipped: Labeller, shared_dir: Path
) -> None:
    from benchmarks.labeller_iou import measure, measure_rivals, read_split

    photos = read_split(shared_dir / "data" / "coco-mini", "val")[:8]
    found = measure(photos, labeller_path(), 2)
    boxes = measure_rivals(photos, 2, with_grabcut=False)["filled_box"]
    assert found["mean_iou"] > boxes["mean_iou"] + 0.05
    assert found["filled_boxes"] < 0.05
    assert found["off_outline"]["mean_iou"] > found["mean_iou"]


def test_a_pixel_at_the_outline_does_not_count_off_the_outline() -> None:
    from benchmarks.labeller_iou import iou, iou_off_outline

    truth = np.zeros((20, 20), np.bool_)
    truth[5:15, 5:15] = True
    grown, half = np.zeros_like(truth), truth.copy()
    grown[4:16, 4:16] = True
    half[:, 10:] = False
    assert iou(grown, truth) == pytest.approx(100 / 144)
    assert iou_off_outline(grown, truth) == 1.0
    assert iou_off_outline(half, truth) == pytest.approx(0.5, abs=0.001)
    speck = np.zeros_like(truth)
    speck[3:5, 3:5] = True
    assert iou_off_outline(speck, speck) == 1.0


def test_weights_survive_the_file_and_others_are_refused(tmp_path: Path) -> None:
    network = build_crop_network(pretrained=False)
    save_crop_network(network, tmp_path / "a.safetensors", facts={"calibration": None})
    again, facts = load_crop_network(tmp_path / "a.safetensors")
    assert facts == {"calibration": None}
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    (tmp_path / "b.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="is no labeller"):
        load_crop_network(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="is no labeller"):
        load_crop_network(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto"])
def test_other_encoders_give_masks_of_the_same_size(encoder: str) -> None:
    network = build_crop_network(encoder, pretrained=False).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(1, 3, 64, 64), torch.zeros(1, 2, 64, 64))
    assert logits.shape == (1, 32, 32)


@pytest.mark.parametrize(("size", "tensors"), [(0, 240), (1, 315), (2, 315)])
def test_packaged_weights_fill_the_encoder_without_a_hub(size: int, tensors: int) -> None:
    name = f"tf_efficientnet_lite{size}"
    network = build_crop_network(name, pretrained=False)
    before = network.encoder.conv_stem.weight.clone()
    assert load_efficientnet_lite_weights(network.encoder, name) == tensors
    assert not torch.equal(network.encoder.conv_stem.weight, before)
    other = "tf_efficientnet_lite2" if size < 2 else "tf_efficientnet_lite0"
    with pytest.raises(ValueError, match=r"does not line up|tensors, the model needs"):
        load_efficientnet_lite_weights(network.encoder, other)
    with pytest.raises(ValueError, match="no package has weights"):
        load_efficientnet_lite_weights(network.encoder, "resnet18")


@pytest.mark.parametrize(
    ("encoder", "settings", "expected"),
    [
        ("test_efficientnet", {}, [192, 160, 128]),
        ("test_vit", {"img_size": 128, "out_indices": (1, 3)}, [128, 128, 128]),
    ],
)
def test_near_views_are_larger_where_the_encoder_takes_any_size(
    encoder: str, settings: dict[str, Any], expected: list[int]
) -> None:
    network = build_crop_network(encoder, pretrained=False, **settings).eval()
    seen: list[int] = []
    network.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    image = np.full((40, 50, 3), 90, np.uint8)
    (mask,) = label_boxes(Labeller(network=network), image, np.array([[10.0, 8, 30, 24]]))
    assert seen == expected
    assert mask.crop.shape == (16, 20)
