"""Outlines of masks as polygons, for tools that know no run-length codes. Pure numerics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Polygon = npt.NDArray[np.float64]

# Half a pixel's diagonal: removes the stairs of a slanted edge and nothing that is wider.
TOLERANCE_PIXELS = 0.71


def mask_polygons(mask: Mask, tolerance: float = TOLERANCE_PIXELS) -> list[Polygon]:
    """Outlines of a mask, one polygon for each connected part.

    A hole is joined to its part by a bridge of no width, which the even-odd fill of pycocotools,
    OpenCV and browsers leaves empty; COCO's and YOLO's polygons have no other way to hold one.

    Args:
        mask: (H, W); pixel (y, x) covers the square from (x, y) to (x + 1, y + 1).
        tolerance: how far a simplified outline may leave the exact one, in pixels; 0 is exact.

    Returns:
        (N, 2) float corner points (x, y), N ≥ 3, each; largest part first.
    """
    outlines = [_simplify(points, tolerance) for points in trace_outlines(mask)]
    outer = sorted((p for p in outlines if _signed_area(p) > 0), key=_signed_area, reverse=True)
    for hole in sorted((p for p in outlines if _signed_area(p) < 0), key=_signed_area):
        # The smallest part around the hole is the one that has it.
        for index in reversed(range(len(outer))):
            inside = (float(hole[0, 0]), float(hole[0, 1]))
            if cv2.pointPolygonTest(outer[index].astype(np.float32), inside, False) >= 0:
                outer[index] = bridge_polygons([outer[index], hole])
                break
    return outer


def trace_outlines(mask: Mask) -> list[Polygon]:
    """Exact outlines along pixel edges; the mask lies to the right of the way, seen on the screen.

    Args:
        mask: (H, W).

    Returns:
        (N, 2) corner points (x, y): clockwise (positive area) around parts, the other way around
        holes. Parts that touch at a corner only are two.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    down, right = np.diff(padded, axis=0), np.diff(padded, axis=1)
    # Directed unit edges (start x, start y, dx, dy): top and bottom sides, then left and right.
    edges = []
    for values, sign, shift, step in (
        (down, 1, (-1, 0), (1, 0)),
        (down, -1, (0, 0), (-1, 0)),
        (right, 1, (0, 0), (0, -1)),
        (right, -1, (0, -1), (0, 1)),
    ):
        ys, xs = np.nonzero(values == sign)
        starts = np.stack([xs + shift[0], ys + shift[1]], axis=1)
        edges += [(int(x), int(y), *step) for x, y in starts]
    outgoing: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for x, y, dx, dy in edges:
        outgoing.setdefault((x, y), []).append((dx, dy))
    outlines = []
    while outgoing:
        start = next(iter(outgoing))
        outlines.append(_follow(outgoing, start))
    return outlines


def bridge_polygons(polygons: Sequence[Polygon]) -> Polygon:
    """One polygon out of several, joined by bridges of no width at their nearest corners.

    Args:
        polygons: (N, 2) each, at least one.
    """
    joined, *others = polygons
    for other in others:
        distances = np.square(joined[:, None] - other[None]).sum(axis=2)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        joined = np.concatenate([joined[: i + 1], other[j:], other[: j + 1], joined[i:]])
    return joined


def flatten_polygons(polygons: Iterable[Polygon]) -> list[list[float]]:
    """COCO's form: `[x1, y1, x2, y2, …]` for each polygon, to hundredths of a pixel."""
    return [[round(float(value), 2) for value in polygon.ravel()] for polygon in polygons]


def _follow(
    outgoing: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]
) -> Polygon:
    """Follow edges from a point back to it, taking them out; keeps the corners only."""
    point, heading = start, (0, 0)
    corners: list[tuple[int, int]] = []
    while True:
        choices = outgoing[point]
        # Where two parts touch, turn right: that stays at the same part.
        turn = (-heading[1], heading[0])
        step = turn if turn in choices else choices[0]
        choices.remove(step)
        if not choices:
            del outgoing[point]
        if step != heading:
            corners.append(point)
        point, heading = (point[0] + step[0], point[1] + step[1]), step
        if point == start:
            return np.array(corners, dtype=np.float64)


def _simplify(points: Polygon, tolerance: float) -> Polygon:
    if tolerance <= 0 or len(points) <= 4:
        return points
    simplified = cv2.approxPolyDP(points.astype(np.float32), tolerance, closed=True)[:, 0]
    return simplified.astype(np.float64) if len(simplified) >= 3 else points


def _signed_area(points: Polygon) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2
