"""Solids, where rays meet them, and their normals.

Every solid lives in its own frame (y is its axis, the origin its middle) and is moved into the
world by a rotation and a centre. Rays are `origin + t * direction` with unnormalised directions, so
t keeps its unit through every change of frame. All solids but the torus are solved in closed form;
the torus is marched along its exact distance function, which needs no quartic and does not lose
digits at grazing angles.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

SHAPES = ("sphere", "box", "cylinder", "cone", "torus", "capsule")
"""Shape classes in the order of their COCO category ids, which start at 1."""

OPEN_SHAPES = ("bracket", "cross", "ring", "chair", "rod")
"""Shapes that fill about half of their boxes: L, plus, thin torus, chair and thin capsule."""

_FORMS = {"ring": "torus", "rod": "capsule"}

_Boxes: TypeAlias = list[tuple[tuple[float, float, float], tuple[float, float, float]]]
_MISS = np.float32(np.inf)
_TORUS_STEPS = 48


@dataclasses.dataclass(kw_only=True, frozen=True)
class Solid:
    """One solid in the world.

    Attributes:
        shape: a name out of `SHAPES` or `OPEN_SHAPES`.
        extents: metres. sphere (radius); box (half width, half height, half length); cylinder
            and cone (radius, half height); torus and ring (ring radius, tube radius); capsule and
            rod (radius, half length of the straight part); bracket, cross and chair (half width,
            half height, half length, thickness of their beams).
        rotation: (3, 3), columns are the solid's axes in the world.
        centre: (3,) metres.
    """

    shape: str
    extents: tuple[float, ...]
    rotation: FloatArray
    centre: FloatArray

    @property
    def form(self) -> str:
        """How rays meet it: a name out of `SHAPES`, or of a shape that is made of beams."""
        return _FORMS.get(self.shape, self.shape)

    @property
    def bounding_radius(self) -> float:
        """Radius in metres of a sphere around `centre` that holds the solid, close around it."""
        a = self.extents
        if self.form == "sphere":
            return a[0]
        if self.form == "box" or self.form in _BEAMS:
            return math.sqrt(a[0] ** 2 + a[1] ** 2 + a[2] ** 2)
        if self.form in ("torus", "capsule"):
            return a[0] + a[1]
        return math.hypot(a[0], a[1])

    @property
    def half_height(self) -> float:
        """Distance in metres from the centre down to the lowest point, as the solid is turned."""
        a = self.extents
        axis_y = abs(float(self.rotation[1, 1]))
        across = math.sqrt(max(0.0, 1.0 - axis_y**2))
        if self.form == "box" or self.form in _BEAMS:
            down = self.rotation[1]
            return max(float(np.abs(down) @ half - down @ middle) for middle, half in self.beams)
        if self.form in ("sphere", "capsule"):
            return a[0] + (axis_y * a[1] if self.form == "capsule" else 0.0)
        if self.form == "torus":
            return a[1] + across * a[0]
        if self.form == "cylinder":
            return axis_y * a[1] + across * a[0]
        apex_drop = -float(self.rotation[1, 1]) * a[1]
        return max(apex_drop, -apex_drop + across * a[0])

    @property
    def beams(self) -> list[tuple[FloatArray, FloatArray]]:
        """Centre and half sides of each box that a box, bracket, cross or chair is made of."""
        if self.form == "box":
            return [(np.zeros(3, np.float32), np.asarray(self.extents, np.float32))]
        return [
            (np.asarray(centre, np.float32), np.asarray(half, np.float32))
            for centre, half in _BEAMS[self.form](*self.extents)
        ]


def cast_rays(solid: Solid, origins: FloatArray, directions: FloatArray) -> FloatArray:
    """Find where rays first enter a solid.

    Args:
        solid: what to hit.
        origins: (N, 3) or (1, 3) metres, outside the solid or on its surface.
        directions: (N, 3), any length.

    Returns:
        (N,) float32: smallest t > 0 at which a ray enters, infinity where it misses.
    """
    num_rays = directions.shape[0]
    t = np.full(num_rays, _MISS, np.float32)
    to_origin = origins - solid.centre
    squared_length = dot_rows(directions, directions)
    closest_t = -dot_rows(to_origin, directions) / squared_length
    squared_radius = np.float32(solid.bounding_radius**2)
    closest_sq = dot_rows(to_origin, to_origin) - closest_t**2 * squared_length
    half_chord = np.sqrt(np.maximum(squared_radius - closest_sq, 0) / squared_length)
    near = np.flatnonzero((closest_sq < squared_radius) & (closest_t + half_chord > 0))
    if near.size == 0:
        return t
    # Origins are moved next to the solid: far from it, float32 quadratics lose the small ones.
    directions_near = directions[near]
    start = closest_t[near]
    origin_near = (to_origin if to_origin.shape[0] == 1 else to_origin[near]) + start[
        :, None
    ] * directions_near
    local_origins = origin_near @ solid.rotation
    local_directions = directions_near @ solid.rotation
    if solid.form in _BEAMS:
        local_t = np.min(
            [
                _cast_box(tuple(half), local_origins - centre, local_directions)
                for centre, half in solid.beams
            ],
            axis=0,
        )
    elif solid.form == "torus":
        first = np.maximum(-half_chord[near], -start)
        local_t = _cast_torus(solid, local_origins, local_directions, first, half_chord[near])
    else:
        local_t = _CAST[solid.form](solid.extents, local_origins, local_directions)
    entered = local_t + start
    t[near] = np.where(entered > 0, entered, _MISS)
    return t


def surface_normals(solid: Solid, points: FloatArray) -> FloatArray:
    """Outward unit normals, (N, 3), at world points (N, 3) that lie on the solid's surface."""
    a = solid.extents
    p = world_to_local(solid, points)
    n = np.zeros_like(p)
    radial = np.sqrt(p[:, 0] ** 2 + p[:, 2] ** 2) + np.float32(1e-9)
    if solid.form == "sphere":
        n = p.copy()
    elif solid.form == "box":
        face = np.argmax(np.abs(p) / np.asarray(a, np.float32), axis=1)
        rows = np.arange(p.shape[0])
        n[rows, face] = np.sign(p[rows, face])
    elif solid.form in _BEAMS:
        n = _normals_of_beams(solid, p)
    elif solid.form == "cylinder":
        cap = np.abs(p[:, 1]) - a[1] > radial - a[0]
        n[:, 0], n[:, 2] = p[:, 0], p[:, 2]
        n[cap] = 0
        n[cap, 1] = np.sign(p[cap, 1])
    elif solid.form == "cone":
        slope = a[0] / (2 * a[1])
        n[:, 0], n[:, 1], n[:, 2] = p[:, 0] / radial, slope, p[:, 2] / radial
        base = -a[1] - p[:, 1] > (radial - slope * (a[1] - p[:, 1])) - 1e-4 * a[1]
        n[base] = (0, -1, 0)
    elif solid.form == "capsule":
        n = p.copy()
        n[:, 1] -= np.clip(p[:, 1], -a[1], a[1])
    else:
        n = p.copy()
        n[:, 0] -= a[0] * p[:, 0] / radial
        n[:, 2] -= a[0] * p[:, 2] / radial
    n /= np.sqrt(dot_rows(n, n))[:, None] + np.float32(1e-9)
    return np.asarray(n @ solid.rotation.T, np.float32)


def world_to_local(solid: Solid, points: FloatArray) -> FloatArray:
    """World points (N, 3) in the solid's own frame."""
    return np.asarray((points - solid.centre) @ solid.rotation, np.float32)


def dot_rows(a: FloatArray, b: FloatArray) -> FloatArray:
    """Scalar products of the rows of two (N, 3) arrays, (N,); several times faster than sum()."""
    return np.asarray(
        a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2], np.float32
    )


def _normals_of_beams(solid: Solid, points: FloatArray) -> FloatArray:
    """Local normals (N, 3): those of the beam whose surface each local point is nearest to."""
    beyond = np.stack([np.abs(points - centre) - half for centre, half in solid.beams])
    nearest = np.argmin(np.abs(beyond.max(axis=2)), axis=0)
    rows = np.arange(points.shape[0])
    face = np.argmax(beyond[nearest, rows], axis=1)
    centres = np.stack([centre for centre, _ in solid.beams])
    normals = np.zeros_like(points)
    normals[rows, face] = np.sign(points[rows, face] - centres[nearest, face])
    return normals


def _bracket(w: float, h: float, d: float, t: float) -> _Boxes:
    return [((t / 2 - w, 0, 0), (t / 2, h, d)), ((0, t / 2 - h, 0), (w, t / 2, d))]


def _cross(w: float, h: float, d: float, t: float) -> _Boxes:
    return [((0, 0, 0), (t / 2, h, d)), ((0, 0.2 * h, 0), (w, t / 2, d))]


def _chair(w: float, h: float, d: float, t: float) -> _Boxes:
    """Four legs, of which two go on as posts of the back, a seat and a rail."""
    x, z, r = w - t / 2, d - t / 2, t / 2
    front = h * 0.45
    legs: _Boxes = [((side * x, front - h, -z), (r, front, r)) for side in (-1, 1)]
    posts: _Boxes = [((side * x, 0, z), (r, h, r)) for side in (-1, 1)]
    seat = ((0, 2 * front - h, 0), (w, r, d))
    return [*legs, *posts, seat, ((0, h - t, z), (w, t, r))]


def _quadratic_interval(
    a: FloatArray, half_b: FloatArray, c: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Where a t² + 2 half_b t + c < 0, for a >= 0; an empty interval is (inf, -inf)."""
    root_of = half_b * half_b - a * c
    safe_a = np.maximum(a, np.float32(1e-12))
    root = np.sqrt(np.maximum(root_of, 0))
    hit = root_of > 0
    near = np.where(hit, (-half_b - root) / safe_a, _MISS)
    far = np.where(hit, (-half_b + root) / safe_a, -_MISS)
    return near.astype(np.float32), far.astype(np.float32)


def _slab_interval(o: FloatArray, d: FloatArray, half: float) -> tuple[FloatArray, FloatArray]:
    safe_d = np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    first, second = (-half - o) / safe_d, (half - o) / safe_d
    return (
        np.minimum(first, second).astype(np.float32),
        np.maximum(first, second).astype(np.float32),
    )


def _entry(near: FloatArray, far: FloatArray) -> FloatArray:
    return np.where(near < far, near, _MISS).astype(np.float32)


def _cast_sphere(a: tuple[float, ...], o: FloatArray, d: FloatArray) -> FloatArray:
    return _entry(
        *_quadratic_interval(dot_rows(d, d), dot_rows(o, d), dot_rows(o, o) - np.float32(a[0] ** 2))
    )


def _cast_box(a: tuple[float, ...], o: FloatArray, d: FloatArray) -> FloatArray:
    near = np.full(o.shape[0], -_MISS, np.float32)
    far = np.full(o.shape[0], _MISS, np.float32)
    for axis in range(3):
        axis_near, axis_far = _slab_interval(o[:, axis], d[:, axis], a[axis])
        near, far = np.maximum(near, axis_near), np.minimum(far, axis_far)
    return _entry(near, far)


def _cast_cylinder(a: tuple[float, ...], o: FloatArray, d: FloatArray) -> FloatArray:
    ox, oz, dx, dz = o[:, 0], o[:, 2], d[:, 0], d[:, 2]
    c = ox * ox + oz * oz - np.float32(a[0] ** 2)
    near, far = _quadratic_interval(dx * dx + dz * dz, ox * dx + oz * dz, c)
    cap_near, cap_far = _slab_interval(o[:, 1], d[:, 1], a[1])
    return _entry(np.maximum(near, cap_near), np.minimum(far, cap_far))


def _cast_cone(a: tuple[float, ...], o: FloatArray, d: FloatArray) -> FloatArray:
    """Apex at +half height, base disc at -half height: x² + z² = slope² (apex - y)²."""
    slope_sq = np.float32((a[0] / (2 * a[1])) ** 2)
    drop = np.float32(a[1]) - o[:, 1]
    quad_a = d[:, 0] ** 2 + d[:, 2] ** 2 - slope_sq * d[:, 1] ** 2
    half_b = o[:, 0] * d[:, 0] + o[:, 2] * d[:, 2] + slope_sq * drop * d[:, 1]
    c = o[:, 0] ** 2 + o[:, 2] ** 2 - slope_sq * drop**2
    root = np.sqrt(np.maximum(half_b**2 - quad_a * c, 0))
    real = half_b**2 - quad_a * c > 0
    safe_a = np.where(np.abs(quad_a) < 1e-9, np.float32(1e-9), quad_a)
    best = np.full(o.shape[0], _MISS, np.float32)
    for sign in (-1, 1):
        t = (-half_b + sign * root) / safe_a
        y = o[:, 1] + t * d[:, 1]
        best = np.where(real & (np.abs(y) <= a[1]), np.minimum(best, t), best)
    safe_dy = np.where(np.abs(d[:, 1]) < 1e-9, np.float32(1e-9), d[:, 1])
    t = (-np.float32(a[1]) - o[:, 1]) / safe_dy
    x, z = o[:, 0] + t * d[:, 0], o[:, 2] + t * d[:, 2]
    best = np.where(x * x + z * z <= a[0] ** 2, np.minimum(best, t), best)
    return best.astype(np.float32)


def _cast_capsule(a: tuple[float, ...], o: FloatArray, d: FloatArray) -> FloatArray:
    best = _cast_cylinder(a, o, d)
    for end in (-a[1], a[1]):
        moved = o - np.asarray((0.0, end, 0.0), np.float32)
        best = np.minimum(best, _cast_sphere((a[0],), moved, d))
    return best


def _cast_torus(
    solid: Solid, o: FloatArray, d: FloatArray, first: FloatArray, last: FloatArray
) -> FloatArray:
    """March each ray by the distance to the ring until it touches or leaves the bounds."""
    ring, tube = solid.extents
    length = np.sqrt(dot_rows(d, d))
    unit = d / length[:, None]
    t = first * length
    end = last * length
    touched = np.full(o.shape[0], _MISS, np.float32)
    active = np.arange(o.shape[0])
    tolerance = 5e-4 * tube
    for _ in range(_TORUS_STEPS):
        p = o[active] + t[active, None] * unit[active]
        radial = np.sqrt(p[:, 0] ** 2 + p[:, 2] ** 2)
        distance = np.sqrt((radial - ring) ** 2 + p[:, 1] ** 2) - np.float32(tube)
        hit = distance < tolerance
        touched[active[hit]] = t[active[hit]]
        t[active] += np.maximum(distance, np.float32(tolerance))
        active = active[~hit & (t[active] < end[active])]
        if active.size == 0:
            break
    return np.asarray(touched / length, np.float32)


_CAST = {
    "sphere": _cast_sphere,
    "box": _cast_box,
    "cylinder": _cast_cylinder,
    "cone": _cast_cone,
    "capsule": _cast_capsule,
}
_BEAMS = {"bracket": _bracket, "cross": _cross, "chair": _chair}
