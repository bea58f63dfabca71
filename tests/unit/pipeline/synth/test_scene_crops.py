"""Scenes as training batches: crops, masks and hints belong together; chunks pass through files."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.resources import labeller_path
from pipeline.synth import ObjectScene, draw_pattern_tiles
from pipeline.synth.scene_chunks import draw_usable, pack_scenes, scene_drawers
from pipeline.synth.scene_crops import ScenePool
from pipeline.synth.scene_scores import calibrate_on_scenes, label_scenes
from segtrain.labeller import load_labeller
from segtrain.labeller.crop_network import BOX_HINT, DEPTH_HINT, NetworkDescription


@pytest.fixture(scope="module")
def scenes() -> list[ObjectScene]:
    rng = np.random.default_rng(0)
    tiles = draw_pattern_tiles(rng, 20)
    recent: list[ObjectScene] = []
    return [draw_usable(rng, tiles, recent) for _ in range(6)]


def make_pool(capacity: int) -> ScenePool:
    generator = torch.Generator().manual_seed(0)
    return ScenePool(capacity, torch.device("cpu"), NetworkDescription(), generator)


def test_masks_touch_the_sides_of_their_hinted_boxes(scenes: list[ObjectScene]) -> None:
    pool = make_pool(8)
    pool.add(pack_scenes(np.random.default_rng(1), scenes))
    crops = pool.draw(64, 96)
    assert crops.rgb.shape == (64, 3, 96, 96)
    shown = crops.hints[:, BOX_HINT].flatten(1).amax(1) > 0
    assert 0.5 < float(shown.float().mean()) < 0.9
    outside = torch.nn.functional.avg_pool2d(crops.hints[shown, BOX_HINT], 2) < -0.99
    # Boxes are off by a few percent on purpose, so that a little may lie outside.
    share = (crops.target[shown] * outside).sum() / crops.target[shown].sum()
    assert float(share) < 0.05
    assert float(crops.target.flatten(1).mean(1).min()) > 0.01
    with_depth = crops.hints[:, DEPTH_HINT].abs().flatten(1).amax(1) > 0
    assert 0.3 < float(with_depth.float().mean()) < 0.7


def test_colours_follow_the_mask() -> None:
    size = 64
    owners = np.full((size, size), -1, np.int16)
    owners[20:44, 16:40] = 0
    image = np.where(owners[..., None] == 0, 250, 10).astype(np.uint8).repeat(3, 2)
    scene = ObjectScene(
        image=image,
        owners=owners,
        inverse_depth=(owners == 0).astype(np.float32),
        full_areas=np.array([576.0], np.float32),
        camouflaged=np.zeros(1, np.bool_),
    )
    pool = make_pool(4)
    pool.add(pack_scenes(np.random.default_rng(0), [scene]))
    crops = pool.draw(32, 64)
    bright = torch.nn.functional.avg_pool2d(crops.rgb.mean(1, keepdim=True), 2)[:, 0]
    solid, empty = crops.target > 0.99, crops.target < 0.01
    for picture, inside, outside in zip(bright[8:], solid[8:], empty[8:], strict=True):
        assert float(picture[inside].min()) > float(picture[outside].max())


def test_the_oldest_scenes_make_room(scenes: list[ObjectScene]) -> None:
    pool = make_pool(8)
    rng = np.random.default_rng(2)
    pool.add(pack_scenes(rng, scenes))
    assert len(pool) == 6
    pool.add(pack_scenes(rng, scenes[::-1]))
    assert len(pool) == 8
    images = pool.arrays["images"].numpy()
    np.testing.assert_array_equal(images[6], scenes[5].image)
    np.testing.assert_array_equal(images[0], scenes[3].image)
    np.testing.assert_array_equal(images[4], scenes[4].image)


def test_drawers_hand_scenes_over_in_files(tmp_path: Path) -> None:
    pool = make_pool(100)
    with scene_drawers(tmp_path, seed=3, num_processes=1, most_chunks=1):
        for _ in range(600):
            if pool.read_folder(tmp_path, delete=True):
                break
            time.sleep(0.1)
    assert len(pool) == 24
    assert not list(tmp_path.glob("*.npz"))
    assert pool.read_folder(tmp_path) == 0


def test_scores_are_calibrated_to_what_the_masks_are_worth(one_thread: None) -> None:
    labeller = load_labeller(labeller_path(), device=torch.device("cpu"))
    calibration = calibrate_on_scenes(labeller, seed=5, num_scenes=14)
    found = label_scenes(dataclasses.replace(labeller, calibration=calibration), 5, 14)
    assert len(found.masks) >= 50
    scores = [mask.score for mask in found.masks]
    assert np.mean(scores) == pytest.approx(np.mean(found.ious), abs=0.03)
    assert np.corrcoef(scores, found.ious)[0, 1] > 0.4
    assert np.mean(found.ious) > np.mean(found.filled) + 0.1
