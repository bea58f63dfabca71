"""Rays and solids, against the solids' implicit equations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.synth import SHAPES
from pipeline.synth.shapes import Solid, cast_rays, surface_normals, world_to_local

EXTENTS = {
    "sphere": (0.8,),
    "box": (0.5, 0.3, 0.7),
    "cylinder": (0.5, 0.6),
    "cone": (0.5, 0.6),
    "torus": (0.6, 0.2),
    "capsule": (0.3, 0.5),
}


def signed_distance_like(shape: str, p: np.ndarray) -> np.ndarray:
    """Negative inside, zero on the surface, in metres near it; written apart from the code."""
    a = EXTENTS[shape]
    radial = np.hypot(p[:, 0], p[:, 2])
    if shape == "sphere":
        return np.linalg.norm(p, axis=1) - a[0]
    if shape == "box":
        return (np.abs(p) - np.array(a)).max(axis=1)
    if shape == "cylinder":
        return np.maximum(radial - a[0], np.abs(p[:, 1]) - a[1])
    if shape == "cone":
        return np.maximum(radial - a[0] * (a[1] - p[:, 1]) / (2 * a[1]), -a[1] - p[:, 1])
    if shape == "torus":
        return np.hypot(radial - a[0], p[:, 1]) - a[1]
    return np.hypot(radial, p[:, 1] - np.clip(p[:, 1], -a[1], a[1])) - a[0]


def turned_solid(shape: str) -> Solid:
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    return Solid(
        shape=shape,
        extents=EXTENTS[shape],
        rotation=rotation.astype(np.float32),
        centre=np.array([0.4, 0.9, 5.0], np.float32),
    )


def rays_towards(solid: Solid, num: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    origin = np.array([[0.3, 1.2, 0.0]], np.float32)
    aims = solid.centre + rng.uniform(-1.2, 1.2, (num, 3))
    return origin, (aims - origin).astype(np.float32) * np.float32(0.3)


@pytest.mark.parametrize("shape", SHAPES)
def test_hits_are_the_first_points_of_the_solid(shape: str) -> None:
    solid = turned_solid(shape)
    origin, directions = rays_towards(solid)
    t = cast_rays(solid, origin, directions)
    hit = np.isfinite(t)
    assert 0.1 < hit.mean() < 0.9
    points = origin + t[hit, None] * directions[hit]
    on_surface = signed_distance_like(shape, world_to_local(solid, points).astype(np.float64))
    assert np.abs(on_surface).max() < 2e-3
    # Nothing of the solid lies before the hit, nor anywhere on a ray that misses.
    for share in np.linspace(0.5, 0.995, 60):
        before = origin + (share * t[hit, None]) * directions[hit]
        assert signed_distance_like(shape, world_to_local(solid, before)).min() > -2e-3
    for far in np.linspace(2.0, 6.0, 80):
        beyond = origin + np.float32(far) * directions[~hit]
        assert signed_distance_like(shape, world_to_local(solid, beyond)).min() > -1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_the_gradient_of_the_surface(shape: str) -> None:
    solid = turned_solid(shape)
    origin, directions = rays_towards(solid)
    t = cast_rays(solid, origin, directions)
    hit = np.isfinite(t)
    points = (origin + t[hit, None] * directions[hit]).astype(np.float32)
    normals = surface_normals(solid, points)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4)
    assert ((normals * directions[hit]).sum(axis=1) < 0.05).all()  # towards the viewer
    outside = signed_distance_like(shape, world_to_local(solid, points + 0.02 * normals))
    assert np.quantile(outside, 0.02) > 0.005


@pytest.mark.parametrize("shape", SHAPES)
def test_half_height_and_bounding_radius_hold_the_solid(shape: str) -> None:
    solid = turned_solid(shape)
    inside = np.random.default_rng(1).uniform(-1.2, 1.2, (200_000, 3))
    inside = inside[signed_distance_like(shape, inside) <= 0]
    world = inside @ solid.rotation.T
    assert -world[:, 1].min() <= solid.half_height + 1e-5
    assert -world[:, 1].min() > solid.half_height - 0.06
    assert np.linalg.norm(inside, axis=1).max() <= solid.bounding_radius + 1e-5


def test_a_ray_that_starts_behind_the_solid_misses() -> None:
    solid = turned_solid("sphere")
    away = np.array([[0.0, 0.0, 1.0]], np.float32)
    start = (solid.centre + np.array([0, 0, 2], np.float32))[None]
    assert np.isinf(cast_rays(solid, start, away)).all()
    near_copy = dataclasses.replace(solid, centre=solid.centre + np.array([0, 0, 4], np.float32))
    assert cast_rays(near_copy, start, away)[0] == pytest.approx(2 - 0.8, abs=1e-4)
