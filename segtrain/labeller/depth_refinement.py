"""A mask cut out of sharp depth, from where the network's mask left off.

Around a box there is mostly one surface, and a plane's inverse depth is affine in the image: what
is left of inverse depth after the plane through the surroundings is the object, whatever it is
painted like. GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004, in OpenCV) divides the window
by three channels: inverse depth off that plane, inverse depth, and lightness. It starts from the
network's mask; what is outside the box is background for certain.

The result is taken only where it says so itself, since no true mask is at hand:

- it reaches the sides of its box as closely as the network's mask does, and
- depth steps across its outline within a pixel, as a sensor's does. Predicted depth is
  washed out there and made masks worse (docs/labeller.md).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from segtrain.labeller.cut_mask import cut_mask
from segtrain.labeller.mask_scores import mean_gap

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
_MARGIN = 0.3  # of the box's sides, of surroundings that are looked at
_LARGEST = 256  # pixels of the window's longer side; larger ones are shrunk
_SURE_BACKGROUND = 0.1  # the network's probability below which a pixel helps to find the plane
_PLANE_SHARE = 0.6  # of the surroundings, that are nearest to the plane
_PLANE_ROUNDS = 5
_CUTS = 3
_FEWEST = 20  # pixels on either side from which GrabCut can learn its colours
_GAP_TOLERANCE = 0.01  # of the box's sides
# Share of the depth step across the outline that lies within a pixel of it. On generated scenes
# .9 and more is usual for true depth, with noise too, and .35 to .6 for the demo depth model's.
_SHARP = 0.7
_NEAR, _FAR = 1, 4  # pixels from the outline
# What refining leaves of the doubt that the network's views raise: 267 refined masks of generated
# scenes had a mean IoU of .89, the score without this .82.
_DOUBT_LEFT = 0.6


def refine_by_depth(
    probability_HW: npt.NDArray[np.float32],
    mask_HW: BoolArray,
    threshold: float,
    image_rgb: npt.NDArray[np.uint8],
    inverse_depth: npt.NDArray[np.float32],
    pixels: tuple[int, int, int, int],
) -> BoolArray | None:
    """Cut the mask of a box anew where depth tells more than the network saw.

    Args:
        probability_HW: the network's, of the pixels that the box touches.
        mask_HW: the mask that was cut out of it.
        threshold: probability from which a pixel belongs to the mask.
        image_rgb: (photo height, photo width, 3) uint8.
        inverse_depth: (photo height, photo width), larger = nearer, any scale and shift.
        pixels: row start, row stop, column start, column stop of the box.

    Returns:
        (H, W) mask; None where depth is blurred, flat, or its mask does not fit the box.
    """
    refined = cut_by_depth(probability_HW, threshold, image_rgb, inverse_depth, pixels)
    if refined is None or mean_gap(refined) > mean_gap(mask_HW) + _GAP_TOLERANCE:
        return None
    return refined


def cut_by_depth(
    probability_HW: npt.NDArray[np.float32],
    threshold: float,
    image_rgb: npt.NDArray[np.uint8],
    inverse_depth: npt.NDArray[np.float32],
    pixels: tuple[int, int, int, int],
) -> BoolArray | None:
    """The mask that depth has in a box, whether or not it fits the box.

    Args:
        probability_HW: the network's, of the pixels that the box touches; ones where nothing is
            known but the box.
        threshold: probability from which a pixel is taken for the object's to begin with.
        image_rgb: (photo height, photo width, 3) uint8.
        inverse_depth: (photo height, photo width), larger = nearer, any scale and shift.
        pixels: row start, row stop, column start, column stop of the box.

    Returns:
        (H, W) mask; None where depth is blurred or flat, or nothing is left of the mask.
    """
    r0, r1, c0, c1 = pixels
    rows = _widen(r0, r1, image_rgb.shape[0])
    columns = _widen(c0, c1, image_rgb.shape[1])
    height, width = rows.stop - rows.start, columns.stop - columns.start
    box = np.s_[r0 - rows.start : r1 - rows.start, c0 - columns.start : c1 - columns.start]
    seen, in_box = np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)
    seen[box], in_box[box] = probability_HW, 1
    shrink = min(_LARGEST / max(height, width), 1.0)
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
    in_box = cv2.resize(in_box, size, interpolation=cv2.INTER_NEAREST)
    # The mean of two sides of a step is neither.
    depth = cv2.resize(inverse_depth[rows, columns], size, interpolation=cv2.INTER_NEAREST)
    colours = cv2.resize(image_rgb[rows, columns], size, interpolation=cv2.INTER_AREA)
    cut = _cut_depth(seen, in_box.astype(np.bool_), threshold, colours, depth.astype(np.float64))
    if cut is None:
        return None
    whole = cv2.resize(cut.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    found = cut_mask(whole[box], 0.5)
    return found if found.any() else None


def refined_score(score: float) -> float:
    """Expected IoU of a refined mask, from the score that its signs would have as any mask's."""
    return 1 - _DOUBT_LEFT * (1 - score)


def _widen(start: int, stop: int, limit: int) -> slice:
    margin = int(np.ceil(_MARGIN * (stop - start)))
    return slice(max(start - margin, 0), min(stop + margin, limit))


def _cut_depth(
    seen_HW: npt.NDArray[np.float32],
    in_box_HW: BoolArray,
    threshold: float,
    colours: npt.NDArray[np.uint8],
    depth_HW: FloatArray,
) -> BoolArray | None:
    """The window's mask; None where there is too little to go by, or depth is blurred."""
    looks_like = in_box_HW & (seen_HW > threshold)
    enough = looks_like.sum() >= _FEWEST and (~looks_like).sum() >= _FEWEST
    if not enough or np.ptp(depth_HW) <= 0:
        return None
    off_plane = depth_HW - fit_plane(depth_HW, ~in_box_HW | (seen_HW < _SURE_BACKGROUND))
    lightness = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[..., 0]
    channels = np.dstack([_to_bytes(off_plane), _to_bytes(depth_HW), lightness])
    labels = np.where(looks_like, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[~in_box_HW] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # of the clusters that GrabCut begins with
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(channels), labels, None, *models, _CUTS, cv2.GC_INIT_WITH_MASK)
    found: BoolArray = (labels & 1).astype(np.bool_)
    return found if step_sharpness(off_plane, found) >= _SHARP else None


def fit_plane(depth_HW: FloatArray, among_HW: BoolArray) -> FloatArray:
    """The plane a·x + b·y + c that most of the chosen pixels are near to, at every pixel.

    Least squares on the nearest share of them, again and again (least trimmed squares).
    """
    rows, columns = np.indices(depth_HW.shape)
    places = np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 3).astype(np.float64)
    values, among = depth_HW.ravel(), among_HW.ravel()
    if among.sum() < len(places[0]):
        return np.full_like(depth_HW, np.median(values))
    kept = among
    for _ in range(_PLANE_ROUNDS):
        plane = places @ np.linalg.lstsq(places[kept], values[kept], rcond=None)[0]
        distance = np.abs(plane - values)
        kept = among & (distance <= np.quantile(distance[among], _PLANE_SHARE) + 1e-9)
    return plane.reshape(depth_HW.shape)


def step_sharpness(depth_HW: FloatArray, mask_HW: BoolArray) -> float:
    """Depth step across a mask's outline from pixel to pixel, by that between a few pixels off.

    1 where depth steps as the mask does; below 1 where it slopes; 0 where there is no step.
    """
    ends = []
    for side_HW in (mask_HW, ~mask_HW):
        near = _mean_within(depth_HW, side_HW, 0, _NEAR)
        far = _mean_within(depth_HW, side_HW, _NEAR + 1, _FAR)
        if near is None:
            return 0.0
        # What is thinner than that has nothing farther off.
        ends.append((near, near if far is None else far))
    (near_in, far_in), (near_out, far_out) = ends
    return (near_in - near_out) / (far_in - far_out) if far_in != far_out else 0.0


def _mean_within(depth_HW: FloatArray, side_HW: BoolArray, begin: int, end: int) -> float | None:
    """Mean depth of the pixels that are `begin` to `end` pixels inside a side of the outline."""
    inside = side_HW.astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    band = cv2.erode(inside, kernel, iterations=begin) > cv2.erode(inside, kernel, iterations=end)
    return float(depth_HW[band].mean()) if band.any() else None


def _to_bytes(values: FloatArray) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(values, [1, 99])
    scaled = (values - low) / max(high - low, 1e-12)
    return (scaled.clip(0, 1) * 255).astype(np.uint8)
