"""SOLOv2's parts by hand: which cell takes which object, Matrix NMS, masks of given boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks

from segtrain.modeling.backbones import build_timm_fpn
from segtrain.modeling.mask_postprocessing import full_size_instances, tight_boxes
from segtrain.modeling.solov2.grid_targets import assign_cells, mass_centres
from segtrain.modeling.solov2.head import append_coordinates, resize_to_grid
from segtrain.modeling.solov2.matrix_nms import maskness, matrix_nms, suppress_neighbours
from segtrain.modeling.solov2.model import SCALE_RANGES, SOLOv2


@pytest.fixture
def model() -> SOLOv2:
    torch.manual_seed(0)
    return SOLOv2(
        backbone=build_timm_fpn("tf_efficientnet_lite0", out_channels=32, finest_level=2),
        num_classes=3,
        feature_channels=32,
        tower_depth=1,
        mask_channels=16,
        grid_numbers=[8, 6, 5, 4, 3],
    )


@pytest.fixture
def make_masked_batch(
    make_batch: Callable[..., list[dict[str, Any]]],
) -> Callable[..., list[dict[str, Any]]]:
    """Batches whose objects fill their boxes."""

    def make(num_boxes: int = 3) -> list[dict[str, Any]]:
        batch = make_batch(num_boxes)
        for entry in batch:
            instances = entry["instances"]
            masks = torch.zeros(num_boxes, *instances.image_size, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(masks, instances.gt_boxes.tensor.int(), strict=True):
                mask[y1:y2, x1:x2] = True
            instances.gt_masks = BitMasks(masks)
            instances.gt_has_mask = torch.ones(num_boxes, dtype=torch.bool)
        return batch

    return make


def test_matrix_nms_of_three_masks_by_hand() -> None:
    # A has 4 cells; B shares 2 of its 4 with A: IoU 1/3. C is B: IoU 1 with B, 1/3 with A.
    masks = torch.zeros(3, 1, 8, dtype=torch.bool)
    masks[0, 0, :4] = True
    masks[1:, 0, 2:6] = True
    scores, same = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    linear = matrix_nms(masks, same, scores, decay="linear")
    # B: f(1/3) / f(0). C by A: the same; by B, which A itself suppresses: f(1) / f(1/3) = 0.
    torch.testing.assert_close(linear, torch.tensor([0.9, 0.8 * 2 / 3, 0.0]))
    gaussian = matrix_nms(masks, same, scores, decay="gaussian", sigma=0.5)
    by_a, by_b = math.exp(-(1 / 9) / 0.5), math.exp(-(1 - 1 / 9) / 0.5)
    torch.testing.assert_close(gaussian, torch.tensor([0.9, 0.8 * by_a, 0.7 * min(by_a, by_b)]))


def test_matrix_nms_leaves_other_classes_and_no_masks_alone() -> None:
    masks = torch.ones(2, 3, 3, dtype=torch.bool)
    scores = torch.tensor([0.9, 0.8])
    assert torch.equal(matrix_nms(masks, torch.tensor([0, 1]), scores), scores)
    none = torch.zeros(0)
    assert len(matrix_nms(masks[:0], none.long(), none)) == 0
    # Three equal masks: nothing is 0/0, only the best stays.
    three = torch.ones(3, 3, 3, dtype=torch.bool)
    decayed = matrix_nms(three, torch.zeros(3), torch.tensor([0.9, 0.8, 0.7]), decay="linear")
    torch.testing.assert_close(decayed, torch.tensor([0.9, 0.0, 0.0]))


def test_maskness_and_neighbours_by_hand() -> None:
    probabilities = torch.tensor([[[0.9, 0.7, 0.4]], [[0.1, 0.5, 0.2]]])
    torch.testing.assert_close(maskness(probabilities), torch.tensor([0.8, 0.0]))
    scores = torch.tensor([[[[0.2, 0.9, 0.3], [0.1, 0.4, 0.5], [0.6, 0.1, 0.1]]]])
    kept = torch.tensor([[[[0.2, 0.9, 0.0], [0.0, 0.0, 0.0], [0.6, 0.0, 0.0]]]])
    assert torch.equal(suppress_neighbours(scores), kept)


def test_cells_of_objects_by_hand() -> None:
    # Image 0: an object of 40×40 around (50, 50), of which half the mass is at the left; image 1:
    # two that contest a cell, the smaller one wins. Grids: 10 cells of 10 pixels, 5 of 20.
    masks = torch.zeros(1, 25, 25, dtype=torch.bool)
    masks[0, 7:17, 7:10] = True
    box = torch.tensor([[30.0, 30.0, 70.0, 70.0]])
    centre = mass_centres(masks, box)
    torch.testing.assert_close(centre, torch.tensor([[34.0, 48.0]]))
    nested = torch.tensor([[20.0, 20.0, 80.0, 80.0], [40.0, 40.0, 60.0, 60.0]])
    targets = assign_cells(
        [box, nested],
        [torch.tensor([1]), torch.tensor([0, 2])],
        [centre, torch.full((2, 2), 55.0)],
        num_classes=3,
        padded_size=(100, 100),
        grid_numbers=[10, 5],
        scale_ranges=[[0, 50], [40, 1000]],
        centre_share=0.2,
    )
    first, second = targets.labels[:200].view(2, 10, 10), targets.labels[200:].view(2, 5, 5)
    # The region is 8×8 around (34, 48): columns 3, rows 4 and 5 of the first grid.
    assert torch.nonzero(first[0] != 3).tolist() == [[4, 3], [5, 3]]
    assert first[0, 4, 3] == 1
    # 4×4 around 55 in cell 5; the large object is not of this grid's scale.
    assert torch.nonzero(first[1] != 3).tolist() == [[5, 5]]
    assert first[1, 5, 5] == 2
    # √1600 = 40 is in both ranges. Region of the large one: 49 to 61, cells 2 and 3.
    assert torch.nonzero(second[0] != 3).tolist() == [[2, 1]]
    assert torch.nonzero(second[1] == 0).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert targets.box_indices.tolist() == [0, 0, 2, 0, 1, 1, 1, 1]
    assert targets.image_indices.tolist() == [0, 0, 1, 0, 1, 1, 1, 1]
    empty = mass_centres(masks & False, box)
    assert torch.equal(empty, torch.tensor([[50.0, 50.0]]))


def test_a_cell_goes_to_the_smallest_object() -> None:
    boxes = torch.tensor([[0.0, 0.0, 90.0, 90.0], [30.0, 30.0, 60.0, 60.0]])
    targets = assign_cells(
        [boxes],
        [torch.tensor([0, 1])],
        [torch.full((2, 2), 45.0)],
        num_classes=2,
        padded_size=(90, 90),
        grid_numbers=[3],
        scale_ranges=[[0, 1000]],
        centre_share=0.2,
    )
    assert targets.labels.tolist() == [2, 2, 2, 2, 1, 2, 2, 2, 2]
    assert targets.box_indices.tolist() == [1]


def test_maps_on_a_grid_keep_their_mean_and_know_where_they_are() -> None:
    maps = torch.rand(2, 3, 24, 36)
    coarse = resize_to_grid(maps, 4)
    assert coarse.shape == (2, 3, 4, 4)
    # Averaged, not sampled: an impulse anywhere reaches the grid.
    impulse = torch.zeros(1, 1, 24, 24)
    impulse[..., 7, 13] = 1.0
    assert resize_to_grid(impulse, 4).sum() == pytest.approx(16 / 576, rel=0.3)
    assert torch.allclose(resize_to_grid(torch.ones(1, 1, 2, 3), 12), torch.ones(1, 1, 12, 12))
    placed = append_coordinates(maps)
    assert placed[0, 3, 5, 0] == -1
    assert placed[0, 3, 5, -1] == 1
    assert placed[1, 4, 0, 7] == -1


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_every_parameter_learns(
    model: SOLOv2, make_masked_batch: Callable[..., list[dict[str, Any]]], num_boxes: int
) -> None:
    losses = model.train()(make_masked_batch(num_boxes))
    assert set(losses) == {"loss_category", "loss_mask"}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert (losses["loss_mask"].item() == 0) == (num_boxes == 0)


def test_objects_without_a_mask_teach_their_class_only(
    model: SOLOv2, make_masked_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    batch = make_masked_batch()
    for entry in batch:
        entry["instances"].gt_has_mask[:] = False
    losses = model.train()(batch)
    assert losses["loss_mask"].item() == 0
    assert losses["loss_category"].item() > 0
    for entry in batch:
        entry["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match="no gt_masks"):
        model(batch)


def test_every_given_box_gets_a_mask_and_detections_fit_their_masks(
    model: SOLOv2, make_masked_batch: Callable[..., list[dict[str, Any]]]
) -> None:
    model.eval()
    batch = make_masked_batch()
    for entry, found in zip(batch, model.predict_masks_for_boxes(batch), strict=True):
        assert found.pred_masks.shape == (3, entry["height"], entry["width"])
        assert torch.equal(found.pred_classes, entry["instances"].gt_classes)
        assert found.pred_masks.flatten(1).any(1).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        x1, y1, x2, y2 = (2 * entry["instances"].gt_boxes.tensor[0]).tolist()
        rows, columns = torch.nonzero(found.pred_masks[0], as_tuple=True)
        assert rows.min() >= int(y1)
        assert rows.max() <= math.ceil(y2)
        assert columns.min() >= int(x1)
        assert columns.max() <= math.ceil(x2)
    assert len(model.predict_masks_for_boxes(make_masked_batch(0))[0]) == 0
    torch.nn.init.constant_(model.head.cls_logits.bias, 2.0)
    plain = model(batch)[0]["instances"]
    model.encode_masks = True
    coded = model(batch)[0]["instances"]
    assert len(plain) == len(coded.pred_masks_rle) > 0
    assert torch.equal(plain.pred_boxes.tensor, coded.pred_boxes.tensor)
    assert torch.equal(plain.pred_boxes.tensor, tight_boxes(plain.pred_masks))
    assert torch.equal(plain.scores, plain.scores.sort(descending=True).values)


def test_boxes_of_masks_are_their_extents() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[2, 4, 6] = True
    assert tight_boxes(masks).tolist() == [[2, 1, 6, 3], [0, 0, 0, 0], [6, 4, 7, 5]]
    logits = torch.full((2, 3, 4), -9.0)
    logits[1, 1:, 1:] = 9.0
    found = full_size_instances(
        logits, torch.tensor([0, 1]), torch.tensor([0.9, 0.5]), (12, 16), (12, 16), encode=False
    )
    assert found.pred_classes.tolist() == [1]
    assert found.pred_masks.shape == (1, 12, 16)


def test_settings_that_leave_objects_out_are_refused() -> None:
    backbone = build_timm_fpn("tf_efficientnet_lite0", out_channels=32, finest_level=2)
    kind = {"backbone": backbone, "num_classes": 1, "feature_channels": 32}
    with pytest.raises(ValueError, match="grid_numbers has 4 and scale_ranges 5"):
        SOLOv2(**kind, grid_numbers=[8, 6, 5, 4])
    holes = [[0, 40], *SCALE_RANGES[1:]]
    with pytest.raises(ValueError, match=r"scale_ranges\[1\]=\[48, 192\].*leaves out"):
        SOLOv2(**kind, scale_ranges=holes)
    with pytest.raises(ValueError, match="nms_decay must be"):
        SOLOv2(**kind, nms_decay="hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reads p2, p3.*p3, p4.*finest_level=2"):
        SOLOv2(**kind | {"backbone": build_timm_fpn("tf_efficientnet_lite0", out_channels=32)})
