"""Masks cut anew by sharp depth, and when they are not."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from segtrain.labeller.depth_refinement import (
    cut_by_depth,
    fit_plane,
    refine_by_depth,
    refined_score,
    step_sharpness,
)

BOX = (20, 80, 30, 90)  # rows 20 to 80, columns 30 to 90
THRESHOLD = 0.4


def draw_bracket() -> np.ndarray:
    """An L that touches all sides of the box and fills little of it, in a photo of 100 × 120."""
    mask = np.zeros((100, 120), np.bool_)
    mask[20:80, 30:45] = True
    mask[65:80, 30:90] = True
    return mask


def draw_depth(mask: np.ndarray, step: float = 0.3) -> np.ndarray:
    """A slanted floor whose inverse depth spans more than the object stands out of it."""
    rows, columns = np.indices(mask.shape)
    floor = 1.0 + 0.01 * rows + 0.002 * columns
    noise = np.random.default_rng(0).normal(0, 0.004, mask.shape)
    return (floor + step * mask + noise).astype(np.float32)


def draw_image(shape: tuple[int, int]) -> np.ndarray:
    """Noise: the picture tells nothing."""
    return np.random.default_rng(1).integers(90, 130, (*shape, 3)).astype(np.uint8)


def guess(mask: np.ndarray) -> np.ndarray:
    """A network's probabilities in the box: a blur, with a blob that is no part of the object."""
    seen = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 6.0)
    seen[30:50, 60:80] = 0.6
    return (seen[20:80, 30:90] / seen.max()).astype(np.float32)


def refine(mask: np.ndarray, depth: np.ndarray) -> np.ndarray | None:
    probability = guess(mask)
    return refine_by_depth(
        probability, probability > THRESHOLD, THRESHOLD, draw_image(mask.shape), depth, BOX
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_depth_cuts_the_object_out_of_a_box_that_nobody_looked_into() -> None:
    truth = draw_bracket()
    nothing_known = np.ones((60, 60), np.float32)
    cut = cut_by_depth(nothing_known, 0.5, draw_image(truth.shape), draw_depth(truth), BOX)
    assert cut is not None
    assert iou(cut, truth[20:80, 30:90]) > 0.9
    flat = np.ones(truth.shape, np.float32)
    assert cut_by_depth(nothing_known, 0.5, draw_image(truth.shape), flat, BOX) is None


def test_sharp_depth_cuts_a_hidden_object_out_of_a_slanted_floor() -> None:
    mask = draw_bracket()
    truth = mask[20:80, 30:90]
    assert iou(guess(mask) > THRESHOLD, truth) < 0.8
    found = refine(mask, draw_depth(mask))
    assert found is not None
    assert iou(found, truth) > 0.97


def test_scale_shift_and_direction_of_depth_do_not_matter() -> None:
    mask = draw_bracket()
    depth = draw_depth(mask)
    found = refine(mask, depth)
    assert found is not None
    for other in (7 * depth - 3, -depth):
        again = refine(mask, other.astype(np.float32))
        assert again is not None
        assert iou(found, again) > 0.99


@pytest.mark.parametrize("blur", [3.0, 6.0])
def test_depth_that_is_washed_out_is_not_believed(blur: float) -> None:
    mask = draw_bracket()
    assert refine(mask, cv2.GaussianBlur(draw_depth(mask), (0, 0), blur)) is None


def test_depth_without_an_object_is_not_believed() -> None:
    mask = draw_bracket()
    assert refine(mask, np.ones(mask.shape, np.float32)) is None
    assert refine(mask, draw_depth(np.zeros_like(mask))) is None


def test_a_cut_that_does_not_fit_the_box_is_not_believed() -> None:
    mask = draw_bracket()
    something_else = np.zeros_like(mask)
    something_else[35:60, 35:55] = True
    assert refine(mask, draw_depth(something_else, step=0.6)) is None


def test_a_network_that_saw_next_to_nothing_is_left_alone() -> None:
    mask = draw_bracket()
    nothing = np.zeros((60, 60), np.float32)
    image, depth = draw_image(mask.shape), draw_depth(mask)
    assert refine_by_depth(nothing, nothing > 0.4, THRESHOLD, image, depth, BOX) is None
    everything = np.ones((100, 120), np.float32)
    whole = (0, 100, 0, 120)
    assert refine_by_depth(everything, everything > 0.4, 0.4, image, depth, whole) is None


def test_large_photos_cost_no_more_than_their_window() -> None:
    mask = draw_bracket()
    factor = 30
    large = cv2.resize(mask.astype(np.uint8), None, fx=factor, fy=factor, interpolation=0) > 0
    depth = cv2.resize(draw_depth(mask), None, fx=factor, fy=factor, interpolation=0)
    probability = cv2.resize(guess(mask), None, fx=factor, fy=factor)
    box = tuple(factor * side for side in BOX)
    began = time.process_time()
    found = refine_by_depth(
        probability, probability > THRESHOLD, THRESHOLD, draw_image(large.shape), depth, box
    )
    assert time.process_time() - began < 3
    assert found is not None
    assert iou(found, large[box[0] : box[1], box[2] : box[3]]) > 0.95


def test_the_plane_is_that_of_most_pixels() -> None:
    rows, columns = np.indices((30, 40))
    plane = 0.3 * columns - 0.1 * rows + 5
    depth = plane.astype(np.float64)
    depth[:10, :20] += 8  # a sixth stands out
    assert np.allclose(fit_plane(depth, np.ones(depth.shape, np.bool_)), plane, atol=1e-6)
    few = np.zeros(depth.shape, np.bool_)
    few[0, :2] = True
    assert np.ptp(fit_plane(depth, few)) == 0


def test_sharpness_is_one_at_a_step_and_small_on_a_slope() -> None:
    mask = np.zeros((60, 60), np.bool_)
    mask[20:40, 20:40] = True
    step = np.where(mask, 2.0, 1.0)
    assert step_sharpness(step, mask) == pytest.approx(1)
    assert step_sharpness(-step, mask) == pytest.approx(1)
    assert step_sharpness(cv2.GaussianBlur(step, (0, 0), 4), mask) < 0.5
    assert step_sharpness(np.ones_like(step), mask) == 0
    assert step_sharpness(step, np.ones_like(mask)) == 0


def test_a_refined_mask_keeps_part_of_the_doubt() -> None:
    assert refined_score(1.0) == 1
    assert 0.7 < refined_score(0.6) < 0.8
    assert refined_score(0.3) < refined_score(0.6)
