"""From probabilities to a mask without the specks and pinholes of a network that wavers."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

# Of the largest part's area; smaller parts are dropped. An object behind a post keeps its halves.
_LEAST_PART = 0.1
# Of the threshold: a hole whose mean probability is below it is one that the network is sure of,
# such as that of a ring. On COCO photos hardly any is (docs/labeller.md).
_SURE_HOLE = 0.5


def cut_mask(probability_HW: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """Pixels above a threshold, without small parts, with holes that the network is not sure of.

    Args:
        probability_HW: of every pixel.
        threshold: probability from which a pixel belongs to the mask.

    Returns:
        (H, W); empty if no pixel is above the threshold.
    """
    parts, labels_HW, statistics, _ = cv2.connectedComponentsWithStats(
        (probability_HW > threshold).astype(np.uint8), connectivity=8
    )
    areas = statistics[1:, cv2.CC_STAT_AREA]
    is_kept = np.zeros(parts, np.bool_)
    if parts > 1:
        is_kept[1:] = areas >= _LEAST_PART * areas.max()
    kept_HW = is_kept[labels_HW]
    gaps, labels_HW, statistics, _ = cv2.connectedComponentsWithStats(
        (~kept_HW).astype(np.uint8), connectivity=4
    )
    sums = np.bincount(labels_HW.ravel(), probability_HW.ravel(), minlength=gaps)
    means = sums / np.maximum(statistics[:, cv2.CC_STAT_AREA], 1)
    at_border = np.unique(
        np.concatenate((labels_HW[[0, -1]].ravel(), labels_HW[:, [0, -1]].ravel()))
    )
    is_filled = means >= _SURE_HOLE * threshold
    is_filled[at_border] = False
    is_filled[0] = True
    filled_HW: npt.NDArray[np.bool_] = is_filled[labels_HW]
    return filled_HW
