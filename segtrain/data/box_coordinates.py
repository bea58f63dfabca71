"""COCO's `bbox`: one box inside its image, and mistakes that a whole file makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]

# Coordinates are rounded to 2 decimals in many data sets, so a box may reach this far outside.
EDGE_TOLERANCE_PIXELS = 1.0
# Below this size "inside the first pixel" says nothing.
_MIN_IMAGE_SIDE = 8
_MIN_CORNER_BOXES = 2


def clip_box(  # noqa: PLR0911 - one return per kind
    bbox: Any, width: int, height: int
) -> tuple[Box | None, str | None]:
    """Turn a COCO box into corners inside its image.

    Args:
        bbox: x, y, width, height in pixels; anything may stand in a file.
        width: of the image in pixels.
        height: of the image in pixels.

    Returns:
        (x1, y1, x2, y2), None when there is no such box; and the kind of finding, None when there
        is nothing to say.
    """
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4:
        return None, "box_malformed"
    if any(isinstance(value, str) for value in bbox):
        return None, "box_of_text" if all(map(_is_number_or_its_text, bbox)) else "box_malformed"
    if not all(map(is_number, bbox)):
        return None, "box_malformed"
    try:
        x, y, box_width, box_height = map(float, bbox)
    except OverflowError:
        return None, "box_not_finite"
    if not all(map(math.isfinite, (x + box_width, y + box_height, x, y, box_width, box_height))):
        return None, "box_not_finite"
    if box_width < 0 or box_height < 0:
        return None, "box_inverted"
    if box_width == 0 or box_height == 0:
        return None, "box_zero_size"
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + box_width, float(width)), min(y + box_height, float(height))
    if x2 <= x1 or y2 <= y1:
        return None, "box_outside_image"
    overshoot = max(-x, -y, x + box_width - width, y + box_height - height)
    if overshoot > EDGE_TOLERANCE_PIXELS:
        return (x1, y1, x2, y2), "box_partly_outside"
    if box_width < 1 and box_height < 1:
        return (x1, y1, x2, y2), "box_below_pixel"
    return (x1, y1, x2, y2), None


def find_mistake_of_all(boxes: Sequence[Sequence[float]]) -> tuple[str, str] | None:
    """Tell boxes in another form than COCO's, which one box alone does not show.

    Shares of the image: every box lies in the first pixel, at fractions of it. Corners: nearly
    every box fits its image as x1, y1, x2, y2, and most reach outside as x, y, width, height; where
    fewer do, it is only said.

    Args:
        boxes: x, y, width, height, all finite and positive, image width, image height; each.

    Returns:
        Kind and detail, or None.
    """
    if not boxes:
        return None
    shares = corners = overshooting = fractions = 0
    for x, y, width, height, image_width, image_height in boxes:
        first_pixel = max(x + width, y + height) <= 1.01 and min(x, y) >= -0.01
        shares += first_pixel and min(image_width, image_height) >= _MIN_IMAGE_SIDE
        fractions += any(value % 1 for value in (x, y, width, height))
        corners += (
            0 <= x < width <= image_width + EDGE_TOLERANCE_PIXELS
            and 0 <= y < height <= image_height + EDGE_TOLERANCE_PIXELS
        )
        overshooting += (
            x + width > image_width + EDGE_TOLERANCE_PIXELS
            or y + height > image_height + EDGE_TOLERANCE_PIXELS
        )
    count = len(boxes)
    if shares == count and fractions:
        return "boxes_as_shares", f"all {count} boxes, for example bbox={list(boxes[0][:4])}"
    if count < _MIN_CORNER_BOXES or corners < 0.95 * count or 5 * overshooting < count:
        return None
    text = f"{corners} of {count} boxes fit as x1, y1, x2, y2; {overshooting} reach outside"
    kind = "boxes_as_corners" if 2 * overshooting >= count else "boxes_maybe_corners"
    return kind, text


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_number_or_its_text(value: Any) -> bool:
    if not isinstance(value, str):
        return is_number(value)
    try:
        float(value)
    except ValueError:
        return False
    return True
