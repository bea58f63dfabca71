"""Masks for given boxes: who may draw one, which is taken, and what the views give together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.modeling import condinst as condinst_module
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.fcos_targets import STRIDES
from segtrain.modeling.masks_for_boxes import (
    NUM_CANDIDATES,
    BoxMasks,
    candidate_locations,
    choose_masks,
    view_image,
)

BOX = torch.tensor([[16.0, 24.0, 48.0, 40.0]])


def draw_logits(*cells: tuple[int, int, int, int]) -> torch.Tensor:
    """Log-odds ±6 at stride 4 of a 64×64 image: one rectangle (r0, r1, c0, c1) each."""
    logits = torch.full((len(cells), 16, 16), -6.0)
    for plane, (r0, r1, c0, c1) in zip(logits, cells, strict=True):
        plane[r0:r1, c0:c1] = 6.0
    return logits


def test_the_mask_that_reaches_the_sides_of_the_box_is_taken() -> None:
    logits = draw_logits((7, 9, 5, 8), (6, 10, 4, 12), (2, 14, 2, 14))
    allowed = torch.ones(1, 3, dtype=torch.bool)
    chosen, score = choose_masks(logits, allowed, BOX, (64, 64))
    assert torch.equal(chosen[0], logits[1])
    assert float(score) > 0.97
    allowed[0, 1] = False
    chosen, worse = choose_masks(logits, allowed, BOX, (64, 64))
    assert not torch.equal(chosen[0], logits[1])
    assert float(worse) < 0.9
    _, unsure = choose_masks(logits / 12, torch.ones(1, 3, dtype=torch.bool), BOX, (64, 64))
    assert float(unsure) < 0.5


def test_candidates_overlap_the_box_by_half_and_its_centre_is_one() -> None:
    sizes = [64 // stride or 1 for stride in STRIDES]
    class_logits = [torch.full((2, size, size), -4.0) for size in sizes]
    quality = [torch.zeros(1, size, size) for size in sizes]
    offsets = [torch.full((4, size, size), 0.01) for size in sizes]  # tiny boxes everywhere
    offsets[0][:, 3, 4] = torch.tensor([20.0, 4.0, 12.0, 12.0]) / 8  # the given box, from (36, 28)
    class_logits[0][1, 3, 4] = 2.0
    found, allowed = candidate_locations(class_logits, offsets, quality, BOX, torch.tensor([1]))
    assert allowed.tolist() == [[True] + [False] * (NUM_CANDIDATES - 2) + [True]]
    assert found.locations[0].tolist() == [36.0, 28.0]
    torch.testing.assert_close(found.boxes[0], BOX[0])
    assert (found.locations[-1] - torch.tensor([32.0, 32.0])).abs().max() <= 4
    assert found.levels[-1] == 0
    large = torch.tensor([[0.0, 0.0, 400.0, 400.0]])
    found, _ = candidate_locations(class_logits, offsets, quality, large, torch.tensor([0]))
    assert found.levels[-1] == 2


def test_views_are_averaged_in_the_pixels_of_the_photo() -> None:
    masks = BoxMasks(BOX, (64, 64), (64, 64))
    left, right = draw_logits((6, 10, 4, 8)), draw_logits((6, 10, 4, 12))
    masks.add(left, torch.tensor([0.4]), (64, 64), mirrored=False)
    masks.add(right.flip(2), torch.tensor([0.8]), (64, 64), mirrored=True)
    fine = right.repeat_interleave(2, 1).repeat_interleave(2, 2)
    masks.add(fine, torch.tensor([0.9]), (128, 128), mirrored=False)
    instances = masks.finish(torch.tensor([0]))
    mask = instances.pred_masks[0]
    assert float(instances.scores) == pytest.approx(0.7)
    assert mask[26:38, 20:44].all()  # two of three views say so
    assert not mask[:23].any()
    assert not mask[:, 49:].any()


def test_an_empty_mask_becomes_the_filled_box_with_score_0() -> None:
    masks = BoxMasks(BOX, (64, 64), (64, 64))
    masks.add(draw_logits((0, 0, 0, 0)), torch.tensor([0.9]), (64, 64), mirrored=False)
    instances = masks.finish(torch.tensor([0]))
    assert float(instances.scores) == 0
    assert int(instances.pred_masks.sum()) == 32 * 16
    assert instances.pred_masks[0, 24:40, 16:48].all()


def test_views_show_image_and_boxes_alike() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:20, 30:50] = 200
    box = torch.tensor([[30.0, 10.0, 50.0, 20.0]])
    for scale, mirrored in ((1.0, False), (1.0, True), (1.5, True), (0.5, False)):
        seen, (found,) = view_image(image, box, scale, mirrored)
        assert seen.shape == (3, 40 * scale, 60 * scale)
        x1, y1, x2, y2 = (int(v) for v in found)
        assert (seen[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] > 190).all()
        assert float(seen.float().sum()) == pytest.approx(3 * 200 * 200 * scale**2, rel=0.02)


def test_a_mirrored_image_gets_mirrored_masks(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(condinst_module, "VIEWS", ((1.0, False), (1.0, True)))
    model = make_model().eval()
    entry = make_batch()[0]
    width = entry["image"].shape[2]
    mirrored = dict(entry) | {"image": entry["image"].flip(2), "instances": entry["instances"][:]}
    x1, y1, x2, y2 = entry["instances"].gt_boxes.tensor.unbind(1)
    mirrored["instances"].gt_boxes = type(entry["instances"].gt_boxes)(
        torch.stack((width - x2, y1, width - x1, y2), 1)
    )
    plain = model.predict_masks_for_boxes([entry])[0]
    turned = model.predict_masks_for_boxes([mirrored])[0]
    torch.testing.assert_close(plain.scores, turned.scores, rtol=1e-4, atol=1e-5)
    differing = (plain.pred_masks != turned.pred_masks.flip(2)).float().mean()
    assert float(differing) < 1e-3
