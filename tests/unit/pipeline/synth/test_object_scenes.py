"""Layered scenes of the labeller: masks, boxes and depth belong to the picture."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.synth import ObjectScene, draw_pattern_tiles, draw_scene, list_objects
from pipeline.synth.object_outlines import FAMILIES, draw_outline


@pytest.fixture(scope="module")
def scenes() -> list[ObjectScene]:
    tiles = draw_pattern_tiles(np.random.default_rng(0), 30)
    return [draw_scene(np.random.default_rng(seed), tiles, size=160) for seed in range(12)]


def test_a_seed_is_a_scene() -> None:
    tiles = draw_pattern_tiles(np.random.default_rng(0), 20)
    first, second = (draw_scene(np.random.default_rng(7), tiles, size=96) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.owners, second.owners)


def test_pictures_masks_and_depth_share_their_frame(scenes: list[ObjectScene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (160, 160, 3)
        assert scene.owners.shape == scene.inverse_depth.shape == (160, 160)
        assert scene.inverse_depth.min() == 0
        assert scene.inverse_depth.max() == pytest.approx(1)
        assert scene.owners.max() < len(scene.full_areas) == len(scene.camouflaged)


def test_boxes_touch_the_visible_pixels_on_every_side(scenes: list[ObjectScene]) -> None:
    count = 0
    for scene in scenes:
        for item in list_objects(scene):
            count += 1
            x1, y1, x2, y2 = item.box
            mask = scene.owners == item.index
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
    assert count > 20


def test_objects_are_neither_boxes_nor_specks(scenes: list[ObjectScene]) -> None:
    fills = [
        (scene.owners == item.index).sum()
        / ((item.box[2] - item.box[0]) * (item.box[3] - item.box[1]))
        for scene in scenes
        for item in list_objects(scene)
    ]
    assert 0.35 < np.mean(fills) < 0.75


def test_objects_stand_before_what_they_hide(scenes: list[ObjectScene]) -> None:
    nearer = [
        scene.inverse_depth[scene.owners >= 0].mean() > scene.inverse_depth[scene.owners < 0].mean()
        for scene in scenes
        if (scene.owners >= 0).any() and (scene.owners < 0).any()
    ]
    assert np.mean(nearer) > 0.8


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_draws_finite_parts(family: str) -> None:
    recipe = FAMILIES[family][0]
    for seed in range(6):
        parts = recipe(np.random.default_rng(seed))
        assert parts
        for part in parts:
            assert part.points.ndim == 2
            assert part.points.shape[1] == 2
            assert np.isfinite(part.points).all()


def test_outlines_have_longer_side_one() -> None:
    for seed in range(40):
        points = np.concatenate([p.points for p in draw_outline(np.random.default_rng(seed))])
        assert points.min() >= -1e-6
        assert np.ptp(points, axis=0).max() == pytest.approx(1, abs=1e-5)
