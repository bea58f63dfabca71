"""COCO polygons and run-length codes: checked, then decoded.

pycocotools takes what it is given: a number too large costs it the machine's memory, counts that
end early leave uninitialised pixels. So nothing reaches it but through this file. The rules:

- Polygons are lists of x, y, x, y, … in pixels, finite, at most one image size outside the image.
  A ring of fewer than three points encloses nothing and is passed over, if another has three.
- A run-length code has its image's size, and its counts fill that size exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from segtrain.data.coco_findings import FINDING_KINDS, shorten
from segtrain.errors import DatasetError

# `mask_source` of an annotation whose segmentation is its box: no mask was found in it.
FILLED_BOX = "filled_box"
# That of a mask which sharp depth cut anew.
REFINED = "refined"
# Outlines are walked pixel by pixel, in memory: real ones are far shorter than this many sides.
_MAX_OUTLINE_SIDES = 64
# A count of more 5-bit digits would not fit 32 bits, which is how pycocotools holds it.
_MAX_COUNT_DIGITS = 7


class _UnusableError(Exception):
    """Kind and detail of a segmentation that cannot be used."""


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[str, str] | None:
    """Say what is wrong with a segmentation, without decoding it.

    Args:
        segmentation: whatever stands in the file.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        Kind (of `FINDING_KINDS`) and detail; None when it can be decoded.
    """
    try:
        _checked(segmentation, height, width)
    except _UnusableError as error:
        kind, detail = error.args
        return kind, f"{FINDING_KINDS[kind].meaning}: {detail}"
    return None


def decode_segmentation(segmentation: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Pixels of COCO polygons or of a run-length code.

    Args:
        segmentation: whatever stands in the file; None is an empty mask.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (height, width), 0 or 1.

    Raises:
        DatasetError: the segmentation breaks one of the rules above.
    """
    if segmentation is None:
        return np.zeros((height, width), dtype=np.uint8)
    encoded = encode_segmentation(segmentation, height, width)
    return np.asarray(mask_api.decode(encoded), dtype=np.uint8)


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation as a compressed run-length code, `size` and `counts` as bytes.

    Raises:
        DatasetError: the segmentation breaks one of the rules above.
    """
    try:
        checked = _checked(segmentation, height, width)
    except _UnusableError as error:
        kind, detail = error.args
        raise DatasetError(f"{FINDING_KINDS[kind].meaning}: {detail}") from None
    if isinstance(checked, list):
        return dict(mask_api.merge(mask_api.frPyObjects(checked, height, width)))
    if isinstance(checked["counts"], list):
        return dict(mask_api.frPyObjects(checked, height, width))
    return checked


def encode_mask(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """A (height, width) mask as COCO RLE whose counts are text, so that JSON can hold it."""
    encoded = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": encoded["counts"].decode("ascii"),
    }


def _checked(segmentation: Any, height: int, width: int) -> Any:
    """Polygons of three points and more, or a run-length code whose counts fill the image."""
    if isinstance(segmentation, list):
        return _checked_polygons(segmentation, height, width)
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        return _checked_code(segmentation, height, width)
    raise _UnusableError("mask_malformed", f"it is {shorten(repr(segmentation))}")


def _checked_polygons(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    rings = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise _UnusableError(
                "mask_malformed",
                f"expected a list of polygons [x, y, x, y, …], got {shorten(repr(polygons))}",
            )
        if not set(map(type, polygon)) <= {int, float} or len(polygon) % 2:
            raise _UnusableError(
                "mask_malformed", f"a polygon is pairs of numbers, got {shorten(repr(polygon))}"
            )
        if len(polygon) >= 6:
            _require_near(polygon, height, width)
            rings.append(polygon)
    if not rings:
        raise _UnusableError(
            "mask_malformed", f"no polygon has three points: {shorten(repr(polygons))}"
        )
    return rings


def _require_near(polygon: list[float], height: int, width: int) -> None:
    """Refuse coordinates that would take pycocotools more memory than an image of that size."""
    try:
        is_finite = math.isfinite(sum(polygon))
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise _UnusableError("mask_malformed", "a coordinate is not finite")
    xs, ys = polygon[0::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    if left < -width or right > 2 * width or top < -height or bottom > 2 * height:
        raise _UnusableError(
            "mask_far_outside",
            f"it spans x {left:g} to {right:g}, y {top:g} to {bottom:g} in an image of "
            f"{width}×{height}",
        )
    longest = _MAX_OUTLINE_SIDES * (height + width)
    if len(xs) * max(right - left, bottom - top) <= longest:
        return
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if steps > longest:
        raise _UnusableError(
            "mask_malformed", f"an outline of {steps:.0f} pixels in an image of {width}×{height}"
        )


def _checked_code(code: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    if code["size"] not in ([height, width], (height, width)):
        raise _UnusableError(
            "mask_of_other_size",
            f"size {shorten(repr(code['size']))}, expected [height, width] = [{height}, {width}]",
        )
    counts = code["counts"]
    if isinstance(counts, (str, bytes)):
        filled = int(_read_counts(counts).sum())
    elif isinstance(counts, list) and all(type(value) is int and value >= 0 for value in counts):
        filled = sum(counts)
    else:
        raise _UnusableError(
            "mask_malformed", f"counts are text or whole numbers, got {shorten(repr(counts))}"
        )
    if filled != height * width:
        raise _UnusableError(
            "mask_malformed", f"counts fill {filled} pixels of {height}×{width} = {height * width}"
        )
    return {"size": [height, width], "counts": counts}


def _read_counts(text: str | bytes) -> npt.NDArray[np.int64]:
    """Run lengths of COCO's compressed counts: 5-bit digits, signed, from the third on as deltas.

    Source: pycocotools, maskApi.c, rleToString.
    """
    data = text if isinstance(text, bytes) else text.encode("ascii", "replace")
    digits = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    is_last = (digits & 0x20) == 0
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1 if len(ends) else ends
    if (
        (digits < 0).any()
        or (digits > 0x3F).any()
        or not is_last[-1]
        or lengths.max() > _MAX_COUNT_DIGITS
    ):
        raise _UnusableError("mask_malformed", f"counts are no COCO code: {shorten(repr(text))}")
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((digits & 0x1F) << (5 * places), starts)
    counts -= np.where(digits[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    if (counts < 0).any():
        raise _UnusableError("mask_malformed", f"counts are no COCO code: {shorten(repr(text))}")
    return counts
