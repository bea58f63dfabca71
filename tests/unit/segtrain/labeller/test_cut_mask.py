"""Masks are cut without specks and pinholes; what the network is sure of stays."""

from __future__ import annotations

import numpy as np

from segtrain.labeller.cut_mask import cut_mask


def _square(inner: float = 0.9) -> np.ndarray:
    """A square of 10 × 10 pixels in a box of 16 × 16, with a hole of 4 × 4."""
    probability = np.full((16, 16), 0.05, np.float32)
    probability[3:13, 3:13] = 0.9
    probability[6:10, 6:10] = inner
    return probability


def test_a_threshold_alone_is_left_as_it_is() -> None:
    np.testing.assert_array_equal(cut_mask(_square(), 0.4), _square() > 0.4)


def test_small_parts_are_dropped_and_large_ones_stay() -> None:
    probability = _square()
    probability[0, :3] = 0.8
    assert not cut_mask(probability, 0.4)[0].any()
    probability[:2, :6] = 0.8
    assert cut_mask(probability, 0.4)[:2, :6].all(), "12 of 100 pixels"


def test_parts_that_touch_by_a_corner_are_one() -> None:
    probability = _square()
    probability[2, 13] = 0.8
    assert cut_mask(probability, 0.4)[2, 13]


def test_a_doubtful_hole_is_filled_and_a_sure_one_stays() -> None:
    assert cut_mask(_square(0.3), 0.4).sum() == 100
    assert cut_mask(_square(0.02), 0.4).sum() == 84


def test_a_gap_that_reaches_the_box_is_no_hole() -> None:
    probability = np.full((8, 8), 0.9, np.float32)
    probability[:5, 3:5] = 0.35
    np.testing.assert_array_equal(cut_mask(probability, 0.4), probability > 0.4)


def test_nothing_and_everything() -> None:
    assert not cut_mask(np.zeros((5, 7), np.float32), 0.4).any()
    assert cut_mask(np.ones((5, 7), np.float32), 0.4).all()
    assert cut_mask(np.ones((1, 1), np.float32), 0.4).shape == (1, 1)
