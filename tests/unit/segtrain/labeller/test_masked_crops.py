"""Crops of objects with known masks: they fit their pictures, follow the seed, and teach."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from segtrain.errors import DatasetError
from segtrain.labeller import BoxedPhoto, LabellerSettings, MaskedCrops, MaskedObject
from segtrain.labeller.crop_network import BOX_HINT, build_crop_network
from tests.unit.segtrain.labeller.conftest import draw_disc, follow_loss


@pytest.fixture
def objects() -> list[MaskedObject]:
    result = []
    for seed in range(10, 13):
        image, mask, _, _ = draw_disc(seed)
        load_image, load_mask = functools.partial(np.copy, image), functools.partial(np.copy, mask)
        result.append(MaskedObject(name=f"{seed}", load_image=load_image, load_mask=load_mask))
    return result


def test_targets_lie_on_their_objects_and_follow_seed_and_iteration(
    objects: list[MaskedObject], tiny_settings: LabellerSettings
) -> None:
    settings = dataclasses.replace(tiny_settings, light_strength=0.0, box_hint_share=1.0)
    source = MaskedCrops(objects, settings, build_crop_network().description)
    first, again, other = source(0), source(0), source(1)
    assert first.rgb.shape == (2, 3, 64, 64)
    assert first.hints.shape == (2, 2, 64, 64)
    assert first.target.shape == (2, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.rgb, other.rgb)
    for rgb, hint, target in zip(first.rgb, first.hints[:, BOX_HINT], first.target, strict=True):
        # Discs are bright and red, their ground is dark and blue; mirrored with the picture.
        is_disc = torch.nn.functional.avg_pool2d(rgb[None, :1] - rgb[None, 2:], 2)[0, 0] > 0
        assert ((target > 0.5) == is_disc).float().mean() > 0.95
        inside = torch.nn.functional.avg_pool2d(hint[None, None], 2)[0, 0] > 0
        assert (inside | (target < 0.5)).all()


def test_an_object_without_a_fitting_mask_is_refused_by_name(
    objects: list[MaskedObject], tiny_settings: LabellerSettings
) -> None:
    description = build_crop_network().description
    with pytest.raises(DatasetError, match="no object with a mask to learn from"):
        MaskedCrops([], tiny_settings, description)
    for mask in (np.zeros((96, 128)), np.ones((48, 64))):
        wrong = dataclasses.replace(objects[0], load_mask=functools.partial(np.copy, mask))
        with pytest.raises(DatasetError, match="the mask of 10 has"):
            MaskedCrops([wrong], tiny_settings, description)(0)


def test_the_labeller_learns_from_boxes_and_masks_jointly(
    photos: list[BoxedPhoto], objects: list[MaskedObject], eager_settings: LabellerSettings,
    start_weights: Path, tmp_path: Path,
) -> None:  # fmt: skip
    settings = dataclasses.replace(eager_settings, max_iterations=20, paste_share=0.0)
    known = MaskedCrops(objects, settings, build_crop_network().description)
    seen = follow_loss("known", photos, settings, tmp_path, start=start_weights, known_crops=known)
    assert np.mean(seen[-4:]) < 0.7 * np.mean(seen[:4])
