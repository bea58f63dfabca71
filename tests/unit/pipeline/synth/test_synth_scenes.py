"""What a scene promises: determinism, exact masks and depth, camouflage that fools colour."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pipeline.synth import (
    APPEARANCES,
    OPEN_SHAPES,
    PRESETS,
    SHAPES,
    Scene,
    SceneSettings,
    render_scene,
)
from pipeline.synth.contact_sheet import draw_contact_sheet
from pipeline.synth.shapes import cast_rays, surface_normals

SMALL = (96, 128)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(11, (128, 128), index=index) for index in range(24)]


def test_the_same_seed_and_index_give_the_same_scene_and_others_do_not() -> None:
    first, again = render_scene(5, SMALL, index=2), render_scene(5, SMALL, index=2)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.depth_metres, again.depth_metres)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, render_scene(5, SMALL, index=3).image)
    assert not np.array_equal(first.image, render_scene(6, SMALL, index=2).image)


def test_shapes_and_types(scenes: list[Scene]) -> None:
    scene = render_scene(0, SMALL)
    assert scene.image.shape == (*SMALL, 3)
    assert scene.image.dtype == np.uint8
    assert scene.depth_metres.shape == SMALL
    assert scene.depth_metres.dtype == np.float32
    for each in scenes:
        assert np.isfinite(each.depth_metres).all()
        assert each.depth_metres.min() > 0.3
        assert 3 <= len(each.masks) <= 10
        assert each.masks.sum(axis=0).max() <= 1
        assert all(area >= 12 for area in each.masks.sum(axis=(1, 2)))
        assert len(each.classes) == len(each.appearances) == len(each.masks)


def test_all_classes_appearances_tiny_and_cut_objects_occur(scenes: list[Scene]) -> None:
    assert {int(name) for each in scenes for name in each.classes} == set(range(len(SHAPES)))
    assert {name for each in scenes for name in each.appearances} == set(APPEARANCES)
    areas = np.concatenate([each.masks.sum(axis=(1, 2)) for each in scenes])
    assert (areas < 0.005 * 128**2).any()
    assert (areas > 0.04 * 128**2).any()
    assert any(each.cut_by_border.any() for each in scenes)


def test_depth_follows_the_pinhole_model_on_the_floor() -> None:
    settings = SceneSettings(num_objects_min=1, num_objects_max=1)
    scene = render_scene(4, SMALL, settings=settings)
    rows = scene.inverse_depth[-8:][:, ~scene.masks[0][-8:].any(axis=0)]
    # Inverse depth of a plane is linear over the picture.
    assert np.abs(np.diff(rows, n=2, axis=0)).max() < 1e-4
    assert (np.diff(rows, axis=0) > 0).all()


def test_boxes_are_tight(scenes: list[Scene]) -> None:
    for each in scenes:
        for (left, top, width, height), mask in zip(each.boxes_xywh, each.masks, strict=True):
            inside = mask[top : top + height, left : left + width]
            assert inside.sum() == mask.sum()
            assert inside.any(axis=0)[[0, -1]].all()
            assert inside.any(axis=1)[[0, -1]].all()


def border_steps(scene: Scene, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """|difference| of (H, W, C) `values` over left-right pixel pairs that straddle a border."""
    crossing = mask[:, 1:] ^ mask[:, :-1]
    others = scene.masks.sum(axis=0).astype(bool) & ~mask
    crossing &= ~others[:, 1:] & ~others[:, :-1]
    return np.linalg.norm(values[:, 1:] - values[:, :-1], axis=-1)[crossing]


def test_camouflage_hides_the_border_from_colour_and_not_from_depth() -> None:
    colour: dict[str, list[float]] = {name: [] for name in APPEARANCES}
    depth: dict[str, list[float]] = {name: [] for name in APPEARANCES}
    for index in range(30):
        scene = render_scene(21, (128, 128), index=index)
        log_depth = np.log(scene.depth_metres)[..., None]
        for mask, name in zip(scene.masks, scene.appearances, strict=True):
            colour[name].extend(border_steps(scene, scene.image.astype(float), mask))
            depth[name].extend(border_steps(scene, log_depth, mask))
    assert np.median(colour["camouflaged"]) < 0.4 * np.median(colour["easy"])
    assert np.median(depth["camouflaged"]) > 0.05
    assert np.median(depth["camouflaged"]) > 0.7 * np.median(depth["easy"])


def test_shares_are_kept() -> None:
    settings = SceneSettings(camouflaged_share=0.0, easy_share=1.0)
    names = [
        name
        for i in range(6)
        for name in render_scene(1, SMALL, index=i, settings=settings).appearances
    ]
    assert set(names) == {"easy"}


def test_shadows_darken_the_lit_side_only() -> None:
    scene = render_scene(11, (128, 128), index=0)
    assert 40 < scene.image.mean() < 215
    assert scene.image.std() > 15


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"camouflaged_share": 1.2}, "camouflaged_share"),
        ({"camouflaged_share": 0.8, "easy_share": 0.4}, "add up"),
        ({"num_objects_min": 5, "num_objects_max": 4}, "num_objects_min"),
        ({"diameter_min": 0.5, "diameter_max": 0.4}, "diameter_min"),
        ({"shapes": ("teapot",)}, "teapot"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SceneSettings(**changes)


def test_bad_size_or_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        render_scene(0, (16, 64))
    with pytest.raises(ValueError, match="seed"):
        render_scene(-1)


def test_contact_sheet_lays_out_three_panels_per_scene(scenes: list[Scene]) -> None:
    sheet = draw_contact_sheet(scenes[:3], columns=2)
    assert sheet.shape == (2 * 128, 2 * 3 * 128, 3)
    assert np.array_equal(sheet[:128, :128], scenes[0].image)
    assert (sheet[128:, 3 * 128 :] == 128).all()
    with pytest.raises(ValueError, match="at least one"):
        draw_contact_sheet([])


@pytest.mark.parametrize(
    ("request_", "areas", "mean_colour", "mean_depth"),
    [
        (
            {"seed": 11, "size": SMALL},
            [252, 41, 71, 150, 71, 22, 464, 35, 28, 162],
            103.83097,
            4.6918664,
        ),
        (
            {"seed": 11, "size": SMALL, "index": 3},
            [600, 75, 347, 25, 32, 83, 560, 124],
            77.574137,
            4.438514,
        ),
    ],
)
def test_scenes_recorded_before_there_were_presets_are_as_they_were(
    request_: dict[str, Any], areas: list[int], mean_colour: float, mean_depth: float
) -> None:
    scene = render_scene(**request_)
    assert scene.masks.sum(axis=(1, 2)).tolist() == areas
    assert scene.image.mean() == pytest.approx(mean_colour, rel=1e-5)
    assert scene.depth_metres.mean() == pytest.approx(mean_depth, rel=1e-5)


def test_objects_of_the_miniature_are_large_and_fill_about_half_of_their_boxes() -> None:
    settings = PRESETS["miniature"]
    fills: dict[str, list[float]] = {name: [] for name in OPEN_SHAPES}
    appearances: set[str] = set()
    for index in range(40):
        scene = render_scene(31, (128, 128), index=index, settings=settings)
        assert 1 <= len(scene.masks) <= 5
        appearances.update(scene.appearances)
        for mask, box, solid in zip(scene.masks, scene.boxes_xywh, scene.solids, strict=True):
            assert max(box[2:]) >= 0.25 * 128
            fills[solid.shape].append(mask.sum() / (box[2] * box[3]))
    assert appearances == set(APPEARANCES)
    assert min(len(shares) for shares in fills.values()) >= 5
    assert np.mean(np.concatenate(list(fills.values()))) <= 0.55
    assert max(np.mean(shares) for shares in fills.values()) <= 0.62


def test_patchwork_breaks_colour_inside_objects() -> None:
    inside: dict[float, list[float]] = {0.0: [], 1.0: []}
    for share, steps in inside.items():
        settings = dataclasses.replace(
            PRESETS["miniature"], patchwork_share=share, camouflaged_share=0.0, easy_share=0.0
        )
        for index in range(8):
            scene = render_scene(33, (128, 128), index=index, settings=settings)
            for mask in scene.masks:
                pair = mask[:, 4:] & mask[:, :-4]
                image = scene.image.astype(float)
                steps.extend(np.linalg.norm(image[:, 4:] - image[:, :-4], axis=-1)[pair])
    assert np.mean(inside[1.0]) > 1.5 * np.mean(inside[0.0])


@pytest.mark.parametrize("shape", OPEN_SHAPES)
def test_open_shapes_stand_on_the_floor_with_exact_normals(shape: str) -> None:
    settings = dataclasses.replace(PRESETS["miniature"], shapes=(shape,), floating_share=0.0)
    scene = render_scene(41, (128, 128), settings=settings)
    for solid in scene.solids:
        assert solid.centre[1] == pytest.approx(solid.half_height, abs=1e-5)
        angles = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
        directions = angles / np.linalg.norm(angles, axis=1, keepdims=True)
        origins = solid.centre - 3 * solid.bounding_radius * directions
        t = cast_rays(solid, origins.astype(np.float32), directions)
        hit = np.isfinite(t)
        assert hit.any()
        points = (origins + t[:, None] * directions)[hit]
        normals = surface_normals(solid, points.astype(np.float32))
        assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-3)
        assert ((normals * directions[hit]).sum(axis=1) < 1e-2).mean() > 0.99
        assert (points[:, 1] > -1e-3).all()
