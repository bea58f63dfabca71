"""A mask's score: the IoU that it is expected to have, from signs that need no true mask.

The signs are summed with weights and the sum is mapped to IoU by a monotone curve; both are fitted
on generated scenes, whose true masks are known, and travel with the weights. So only signs serve
that mean the same on photos: those of the cut mask do; how sure its pixels are does not, since
networks are less sure of photos than of scenes (docs/labeller.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segtrain.labeller.cut_mask import cut_mask

FloatArray = npt.NDArray[np.float64]
# A pixel belongs to the mask from here on. The mask with the best expected overlap takes every
# pixel that is likelier than Dice / 2 = IoU / (1 + IoU) (arXiv 1402.1892), .43 at an IoU of .75, if
# the probabilities are right. Learning from scenes makes masks too small on photos, learning from
# boxes makes them fuller. Both chosen on COCO train photos (docs/labeller.md).
STARTING_THRESHOLD, ADAPTED_THRESHOLD = 0.3, 0.4
_STEPS_TO_ADAPTED = 200
_SUREST = 0.95
# Signs of a larger mask are taken of every second, third, … pixel: the network saw it in fewer.
_MOST_SIGN_PIXELS = 512
SIGNS = ("agreement", "stability", "expected_overlap", "fill")


@dataclass(frozen=True, kw_only=True)
class MaskSigns:
    """What can be seen of a mask without knowing the true one.

    Calibrations of before name signs that `SIGNS` leaves out.

    Attributes:
        confidence: mean |2p − 1| in the box.
        agreement: mean IoU of the views' masks with the joint mask.
        stability: IoU of the masks cut at twice and at half the threshold.
        expected_overlap: Σp over the mask, by its area and Σp outside: its IoU if the
            probabilities were right.
        worst_agreement: the least of them.
        side_agreement: 1 − mean gap between the mask and the box's four sides, as a share of the
            box's side.
        spill: mass of probability outside the box by that inside, in the widest view.
        fill: share of the box that the mask fills.
        log_size: log2 of the square root of the box's area in pixels.
    """

    confidence: float
    agreement: float
    stability: float
    expected_overlap: float
    worst_agreement: float
    side_agreement: float
    spill: float
    fill: float
    log_size: float


@dataclass(frozen=True, kw_only=True)
class ScoreCalibration:
    """From signs to the expected IoU.

    Attributes:
        weights: by sign.
        knots: increasing sums of weighted signs.
        ious: non-decreasing expected IoU at the knots.
    """

    weights: Mapping[str, float]
    knots: Sequence[float]
    ious: Sequence[float]

    def score(self, signs: MaskSigns) -> float:
        """Expected IoU in 0..1."""
        total = sum(weight * float(getattr(signs, name)) for name, weight in self.weights.items())
        return float(np.clip(np.interp(total, self.knots, self.ious), 0.0, 1.0))

    def as_json(self) -> dict[str, Any]:
        """For the weights' metadata."""
        return {
            "weights": dict(self.weights),
            "knots": list(self.knots),
            "ious": list(self.ious),
        }


def threshold_after(iterations: int) -> float:
    """Threshold of weights that were adapted for so long: a short adaptation changes little.

    Best on COCO train photos were .3 after 10 to 40 iterations, .35 after 80 and 150, .4 after 300.
    """
    share = min(iterations / _STEPS_TO_ADAPTED, 1.0)
    return STARTING_THRESHOLD + share * (ADAPTED_THRESHOLD - STARTING_THRESHOLD)


# Without a fitted calibration the probabilities are believed.
UNCALIBRATED = ScoreCalibration(
    weights={"expected_overlap": 1.0}, knots=(0.0, 1.0), ious=(0.0, 1.0)
)


def look_at_mask(
    mask_HW: npt.NDArray[np.bool_],
    views_VHW: npt.NDArray[np.float32],
    spill: float,
    threshold: float,
) -> MaskSigns:
    """Look at a mask that views of an object led to.

    Args:
        mask_HW: the mask, as `cut_mask` or depth left it.
        views_VHW: probabilities of each view in the box's pixels.
        spill: see `MaskSigns`.
        threshold: probability from which a pixel belongs to the mask.

    Returns:
        The signs; views are cut as masks are.
    """
    height, width = mask_HW.shape
    step = -(-max(height, width) // _MOST_SIGN_PIXELS)
    views_VHW, mask = views_VHW[:, ::step, ::step], mask_HW[::step, ::step]
    joint = views_VHW.mean(0).astype(np.float32)
    overlaps = [_iou(cut_mask(view, threshold), mask) for view in views_VHW]
    surest = cut_mask(joint, min(2 * threshold, _SUREST))
    return MaskSigns(
        confidence=float(np.abs(2 * joint - 1).mean()),
        agreement=float(np.mean(overlaps)),
        stability=_iou(surest, cut_mask(joint, threshold / 2)),
        expected_overlap=float(joint[mask].sum() / (mask.sum() + joint[~mask].sum() + 1e-6)),
        worst_agreement=float(np.min(overlaps)),
        side_agreement=1.0 - mean_gap(mask),
        spill=min(spill, 2.0),
        fill=float(mask.mean()),
        log_size=math.log2(max(math.sqrt(height * width), 1.0)),
    )


def fit_calibration(signs: Sequence[MaskSigns], ious: Sequence[float]) -> ScoreCalibration:
    """A weight for every sign, then the monotone curve nearest to the IoUs.

    A sign weighs as its covariance with the IoU, in deviations. Least squares would also learn how
    signs go together on scenes, which is other on photos.

    Args:
        signs: of masks.
        ious: their true IoU.

    Raises:
        ValueError: fewer than 50 masks.
    """
    if len(signs) < 50:
        raise ValueError(f"a calibration needs at least 50 masks, got {len(signs)}")
    rows = np.array([[getattr(item, name) for name in SIGNS] for item in signs], np.float64)
    target = np.asarray(ious, np.float64)
    deviation = rows.std(0) + 1e-9
    standard = (rows - rows.mean(0)) / deviation
    weights = standard.T @ (target - target.mean()) / len(rows) / deviation
    totals = rows @ weights
    order = np.argsort(totals, kind="stable")
    fitted = _monotone(target[order])
    # A few knots are enough and travel well.
    places = np.unique(np.linspace(0, len(order) - 1, 24).round().astype(int))
    knots, values = totals[order][places], fitted[places]
    increasing = np.concatenate(([True], np.diff(knots) > 1e-9))
    return ScoreCalibration(
        weights=dict(zip(SIGNS, weights.tolist(), strict=True)),
        knots=knots[increasing].tolist(),
        ious=values[increasing].tolist(),
    )


def _monotone(values: FloatArray) -> FloatArray:
    """Nearest non-decreasing sequence: neighbours that are out of order share their mean."""
    levels: list[tuple[float, int]] = []
    for value in values.tolist():
        level, count = value, 1
        while levels and levels[-1][0] > level:
            before, size = levels.pop()
            level = (before * size + level * count) / (size + count)
            count += size
        levels.append((level, count))
    return np.repeat([level for level, _ in levels], [count for _, count in levels])


def _iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def mean_gap(mask: npt.NDArray[np.bool_]) -> float:
    """Mean distance of a box's mask from the four sides, as shares of the sides; 1 for none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 1.0
    height, width = mask.shape
    gaps = (
        rows[0] / height,
        (height - 1 - rows[-1]) / height,
        columns[0] / width,
        (width - 1 - columns[-1]) / width,
    )
    return float(np.mean(gaps))
