"""The score: monotone, calibrated, made from signs that mean something."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.labeller.cut_mask import cut_mask
from segtrain.labeller.mask_scores import (
    STARTING_THRESHOLD,
    UNCALIBRATED,
    MaskSigns,
    ScoreCalibration,
    _monotone,
    fit_calibration,
    look_at_mask,
)

SIGNS = MaskSigns(
    confidence=0.8,
    agreement=0.9,
    stability=0.7,
    expected_overlap=0.8,
    worst_agreement=0.85,
    side_agreement=0.95,
    spill=0.1,
    fill=0.6,
    log_size=6.0,
)


def cut_views(
    views: np.ndarray, spill: float, threshold: float = STARTING_THRESHOLD
) -> tuple[np.ndarray, MaskSigns]:
    """The mask of views' mean, and its signs."""
    mask = cut_mask(views.mean(0), threshold)
    return mask, look_at_mask(mask, views, spill, threshold)


def test_sure_views_that_agree_get_full_signs() -> None:
    view = np.zeros((10, 20), np.float32)
    view[2:8, 5:15] = 1.0
    mask, signs = cut_views(np.stack([view, view]), 0.0)
    np.testing.assert_array_equal(mask, view > 0)
    assert signs.confidence == 1.0
    assert signs.agreement == signs.worst_agreement == 1.0
    assert signs.side_agreement == pytest.approx(1 - np.mean([0.2, 0.2, 0.25, 0.25]))
    assert signs.fill == pytest.approx(60 / 200)


def test_a_large_mask_has_the_signs_of_a_small_one() -> None:
    """Of a photo of 12 million pixels every third or so is looked at; the mask is whole."""
    small = np.random.default_rng(0).random((2, 30, 40)).astype(np.float32)
    large = small.repeat(50, 1).repeat(50, 2)
    mask, signs = cut_views(large, 0.1)
    assert mask.shape == (1500, 2000)
    of_small = dataclasses.asdict(cut_views(small.repeat(10, 1).repeat(10, 2), 0.1)[1])
    found = dataclasses.asdict(signs)
    assert found.pop("log_size") == pytest.approx(of_small.pop("log_size") + np.log2(5))
    assert found == pytest.approx(of_small, abs=0.02)


def test_views_that_differ_lower_the_agreement() -> None:
    left, right = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    left[:, :5], right[:, 3:] = 0.9, 0.8
    _, signs = cut_views(np.stack([left, right]), 0.0)
    assert signs.agreement < 0.9
    assert signs.confidence < 0.8


def test_a_doubtful_rim_lowers_stability_and_expected_overlap() -> None:
    view = np.zeros((10, 10), np.float32)
    view[1:9, 1:9] = 0.4
    view[3:7, 3:7] = 1.0
    _, signs = cut_views(np.stack([view, view]), 0.0, threshold=0.3)
    assert signs.agreement == 1.0
    assert signs.stability == pytest.approx(16 / 64)
    assert signs.expected_overlap == pytest.approx((16 + 0.4 * 48) / 64)
    _, signs = cut_views(np.stack([view, view]), 0.0, threshold=0.45)
    assert signs.expected_overlap == pytest.approx(16 / (16 + 0.4 * 48))


def test_no_mask_touches_no_side() -> None:
    _, signs = cut_views(np.zeros((2, 6, 6), np.float32), 0.0)
    assert signs.side_agreement == 0.0
    assert signs.fill == 0.0


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_monotone_fit_keeps_the_mean_and_never_falls(values: list[float]) -> None:
    fitted = _monotone(np.array(values))
    assert len(fitted) == len(values)
    assert (np.diff(fitted) >= -1e-12).all()
    assert fitted.mean() == pytest.approx(np.mean(values))


def _examples(count: int) -> tuple[list[MaskSigns], np.ndarray]:
    rng = np.random.default_rng(0)
    stability, agreement = rng.uniform(0.3, 1, count), rng.uniform(0.4, 1, count)
    ious = np.clip(0.5 * stability + 0.5 * agreement + rng.normal(0, 0.05, count), 0, 1)
    signs = [
        dataclasses.replace(SIGNS, stability=float(s), agreement=float(a))
        for s, a in zip(stability, agreement, strict=True)
    ]
    return signs, ious


def test_a_fitted_score_predicts_iou_and_rises_with_its_signs() -> None:
    signs, ious = _examples(400)
    calibration = fit_calibration(signs[:300], ious[:300].tolist())
    scores = np.array([calibration.score(item) for item in signs[300:]])
    assert np.abs(scores - ious[300:]).mean() < 0.06
    assert abs(scores.mean() - ious[300:].mean()) < 0.04
    rising = [
        calibration.score(dataclasses.replace(SIGNS, stability=float(value)))
        for value in np.linspace(0, 1, 30)
    ]
    assert (np.diff(rising) >= 0).all()
    assert rising[-1] > rising[0]


def test_a_calibration_survives_json() -> None:
    signs, ious = _examples(100)
    calibration = fit_calibration(signs, ious.tolist())
    again = ScoreCalibration(**calibration.as_json())
    assert again.score(signs[0]) == calibration.score(signs[0])


def test_too_few_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 50 masks, got 1"):
        fit_calibration([SIGNS], [0.5])


def test_a_score_does_not_hang_on_how_sure_the_pixels_are() -> None:
    """Networks are less sure of photos than of the scenes that the score is fitted on."""
    signs, ious = _examples(100)
    calibration = fit_calibration(signs, ious.tolist())
    unsure = dataclasses.replace(SIGNS, confidence=0.1, spill=1.0, side_agreement=0.5)
    assert calibration.score(unsure) == calibration.score(SIGNS)


def test_without_calibration_the_expected_overlap_is_the_score() -> None:
    assert UNCALIBRATED.score(SIGNS) == pytest.approx(0.8)


def test_pixels_likelier_than_half_of_the_dice_belong_to_the_mask() -> None:
    """A doubtful rim of .45 is taken: with it the expected overlap is larger than without."""
    views = np.full((1, 8, 8), 0.02, np.float32)
    views[0, 2:6, 2:6] = 0.45
    views[0, 3:5, 3:5] = 0.98
    _, signs = cut_views(views, spill=0.0)
    assert signs.fill == 16 / 64
    assert cut_views(views, 0.0, threshold=0.6)[1].fill == 4 / 64
