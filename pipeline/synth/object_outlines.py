"""Outlines of things, as parts of polygons in a unit frame: what a generated object is made of.

Every family throws dice for its own proportions and pose. Parts carry a role (which paint they
get), so that an object has several colours, as real ones have; `hole` removes what lies under it.
x goes right, y down; a family's size is arbitrary, `draw_outline` brings it to height or width 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Part:
    """One filled polygon.

    Attributes:
        points: (N, 2) x, y.
        role: which paint; `hole` for none.
    """

    points: FloatArray
    role: str


def draw_outline(rng: np.random.Generator) -> list[Part]:
    """Throw the dice for an object: family, proportions, pose, warp; longer side 1 from (0, 0)."""
    names = list(FAMILIES)
    weights = np.array([FAMILIES[name][1] for name in names])
    family, _, tilt = FAMILIES[names[int(rng.choice(len(names), p=weights / weights.sum()))]]
    parts = family(rng)
    everything = np.concatenate([part.points for part in parts])
    low, high = everything.min(0), everything.max(0)
    centre, size = (low + high) / 2, float((high - low).max())
    angle = rng.normal(0, tilt) if rng.uniform() < 0.85 else rng.uniform(-math.pi, math.pi)
    stretch = np.exp(rng.normal(0, 0.12, 2)) * (rng.choice((-1.0, 1.0)), 1.0)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    lean = rng.normal(0, 0.12, 2)
    warp = rng.normal(0, 0.025, (2, 2))
    waves, phase = rng.normal(0, 3.5, (2, 2, 2)), rng.uniform(0, 6.3, (2, 2))
    moved = []
    for part in parts:
        points = (part.points - centre) / size * stretch
        for k in range(2):  # a smooth bend, so that no two objects have the same lines
            points = points + warp[k] * np.sin(points @ waves[k] + phase[k])
        points = points @ rotation.T
        points = points / (1.0 + points @ lean)[:, None].clip(0.6)
        moved.append(points)
    everything = np.concatenate(moved)
    low, size = everything.min(0), float(np.ptp(everything, axis=0).max())
    return [
        Part(((points - low) / size).astype(np.float32), part.role)
        for points, part in zip(moved, parts, strict=True)
    ]


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> FloatArray:
    """A closed ellipse."""
    t = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    return _turn(np.stack((rx * np.cos(t), ry * np.sin(t)), 1), angle) + np.array((x, y))


def rounded(x: float, y: float, rx: float, ry: float, power: float = 5.0) -> FloatArray:
    """A superellipse: 2 is an ellipse, large powers are rectangles."""
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    e = 2 / power
    return np.stack((x + rx * np.sign(c) * np.abs(c) ** e, y + ry * np.sign(s) * np.abs(s) ** e), 1)


def limb(p: Point, q: Point, start: float, stop: float) -> FloatArray:
    """A stick with round ends, `start` and `stop` thick (radius)."""
    along = math.atan2(q[1] - p[1], q[0] - p[0])
    t = np.linspace(math.pi / 2, 3 * math.pi / 2, 9) + along
    u = t + math.pi
    return np.concatenate(
        (
            np.stack((p[0] + start * np.cos(t), p[1] + start * np.sin(t)), 1),
            np.stack((q[0] + stop * np.cos(u), q[1] + stop * np.sin(u)), 1),
        )
    )


def blob(
    rng: np.random.Generator, x: float, y: float, rx: float, ry: float, roughness: float
) -> FloatArray:
    """A closed curve whose radius is a random Fourier series."""
    t = np.linspace(0, 2 * math.pi, 56, endpoint=False)
    radius = np.ones_like(t)
    for k in range(2, 9):
        radius += roughness / k * rng.normal() * np.cos(k * t + rng.uniform(0, 6.3))
    radius = radius.clip(0.25)
    return np.stack((x + rx * radius * np.cos(t), y + ry * radius * np.sin(t)), 1)


def profile(heights: Sequence[float], widths: Sequence[float]) -> FloatArray:
    """A shape that is symmetric about x = 0, from half widths at heights."""
    y = np.linspace(heights[0], heights[-1], 30)
    w = np.interp(y, heights, widths)
    w = cv2.GaussianBlur(w.astype(np.float32)[None], (5, 1), 0.9, borderType=cv2.BORDER_REPLICATE)
    return np.concatenate((np.stack((w[0], y), 1), np.stack((-w[0], y), 1)[::-1]))


def polygon(*points: Point) -> FloatArray:
    """Corners as given."""
    return np.array(points, np.float64)


def _turn(points: FloatArray, angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _step(p: Point, angle: float, length: float) -> Point:
    """From p, `angle` measured from straight down."""
    return (p[0] + length * math.sin(angle), p[1] + length * math.cos(angle))


def _figure(rng: np.random.Generator) -> list[Part]:
    """Somebody: standing, walking, sitting, reaching; sometimes only the upper half."""
    build = rng.uniform(0.8, 1.35)
    shoulder, hip = 0.105 * build * rng.uniform(0.7, 1.05), 0.08 * build * rng.uniform(0.7, 1.1)
    bend = rng.normal(0, 0.25)
    neck: Point = (0.0, 0.0)
    waist = _step(neck, bend, 0.33)
    parts: list[Part] = []
    sits = rng.uniform() < 0.25
    whole = rng.uniform() < 0.72
    bare_arms, bare_legs = rng.uniform() < 0.5, rng.uniform() < 0.3
    skirt = rng.uniform() < 0.15

    def leg(side: float) -> list[Part]:
        top = (waist[0] + side * hip * 0.55, waist[1])
        first = (
            rng.normal(1.2 * rng.choice((-1, 1)), 0.25) if sits else rng.normal(side * 0.12, 0.3)
        )
        knee = _step(top, first, 0.25)
        ankle = _step(knee, rng.normal(0, 0.3) if sits else first + rng.normal(0, 0.3), 0.25)
        toe = (ankle[0] + rng.choice((-1, 1)) * 0.05, ankle[1] + 0.015)
        upper, lower = 0.06 * build, 0.042 * build
        shin = "skin" if bare_legs else "b"
        return [
            Part(limb(knee, ankle, lower, lower * 0.75), shin),
            Part(limb(top, knee, upper, lower * 1.1), "b"),
            Part(limb(ankle, toe, 0.034, 0.028), "dark" if rng.uniform() < 0.5 else "c"),
        ]

    def arm(side: float) -> list[Part]:
        top = (neck[0] + side * shoulder * 0.92, neck[1] + 0.035)
        first = rng.normal(side * 0.25, 0.5) if rng.uniform() < 0.75 else rng.uniform(-3, 3)
        elbow = _step(top, first, 0.17)
        hand = _step(elbow, first + rng.normal(0, 0.7), 0.16)
        sleeve = "skin" if bare_arms else "a"
        return [
            Part(limb(elbow, hand, 0.034 * build, 0.024), sleeve),
            Part(limb(top, elbow, 0.042 * build, 0.036 * build), "a"),
            Part(ellipse(*hand, 0.028, 0.028), "skin"),
        ]

    if whole:
        parts += leg(-1.0) + leg(1.0)
    back_arm = arm(-1.0)
    torso = polygon(
        (neck[0] - shoulder, neck[1] + 0.02),
        (neck[0] - 0.03, neck[1] - 0.02),
        (neck[0] + 0.03, neck[1] - 0.02),
        (neck[0] + shoulder, neck[1] + 0.02),
        (waist[0] + hip * 1.05, waist[1] * 0.55 + 0.05),
        (waist[0] + hip * 1.15, waist[1] + 0.04),
        (waist[0] - hip * 1.15, waist[1] + 0.04),
        (waist[0] - hip * 1.05, waist[1] * 0.55 + 0.05),
    )
    head = _step(neck, bend * 0.5 + math.pi + rng.normal(0, 0.15), 0.105)
    body = [Part(limb(neck, head, 0.035, 0.035), "skin"), Part(torso, "a")]
    if skirt and whole:
        body.append(
            Part(
                polygon(
                    (waist[0] - hip, waist[1] - 0.02),
                    (waist[0] + hip, waist[1] - 0.02),
                    (waist[0] + hip * 2, waist[1] + 0.25),
                    (waist[0] - hip * 2, waist[1] + 0.25),
                ),
                "b",
            )
        )
    hair = Part(ellipse(head[0], head[1] - 0.012, 0.06, 0.072), "hair")
    face = Part(ellipse(head[0] + rng.normal(0, 0.01), head[1] + 0.012, 0.048, 0.06), "skin")
    turned = rng.uniform() < 0.3
    body += [hair] if turned else [hair, face]
    if rng.uniform() < 0.25:
        body.append(Part(rounded(head[0], head[1] - 0.05, 0.065, 0.028, 3), "c"))
    parts = back_arm + parts + body if rng.uniform() < 0.5 else parts + back_arm + body
    parts += arm(1.0)
    if rng.uniform() < 0.12:  # a bag
        parts.append(Part(rounded(waist[0] + hip * 1.4, waist[1], 0.06, 0.07, 4), "dark"))
    return parts


def _bust(rng: np.random.Generator) -> list[Part]:
    """Head and shoulders, near the camera."""
    width = rng.uniform(0.45, 0.75)
    parts = [
        Part(profile((0.5, 0.62, 0.75, 1.2), (0.14, width * 0.6, width, width * 1.05)), "a"),
        Part(limb((0, 0.3), (0, 0.55), 0.13, 0.15), "skin"),
        Part(ellipse(0, 0.12, 0.26, 0.33), "hair"),
        Part(ellipse(rng.normal(0, 0.04), 0.2, 0.2, 0.26), "skin"),
    ]
    parts += [Part(ellipse(side * 0.08, 0.16, 0.03, 0.015), "dark") for side in (-1, 1)]
    parts.append(Part(ellipse(0, 0.33, 0.06, 0.015), "c"))
    if rng.uniform() < 0.4:
        parts.append(Part(polygon((-0.05, 0.58), (0.05, 0.58), (0.03, 1.1), (-0.03, 1.1)), "b"))
    return parts


def _quadruped(rng: np.random.Generator) -> list[Part]:
    length, height = rng.uniform(0.4, 0.65), rng.uniform(0.13, 0.24)
    legs = rng.uniform(0.15, 0.5)
    thick = rng.uniform(0.025, 0.06)
    neck_angle, neck_length = rng.uniform(1.2, 2.9), rng.uniform(0.1, 0.4)
    head_length = rng.uniform(0.1, 0.2)
    parts = []
    for x, role in ((-0.8, "b"), (-0.6, "a"), (0.62, "b"), (0.8, "a")):
        top = (x * length / 1.0 * 0.95, height * 0.3)
        knee = _step(top, rng.normal(0, 0.25), legs * 0.55 + height * 0.5)
        foot = _step(knee, rng.normal(0, 0.25), legs * 0.5)
        parts.append(Part(limb(top, knee, thick * 1.9, thick), role))
        parts.append(Part(limb(knee, foot, thick, thick * 0.8), role))
    tail = (-length, -height * 0.4)
    end = _step(tail, rng.uniform(-2.6, -0.2), rng.uniform(0.1, 0.4))
    parts.append(Part(limb(tail, end, thick * 0.8, thick * rng.uniform(0.3, 1.5)), "a"))
    parts.append(Part(blob(rng, 0, 0, length, height, 0.12), "a"))
    if rng.uniform() < 0.5:
        for _ in range(rng.integers(1, 5)):
            x, y = rng.uniform(-0.7, 0.7) * length, rng.uniform(-0.6, 0.6) * height
            parts.append(Part(blob(rng, x, y, length * 0.2, height * 0.3, 0.4), "c"))
    base = (length * 0.82, -height * 0.35)
    skull = _step(base, neck_angle, neck_length)
    nose = _step(skull, rng.uniform(0.7, 1.7), head_length)
    parts.append(Part(limb(base, skull, height * 0.62, head_length * 0.5), "a"))
    ear = _step(skull, rng.uniform(2.4, 3.6), head_length * rng.uniform(0.5, 1.3))
    parts.append(Part(limb(skull, ear, head_length * 0.3, 0.012), "b"))
    parts.append(Part(limb(skull, nose, head_length * 0.52, head_length * 0.28), "a"))
    parts.append(Part(ellipse(*nose, 0.018, 0.018), "dark"))
    return parts


def _bird(rng: np.random.Generator) -> list[Part]:
    lean = rng.uniform(-0.6, 0.5)
    parts = [Part(limb((0, 0.1), (rng.normal(0, 0.05), 0.42), 0.02, 0.014), "dark")]
    tail = _turn(polygon((-0.3, -0.06), (-0.3, 0.06), (-0.75, 0.1), (-0.72, -0.05)), lean)
    body = _turn(ellipse(0, 0, 0.4, rng.uniform(0.17, 0.26)), lean)
    head = _turn(np.array([[0.42, -0.14]]), lean)[0]
    parts += [Part(tail, "b"), Part(body, "a")]
    if rng.uniform() < 0.4:
        spread = rng.uniform(0.4, 0.9)
        for side in (-1, 1):
            parts.append(
                Part(polygon((-0.15, 0), (0.15, 0), (side * 0.1 + 0.1, side * spread - 0.2)), "b")
            )
    else:
        parts.append(Part(_turn(ellipse(-0.12, 0.0, 0.3, 0.11), lean + 0.15), "b"))
    parts.append(Part(ellipse(head[0], head[1], 0.13, 0.13), "c" if rng.uniform() < 0.4 else "a"))
    parts.append(Part(polygon((0.1, -0.04), (0.1, 0.05), (0.27, 0.03)) + head, "dark"))
    return parts


def _car(rng: np.random.Generator) -> list[Part]:
    roof, hood = rng.uniform(0.2, 0.36), rng.uniform(0.12, 0.4)
    parts = [
        Part(
            polygon(
                (-1, 0.25),
                (-1, 0.0),
                (-0.8, -0.05),
                (-0.62, -roof),
                (0.25, -roof),
                (1 - hood, -0.02),
                (1, 0.06),
                (1.02, 0.25),
            ),
            "a",
        ),
        Part(
            polygon((-0.68, -0.04), (-0.55, -roof + 0.05), (-0.14, -roof + 0.05), (-0.14, -0.03)),
            "glass",
        ),
        Part(
            polygon((-0.08, -0.03), (-0.08, -roof + 0.05), (0.2, -roof + 0.05), (0.45, -0.02)),
            "glass",
        ),
    ]
    radius = rng.uniform(0.13, 0.2)
    for x in (-0.6, 0.6):
        parts.append(Part(ellipse(x, 0.25, radius, radius), "dark"))
        parts.append(Part(ellipse(x, 0.25, radius * 0.55, radius * 0.55), "metal"))
    parts.append(Part(rounded(0.97, 0.09, 0.05, 0.035), "white"))
    return parts


def _vehicle_front(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.4, 1.0)
    parts = [Part(rounded(s * 0.36, 0.5, 0.1, 0.12), "dark") for s in (-1, 1)]
    parts.append(Part(rounded(0, 0.5 - height / 2, 0.5, height / 2, rng.uniform(3, 9)), "a"))
    parts.append(Part(rounded(0, 0.5 - height * 0.72, 0.42, height * 0.2, 5), "glass"))
    parts += [Part(ellipse(s * 0.36, 0.36, 0.08, 0.05), "white") for s in (-1, 1)]
    parts.append(Part(rounded(0, 0.38, 0.18, 0.06), "metal"))
    return parts


def _long_vehicle(rng: np.random.Generator) -> list[Part]:
    """A bus, lorry or train in light perspective."""
    far = rng.uniform(0.35, 1.0)
    length, windows = rng.uniform(0.8, 2.2), int(rng.integers(2, 9))
    front = rng.uniform(0.0, 0.45)
    parts = [Part(polygon((0, -0.5), (length, -0.5 * far), (length, 0.5 * far), (0, 0.5)), "a")]
    if front > 0.1:
        parts.append(Part(polygon((-front, -0.46), (0, -0.5), (0, 0.5), (-front, 0.46)), "b"))
        parts.append(
            Part(
                polygon((-front * 0.9, -0.36), (-0.03, -0.4), (-0.03, 0), (-front * 0.9, 0)),
                "glass",
            )
        )
    for k in range(windows):
        u, v = (k + 0.15) / windows, (k + 0.85) / windows
        s, t = 1 + (far - 1) * u, 1 + (far - 1) * v
        parts.append(
            Part(
                polygon(
                    (u * length, -0.36 * s),
                    (v * length, -0.36 * t),
                    (v * length, -0.02 * t),
                    (u * length, -0.02 * s),
                ),
                "glass",
            )
        )
    if rng.uniform() < 0.6:
        s = 1 + (far - 1) * 0.5
        parts.append(
            Part(polygon((0, 0.12), (length, 0.12 * far), (length, 0.2 * far), (0, 0.2)), "c")
        )
    for u in (0.15, 0.8):
        s = 1 + (far - 1) * u
        parts.append(Part(ellipse(u * length, 0.5 * s, 0.12 * s, 0.13 * s), "dark"))
    return parts


def _cycle(rng: np.random.Generator) -> list[Part]:
    radius, thick = rng.uniform(0.26, 0.34), rng.uniform(0.012, 0.04)
    squeeze = rng.uniform(0.3, 1.0)
    parts = []
    for x in (-0.45 * squeeze, 0.45 * squeeze):
        parts.append(Part(ellipse(x, 0.3, radius * squeeze, radius), "dark"))
        inner = radius - thick * 1.6
        parts.append(Part(ellipse(x, 0.3, inner * squeeze, inner), "hole"))
        if rng.uniform() < 0.5:
            for a in np.linspace(0, math.pi, int(rng.integers(3, 8)), endpoint=False):
                dx, dy = inner * squeeze * math.cos(a), inner * math.sin(a)
                parts.append(
                    Part(limb((x - dx, 0.3 - dy), (x + dx, 0.3 + dy), 0.006, 0.006), "metal")
                )
    s = squeeze
    seat, crank, bar = (-0.15 * s, -0.1), (-0.05 * s, 0.3), (0.3 * s, -0.15)
    for p, q in (
        ((-0.45 * s, 0.3), seat),
        ((-0.45 * s, 0.3), crank),
        (seat, crank),
        (crank, bar),
        (seat, bar),
        (bar, (0.45 * s, 0.3)),
    ):
        parts.append(Part(limb(p, q, thick, thick), "a"))
    parts.append(Part(limb((seat[0] - 0.1, -0.15), (seat[0] + 0.08, -0.15), 0.03, 0.02), "dark"))
    parts.append(Part(limb((bar[0] - 0.05, -0.22), (bar[0] + 0.06, -0.2), 0.02, 0.02), "dark"))
    if rng.uniform() < 0.4:  # with an engine
        parts.append(Part(blob(rng, 0, 0.2, 0.28 * s, 0.16, 0.2), "metal"))
        parts.append(Part(blob(rng, 0.05, -0.05, 0.25 * s, 0.1, 0.15), "a"))
    return parts


def _vessel(rng: np.random.Generator) -> list[Part]:
    """A bottle, vase, glass, cup or bowl."""
    kind = rng.integers(4)
    neck = rng.uniform(0.05, 0.12)
    body = rng.uniform(0.14, 0.3)
    if kind == 0:
        shape = profile((0, 0.3, 0.42, 0.95, 1.0), (neck, neck, body, body, body * 0.9))
        parts = [Part(shape, "a"), Part(rounded(0, 0.03, neck * 1.1, 0.05), "b")]
        if rng.uniform() < 0.7:
            parts.append(Part(rounded(0, 0.68, body, rng.uniform(0.08, 0.2), 9), "c"))
        return parts
    if kind == 1:
        heights = np.linspace(0, 1, 6)
        parts = [Part(profile(list(heights), list(rng.uniform(0.12, 0.45, 6))), "a")]
        return parts
    if kind == 2:
        wide, foot = rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.4)
        parts = []
        if rng.uniform() < 0.6:
            parts.append(Part(ellipse(wide * 0.95, 0.35, 0.22, 0.22), "a"))
            parts.append(Part(ellipse(wide * 0.97, 0.35, 0.13, 0.14), "hole"))
        parts.append(Part(profile((0, 0.7, 0.8), (wide, foot * 1.1, foot)), "a"))
        top = rng.uniform(0.04, 0.2)
        parts.append(Part(ellipse(0, 0, wide, top), "b"))
        parts.append(Part(ellipse(0, 0.01, wide * 0.9, top * 0.8), "c"))
        if rng.uniform() < 0.4:
            for _ in range(rng.integers(2, 7)):
                x = rng.uniform(-0.6, 0.6) * wide
                parts.append(
                    Part(blob(rng, x, -0.03, wide * 0.3, 0.14, 0.3), rng.choice(["b", "c"]))
                )
        return parts
    stem = rng.uniform(0.02, 0.04)
    cup = profile((0, 0.35, 0.5, 0.9, 0.95, 1.0), (body, body * 1.1, stem, stem, body, body))
    return [Part(cup, "glass"), Part(profile((0.15, 0.33, 0.45), (body, body, stem)), "c")]


def _seat(rng: np.random.Generator) -> list[Part]:
    width, depth = rng.uniform(0.4, 0.7), rng.uniform(-0.25, 0.25)
    back, legs = rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.55)
    thick = rng.uniform(0.015, 0.04)
    parts = []
    for x, y in ((0, 0), (width, 0), (depth, 0.12), (width + depth, 0.12)):
        parts.append(Part(limb((x, y), (x + rng.normal(0, 0.03), y + legs), thick, thick), "b"))
    if rng.uniform() < 0.5:
        parts.append(Part(rounded(width / 2, -back / 2, width / 2, back / 2, 6), "a"))
    else:
        posts = np.linspace(0, width, int(rng.integers(2, 6))).tolist()
        parts += [Part(limb((x, 0), (x, -back), thick, thick), "b") for x in posts]
        parts.append(Part(limb((0, -back), (width, -back), thick * 2, thick * 2), "a"))
    parts.append(
        Part(polygon((0, -0.03), (width, -0.03), (width + depth, 0.15), (depth, 0.15)), "a")
    )
    return parts


def _sofa(rng: np.random.Generator) -> list[Part]:
    width = rng.uniform(0.5, 1.3)
    parts = [Part(rounded(0, -0.1, width * 0.9, 0.4, 6), "a")]
    num = int(rng.integers(1, 4))
    for k in range(num):
        x = (k + 0.5) / num * 1.6 * width - 0.8 * width
        parts.append(Part(rounded(x, 0.15, 0.8 * width / num, 0.12, 4), "a"))
        if rng.uniform() < 0.5:
            parts.append(Part(rounded(x, -0.1, 0.15, 0.14, 4), rng.choice(["b", "c"])))
    parts += [Part(rounded(s * width * 0.9, 0.12, 0.12, 0.3, 4), "a") for s in (-1, 1)]
    parts.append(Part(rounded(0, 0.36, width * 0.95, 0.1, 7), "b" if rng.uniform() < 0.4 else "a"))
    return parts


def _table(rng: np.random.Generator) -> list[Part]:
    width, skew, deep = rng.uniform(0.5, 1.2), rng.normal(0, 0.15), rng.uniform(0.1, 0.5)
    legs, thick = rng.uniform(0.3, 0.7), rng.uniform(0.02, 0.05)
    parts = [
        Part(limb((x, y), (x, y + legs), thick, thick), "b")
        for x, y in (
            (-width + 0.1, 0.1),
            (width - 0.1, 0.1),
            (-width * 0.8, deep),
            (width * 0.8, deep),
        )
    ]
    top = polygon((-width * 0.8 + skew, 0), (width * 0.8 + skew, 0), (width, deep), (-width, deep))
    parts.append(
        Part(top if rng.uniform() < 0.7 else ellipse(0, deep / 2, width, deep / 2 + 0.05), "a")
    )
    return parts


def _slab(rng: np.random.Generator) -> list[Part]:
    """A screen, book, phone, sign, keyboard or box with its faces."""
    width, height = 1.0, rng.uniform(0.35, 1.7)
    rim = rng.uniform(0.02, 0.12)
    parts = []
    if rng.uniform() < 0.5:
        dx, dy = rng.uniform(-0.5, 0.5), -rng.uniform(0.1, 0.5)
        parts.append(Part(polygon((0, 0), (width, 0), (width + dx, dy), (dx, dy)), "b"))
        x = width if dx > 0 else 0
        parts.append(Part(polygon((x, 0), (x, height), (x + dx, height + dy), (x + dx, dy)), "c"))
    parts.append(Part(polygon((0, 0), (width, 0), (width, height), (0, height)), "a"))
    if rng.uniform() < 0.6:
        inner = polygon(
            (rim, rim), (width - rim, rim), (width - rim, height - rim), (rim, height - rim)
        )
        parts.append(Part(inner, "screen"))
    if rng.uniform() < 0.3:
        for _ in range(rng.integers(2, 10)):
            x, y = rng.uniform(0.15, 0.8), rng.uniform(0.15, 0.85) * height
            parts.append(
                Part(
                    rounded(x, y, rng.uniform(0.03, 0.15), 0.04, 6), rng.choice(["b", "c", "dark"])
                )
            )
    if rng.uniform() < 0.2:
        parts.append(Part(limb((width / 2, height), (width / 2, height * 1.2), 0.05, 0.05), "dark"))
        parts.append(Part(rounded(width / 2, height * 1.22, 0.25, 0.04, 4), "dark"))
    return parts


def _round_thing(rng: np.random.Generator) -> list[Part]:
    """Fruit, ball, plate, ring, clock, pizza."""
    squeeze = rng.uniform(0.35, 1.0)
    parts = [Part(blob(rng, 0, 0, 0.5, 0.5 * squeeze, 0.06), "a")]
    kind = rng.integers(5)
    if kind == 0:
        inner = rng.uniform(0.12, 0.35)
        parts.append(Part(ellipse(0, 0, inner, inner * squeeze), "hole"))
    elif kind == 1:
        parts.append(Part(ellipse(0, 0, 0.38, 0.38 * squeeze), "b"))
        for _ in range(rng.integers(0, 9)):
            a, r = rng.uniform(0, 6.3), rng.uniform(0, 0.3)
            x, y = r * math.cos(a), r * math.sin(a) * squeeze
            parts.append(
                Part(blob(rng, x, y, 0.09, 0.08 * squeeze, 0.3), rng.choice(["c", "a", "dark"]))
            )
    elif kind == 2:
        parts.append(Part(limb((0, -0.4 * squeeze), (0.08, -0.6 * squeeze), 0.025, 0.02), "dark"))
        if rng.uniform() < 0.5:
            parts.append(Part(ellipse(0.16, -0.56 * squeeze, 0.13, 0.05, 0.4), "leaf"))
    elif kind == 3:
        parts.append(Part(polygon((-0.5, -0.06), (0.5, -0.1), (0.5, 0.06), (-0.5, 0.1)), "b"))
    return parts


def _elongated(rng: np.random.Generator) -> list[Part]:
    """Banana, knife, racket, ski, bat, spoon, umbrella stick."""
    kind = rng.integers(4)
    if kind == 0:
        bend, thick = rng.uniform(0.3, 1.4), rng.uniform(0.05, 0.14)
        t = np.linspace(-bend, bend, 16)
        width = thick * np.cos(t / bend * 1.35)
        x, y = np.sin(t) / bend, np.cos(t) / bend
        outer = np.stack((x + np.sin(t) * width, y + np.cos(t) * width), 1)
        inner = np.stack((x - np.sin(t) * width, y - np.cos(t) * width), 1)
        return [Part(np.concatenate((outer, inner[::-1])), "a")]
    thick = rng.uniform(0.015, 0.06)
    parts = [Part(limb((0, 0), (0, 0.5), thick * 0.9, thick), "b")]
    if kind == 1:
        parts.append(Part(limb((0, -0.45), (0, 0.05), thick * rng.uniform(0.6, 2.0), thick), "a"))
    elif kind == 2:
        head, wide = rng.uniform(0.12, 0.25), rng.uniform(0.08, 0.2)
        parts.append(Part(ellipse(0, -head, wide, head), "a"))
        if rng.uniform() < 0.4:
            parts.append(Part(ellipse(0, -head, wide * 0.8, head * 0.85), "hole"))
    else:
        for k in range(int(rng.integers(2, 5))):
            tine = (k - 1) * thick * 1.7
            parts.append(
                Part(limb((tine, -0.3), (tine * 0.8, 0.05), thick * 0.5, thick * 0.6), "a")
            )
    return parts


def _canopy(rng: np.random.Generator) -> list[Part]:
    """Umbrella, kite, parachute, balloon, star, flower."""
    kind = rng.integers(3)
    if kind == 0:
        segments = int(rng.integers(3, 8))
        parts = [Part(limb((0, 0), (0.02, 0.7), 0.015, 0.015), "dark")]
        edges = np.linspace(-1, 1, segments + 1)
        flat = rng.uniform(0.3, 0.7)
        for k in range(segments):
            t = np.linspace(edges[k], edges[k + 1], 7)
            arc = np.stack((0.6 * t, -flat * np.sqrt(1 - 0.98 * t**2)), 1)
            foot = [
                (0.6 * edges[k + 1], 0.0),
                (0.3 * (edges[k] + edges[k + 1]), -0.06),
                (0.6 * edges[k], 0.0),
            ]
            parts.append(
                Part(np.concatenate((arc, foot)), "a" if k % 2 else rng.choice(["a", "b"]))
            )
        return parts
    if kind == 1:
        a, b = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.5)
        parts = [
            Part(polygon((0, -b), (a, 0), (0, 0.1)), "a"),
            Part(polygon((0, -b), (-a, 0), (0, 0.1)), "b"),
            Part(polygon((a, 0), (0, 0.8), (0, 0.1)), "c"),
            Part(polygon((-a, 0), (0, 0.8), (0, 0.1)), "a"),
        ]
        return parts
    num, depth = int(rng.integers(4, 12)), rng.uniform(0.3, 0.85)
    t = np.linspace(0, 2 * math.pi, 2 * num, endpoint=False)
    r = np.where(np.arange(2 * num) % 2, depth, 1.0) * 0.5
    return [
        Part(np.stack((r * np.cos(t), r * np.sin(t)), 1), "a"),
        Part(ellipse(0, 0, 0.15, 0.15), "b"),
    ]


def _plant(rng: np.random.Generator) -> list[Part]:
    parts = []
    for _ in range(int(rng.integers(6, 22))):
        base = (rng.normal(0, 0.05), 0.0)
        angle = rng.normal(math.pi, 0.7)
        tip = _step(base, angle, rng.uniform(0.25, 0.7))
        middle = ((base[0] + tip[0]) / 2, (base[1] + tip[1]) / 2)
        parts.append(Part(limb(base, middle, 0.008, 0.01), "leaf"))
        length, wide = rng.uniform(0.06, 0.2), rng.uniform(0.02, 0.09)
        parts.append(
            Part(
                ellipse(*tip, length, wide, math.pi / 2 - angle), rng.choice(["leaf", "a", "leaf"])
            )
        )
    if rng.uniform() < 0.8:
        parts.append(Part(profile((0, 0.1, 0.45), (0.24, 0.23, 0.16)), "b"))
    return parts


def _plane(rng: np.random.Generator) -> list[Part]:
    thick = rng.uniform(0.06, 0.12)
    far = polygon((0.1, -thick), (-0.15, -0.35), (-0.25, -0.35), (-0.1, -thick))
    near = polygon((0.15, thick * 0.3), (-0.25, 0.45), (-0.37, 0.45), (-0.15, thick * 0.3))
    fin = polygon((-0.6, -thick), (-0.85, -0.36), (-0.95, -0.36), (-0.88, -thick * 0.3))
    return [
        Part(far, "b"),
        Part(fin, "c"),
        Part(limb((-0.85, -thick * 0.6), (0.75, 0), thick * 0.4, thick), "a"),
        Part(near, "b"),
        Part(ellipse(0.0, thick * 1.6, 0.12, 0.05), "metal"),
        Part(polygon((0.7, -thick * 0.7), (0.8, -thick * 0.2), (0.66, -thick * 0.2)), "glass"),
    ]


def _boat(rng: np.random.Generator) -> list[Part]:
    parts = [Part(polygon((-0.7, 0), (0.85, 0), (0.6, 0.22), (-0.6, 0.22)), "a")]
    if rng.uniform() < 0.5:
        parts.append(Part(limb((0, 0), (0, -1.0), 0.015, 0.01), "dark"))
        parts.append(Part(polygon((0.03, -0.95), (0.03, -0.08), (0.6, -0.08)), "b"))
        parts.append(Part(polygon((-0.03, -0.8), (-0.03, -0.08), (-0.4, -0.08)), "b"))
    else:
        parts.append(Part(rounded(-0.1, -0.12, 0.35, 0.14, 6), "b"))
        parts.append(Part(rounded(-0.1, -0.14, 0.28, 0.06, 6), "glass"))
    return parts


def _composite(rng: np.random.Generator) -> list[Part]:
    """Anything: a few blobs, polygons and sticks that hang together."""
    spots: list[Point] = [(0.0, 0.0)]
    parts = []
    roles = ["a", "a", "b", "c", "dark", "metal"]
    for k in range(int(rng.integers(1, 8))):
        x, y = spots[int(rng.integers(len(spots)))]
        role = roles[int(rng.integers(len(roles)))] if k else "a"
        size = rng.uniform(0.12, 0.5)
        kind = rng.uniform()
        if kind < 0.3:
            parts.append(
                Part(
                    blob(rng, x, y, size, size * rng.uniform(0.3, 1), rng.uniform(0.05, 0.6)), role
                )
            )
        elif kind < 0.5:
            t = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 8))))
            r = size * rng.uniform(0.5, 1.2, len(t))
            parts.append(Part(np.stack((x + r * np.cos(t), y + r * np.sin(t)), 1), role))
        elif kind < 0.65:
            parts.append(
                Part(rounded(x, y, size, size * rng.uniform(0.2, 1), rng.uniform(2, 9)), role)
            )
        else:
            end = _step((x, y), rng.uniform(0, 6.3), rng.uniform(0.2, 0.8))
            parts.append(Part(limb((x, y), end, *(rng.uniform(0.015, 0.16, 2))), role))
            spots.append(end)
        spots.append((x + rng.normal(0, size * 0.6), y + rng.normal(0, size * 0.6)))
    if rng.uniform() < 0.12:
        x, y = spots[0]
        parts.append(Part(blob(rng, x, y, 0.08, 0.08, 0.2), "hole"))
    return parts


def _glyph(rng: np.random.Generator) -> list[Part]:
    """A letter, drawn by OpenCV's stroke fonts: thin parts and holes."""
    canvas = np.zeros((160, 160), np.uint8)
    letter = "ABCDEFGHJKLMNPQRSTUVXYZ23456789&?"[int(rng.integers(33))]
    cv2.putText(
        canvas, letter, (30, 120), int(rng.integers(0, 5)), 3.6, 255, int(rng.integers(6, 22))
    )
    outlines, tree = cv2.findContours(canvas, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
    return [
        Part(outline[:, 0].astype(np.float64) / 160, "a" if tree[0][k][3] < 0 else "hole")
        for k, outline in enumerate(outlines)
        if len(outline) > 2
    ]


# name: recipe, share, standard deviation of the tilt in radians
FAMILIES: dict[str, tuple[Callable[[np.random.Generator], list[Part]], float, float]] = {
    "figure": (_figure, 0.22, 0.12),
    "bust": (_bust, 0.03, 0.12),
    "quadruped": (_quadruped, 0.10, 0.1),
    "bird": (_bird, 0.03, 0.2),
    "car": (_car, 0.04, 0.05),
    "vehicle_front": (_vehicle_front, 0.03, 0.05),
    "long_vehicle": (_long_vehicle, 0.04, 0.05),
    "cycle": (_cycle, 0.03, 0.1),
    "vessel": (_vessel, 0.08, 0.1),
    "seat": (_seat, 0.05, 0.05),
    "sofa": (_sofa, 0.03, 0.05),
    "table": (_table, 0.03, 0.04),
    "slab": (_slab, 0.08, 0.3),
    "round_thing": (_round_thing, 0.08, 0.3),
    "elongated": (_elongated, 0.05, 0.8),
    "canopy": (_canopy, 0.03, 0.4),
    "plant": (_plant, 0.03, 0.1),
    "plane": (_plane, 0.02, 0.25),
    "boat": (_boat, 0.02, 0.08),
    "composite": (_composite, 0.14, 0.8),
    "glyph": (_glyph, 0.02, 0.5),
}
