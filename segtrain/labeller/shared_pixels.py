"""Pixels in the boxes of several objects of one class: whose they are.

Two objects of one class do not contain each other, as a person does a tie: what two of their masks
claim is one's or the other's. With the odds o = p / (1 − p) of each, seen by itself, a pixel is
object i's, with rivals j that may be wrong too, at the odds

    o_i / (1 + β Σ_j o_j)

β = 1 would believe the rivals as much as the object's own views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from segtrain.labeller.object_crops import paste_probabilities

# Chosen on COCO train photos; .2 to .5 differ by less than chance (docs/labeller.md).
_TRUST_IN_RIVALS = 0.3
_SUREST = 0.9999
# A rival is looked at in so many places of a side at most, as its network saw it in no more: every
# pair of boxes that overlap costs this, and photos may be large.
_MOST_SAMPLES = 128
Pixels = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class SeenObject:
    """What the views say about an object, before it is pasted into the photo.

    Attributes:
        pixels: row start, row stop, column start, column stop that the box touches.
        probabilities: (G, G) of each view, over its window.
        windows: (4,) x1, y1, x2, y2 in the photo of each view.
        spill: mean share of mass outside the box.
    """

    pixels: Pixels
    probabilities: Sequence[torch.Tensor]
    windows: Sequence[torch.Tensor]
    spill: float

    def paste(self, pixels: Pixels, step: int = 1) -> npt.NDArray[np.float32]:
        """Probabilities of the views at pixels of the photo, or at blocks, (V, rows, columns)."""
        return np.stack(
            [
                paste_probabilities(view, window, pixels, step).numpy()
                for view, window in zip(self.probabilities, self.windows, strict=True)
            ]
        )


def paste_among_rivals(seen: SeenObject, rivals: Sequence[SeenObject]) -> npt.NDArray[np.float32]:
    """Views of an object in its box's pixels, where its rivals take what is theirs.

    Args:
        seen: the object.
        rivals: others of its class in the same photo; those that share no pixel change nothing.

    Returns:
        (V, H, W) probabilities.
    """
    pasted_VHW = seen.paste(seen.pixels)
    rival_odds_HW = np.zeros(pasted_VHW.shape[1:], np.float32)
    for rival in rivals:
        shared = _overlap(seen.pixels, rival.pixels)
        if shared is None:
            continue
        joint = np.minimum(_sample(rival, shared), _SUREST)
        r0, r1, c0, c1 = shared
        top, left = seen.pixels[0], seen.pixels[2]
        rival_odds_HW[r0 - top : r1 - top, c0 - left : c1 - left] += joint / (1 - joint)
    if not rival_odds_HW.any():
        return pasted_VHW
    against_HW = 1 + _TRUST_IN_RIVALS * rival_odds_HW
    divided: npt.NDArray[np.float32] = pasted_VHW / (pasted_VHW + (1 - pasted_VHW) * against_HW)
    return divided


def _sample(rival: SeenObject, pixels: Pixels) -> npt.NDArray[np.float32]:
    """Mean probability of its views at the pixels, (rows, columns)."""
    rows, columns = pixels[1] - pixels[0], pixels[3] - pixels[2]
    step = max(-(-max(rows, columns) // _MOST_SAMPLES), 1)
    joint: npt.NDArray[np.float32] = rival.paste(pixels, step).mean(0)
    if step > 1:
        joint = cv2.resize(joint, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    return joint[:rows, :columns]


def _overlap(a: Pixels, b: Pixels) -> Pixels | None:
    r0, r1, c0, c1 = max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3])
    return (r0, r1, c0, c1) if r0 < r1 and c0 < c1 else None
