"""Crops and their way back into the photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segtrain.labeller.object_crops import (
    box_coverage,
    boxes_in_crops,
    cell_extents,
    clip_boxes,
    crop_windows,
    cut_crops,
    draw_margins,
    paste_probabilities,
)

corner = st.floats(0, 60)
side = st.floats(0.3, 60)


@given(x=corner, y=corner, width=side, height=side, margin=st.floats(0.05, 0.6))
def test_a_linear_picture_survives_the_way_into_a_crop_and_back(
    x: float, y: float, width: float, height: float, margin: float
) -> None:
    rows, columns = torch.meshgrid(torch.arange(200.0), torch.arange(240.0), indexing="ij")
    picture = (columns + 0.5) * 0.3 + (rows + 0.5) * 0.7
    box = torch.tensor([[60 + x, 50 + y, 60 + x + width, 50 + y + height]])
    window = crop_windows(box, torch.full((1, 4), margin))
    crop = cut_crops(picture[None], window, 64)
    pixels = (int(box[0, 1]) + 1, int(box[0, 3]), int(box[0, 0]) + 1, int(box[0, 2]))
    if pixels[1] <= pixels[0] or pixels[3] <= pixels[2]:
        return
    back = paste_probabilities(crop[0, 0], window[0], pixels)
    truth = picture[pixels[0] : pixels[1], pixels[2] : pixels[3]]
    assert back.shape == truth.shape
    torch.testing.assert_close(back, truth, atol=0.02, rtol=0)


def test_outside_the_photo_a_crop_is_zero() -> None:
    window = torch.tensor([[-10.0, -10.0, 10.0, 10.0]])
    crop = cut_crops(torch.ones(1, 20, 20), window, 40)[0, 0]
    assert crop[:18].abs().max() == 0
    assert crop[:, :18].abs().max() == 0
    torch.testing.assert_close(crop[22:, 22:], torch.ones(18, 18))


def test_a_large_window_is_averaged_not_sampled() -> None:
    stripes = torch.zeros(1, 64, 64)
    stripes[..., ::2] = 1.0
    crop = cut_crops(stripes, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), 16)
    assert (crop - 0.5).abs().max() < 0.26


@given(
    x=st.floats(-20, 90),
    y=st.floats(-20, 90),
    width=side,
    height=side,
    size=st.sampled_from([32, 64]),
)
def test_cells_of_a_box_are_never_empty_and_stay_inside(
    x: float, y: float, width: float, height: float, size: int
) -> None:
    r0, r1, c0, c1 = cell_extents(torch.tensor([[x, y, x + width, y + height]]), size)[0].tolist()
    assert 0 <= r0 < r1 <= size
    assert 0 <= c0 < c1 <= size


def test_coverage_counts_parts_of_pixels() -> None:
    coverage = box_coverage(torch.tensor([[0.5, 1.25, 2.0, 3.0]]), 4, 4)[0]
    torch.testing.assert_close(float(coverage.sum()), 1.5 * 1.75)
    torch.testing.assert_close(float(coverage[1, 0]), 0.5 * 0.75)


def test_a_box_in_its_crop_lies_behind_its_margin() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    window = crop_windows(box, torch.tensor([[0.25, 0.5, 0.25, 0.5]]))
    torch.testing.assert_close(window, torch.tensor([[5.0, 0.0, 35.0, 80.0]]))
    inner = boxes_in_crops(box, window, 60)
    torch.testing.assert_close(inner, torch.tensor([[10.0, 15.0, 50.0, 45.0]]))


def test_boxes_are_cut_to_the_photo() -> None:
    clipped = clip_boxes(torch.tensor([[-3.0, 2.0, 130.0, 99.5]]), 96, 128)
    assert clipped.tolist() == [[0.0, 2.0, 128.0, 96.0]]


def test_margins_differ_by_side_and_keep_their_range() -> None:
    margins = draw_margins(np.random.default_rng(0), 4000, 0.05, 0.55)
    assert margins.min() >= 0.05
    assert margins.max() < 0.55
    assert margins.mean() == pytest.approx(0.3, abs=0.01)
    assert abs(np.corrcoef(margins.T) - np.eye(4)).max() < 0.06
