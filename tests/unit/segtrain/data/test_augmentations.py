"""Depth follows the image through every augmentation: a coordinate ramp stands in for depth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from segtrain.data.augmentations import (
    GeometricPlan,
    apply_plan_to_inverse_depth,
    draw_plan,
    plan_to_transforms,
    resize_map,
    scale_to_255,
)
from segtrain.data.settings import AugmentationSettings
from segtrain.errors import TrainingConfigError


def _resize(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    resized: npt.NDArray[np.float32] = functional.interpolate(
        torch.from_numpy(values)[None, None], size=size, mode="bilinear", antialias=True
    )[0, 0].numpy()
    return resized


@settings(max_examples=60)
@given(
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    short_side=st.integers(20, 120),
    crop_fraction=st.sampled_from([1.0, 0.5, 0.8]),
    seed=st.integers(0, 10_000),
    vertical=st.booleans(),
)
def test_depth_ramp_lands_where_the_image_ramp_lands(
    height: int, width: int, short_side: int, crop_fraction: float, seed: int, vertical: bool
) -> None:
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    ramp = ((rows / (height - 1)) if vertical else (columns / (width - 1))).astype(np.float32)
    image = np.repeat(np.round(ramp * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    plan = draw_plan(
        (height, width),
        AugmentationSettings(short_sides=[short_side], max_size=150, crop_fraction=crop_fraction),
        np.random.default_rng(seed),
    )
    moved_image = plan_to_transforms(plan).apply_image(image)[:, :, 0].astype(np.float32)
    moved_depth = apply_plan_to_inverse_depth(plan, lambda size: _resize(ramp, size))
    assert moved_depth.shape == moved_image.shape == plan.size
    # One source pixel is 255 / (extent − 1) grey levels; the two must agree to half a pixel of the
    # result: shrinking averages the ramp's ends, which min–max scaling of depth stretches again.
    extent = height if vertical else width
    cropped = extent if plan.crop_xywh is None else plan.crop_xywh[3 if vertical else 2]
    pixel = 255 / (extent - 1) * max(1.0, cropped / plan.size[0 if vertical else 1])
    assert np.abs(moved_depth - moved_image).max() <= 0.5 * pixel + 2.0


def test_boxes_move_with_the_depth() -> None:
    depth = np.zeros((40, 60), dtype=np.float32)
    depth[10:30, 20:32] = 1.0
    plan = GeometricPlan(
        source_size=(40, 60), crop_xywh=(8, 4, 48, 32), size=(64, 96), is_flipped=True
    )
    box = plan_to_transforms(plan).apply_box(np.array([[20.0, 10.0, 32.0, 30.0]]))[0]
    moved = apply_plan_to_inverse_depth(plan, lambda size: _resize(depth, size))
    rows, columns = np.nonzero(moved > 127)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(extent, box, atol=1.0)


def test_flip_twice_is_the_identity() -> None:
    values = np.random.default_rng(0).random((12, 18), dtype=np.float32)
    plan = GeometricPlan(
        source_size=(12, 18), crop_xywh=(0, 0, 18, 12), size=(12, 18), is_flipped=True
    )
    once = apply_plan_to_inverse_depth(plan, lambda _: values)
    twice = apply_plan_to_inverse_depth(plan, lambda _: once)
    np.testing.assert_allclose(twice, scale_to_255(values), atol=1e-4)


def test_crop_does_not_rescale_depth() -> None:
    ramp = np.linspace(0, 1, 50, dtype=np.float32)[None].repeat(30, axis=0)
    plan = GeometricPlan(
        source_size=(30, 50), crop_xywh=(25, 0, 25, 30), size=(30, 25), is_flipped=False
    )
    moved = apply_plan_to_inverse_depth(plan, lambda size: _resize(ramp, size))
    np.testing.assert_allclose(moved[0], 255 * ramp[0, 25:], atol=1e-3)


def test_teacher_plan_keeps_crop_and_flip() -> None:
    plan = GeometricPlan(
        source_size=(100, 200), crop_xywh=(10, 5, 120, 60), size=(30, 60), is_flipped=True
    )
    teacher = plan.at_short_side(80, 133)
    assert (teacher.crop_xywh, teacher.is_flipped) == (plan.crop_xywh, True)
    assert teacher.size == (67, 133)


def test_scaling_and_flat_maps() -> None:
    scaled = scale_to_255(np.array([[-2.0, 0.0, 2.0]], dtype=np.float32))
    np.testing.assert_array_equal(scaled, [[0, 127.5, 255]])
    flat = scale_to_255(np.full((2, 2), 7.0, dtype=np.float32))
    np.testing.assert_array_equal(flat, np.zeros((2, 2)))


def test_resize_map_keeps_a_map_of_the_right_size() -> None:
    values = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    assert resize_map(values, (5, 7)) is values


@pytest.mark.parametrize(
    "values", [{"short_sides": []}, {"flip_probability": 1.5}, {"crop_fraction": 0.0}]
)
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(TrainingConfigError, match=next(iter(values))):
        AugmentationSettings(**values)  # type: ignore[arg-type]
