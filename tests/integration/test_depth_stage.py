"""Stage one on a tiny random DPT: compute, resume, fail, damage, verify and repair."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.stage_one import shard_computation as stage
from depthcache.stage_one.depth_models import load_depth_model
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.settings import StageOneSettings

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def finished(model, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    precompute_depth(images, model, str(root), StageOneSettings(shard_rows=3))
    return root


@pytest.fixture
def root(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "cache"))


def _key(path):
    return image_key(path.read_bytes())


def _contents(root):
    files = [p for p in root.rglob("*") if p.is_file() and p.name != "sealed.json"]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def _segment(root):
    (segment,) = root.glob("*/segments/*")
    return segment


def test_maps_equal_the_model_up_to_half_a_step(model, images, root):
    loaded = load_depth_model(model)
    cache = DepthCache.open(root)
    for path in images:
        with Image.open(path) as image:
            pixels = loaded.preprocess(np.array(image))
        (expected,) = loaded.predict([pixels])
        half_step = np.ptp(expected) / 4094 / 2
        assert np.abs(cache.read(_key(path)) - expected).max() <= half_step * 1.01 + 1e-6


def test_the_seal_names_the_data_set(images, root):
    folder = images[0].parent
    (provenance,) = DepthCache.open(root).info()["provenance"]
    assert provenance["dataset"] == f"{folder.parent.name}/{folder.name}"


def test_second_run_computes_nothing_and_equal_files_share_a_map(model, images, root, tmp_path):
    before = _contents(root)
    twin = Path(shutil.copy(images[0], tmp_path / "twin.png"))
    summary = precompute_depth([*images, twin], model, str(root), StageOneSettings(shard_rows=3))
    assert (summary.num_images, summary.num_unique) == (NUM_IMAGES + 1, NUM_IMAGES)
    assert (summary.num_present, summary.num_computed) == (NUM_IMAGES, 0)
    assert _contents(root) == before


def test_renamed_model_folder_keeps_the_fingerprint(model, tmp_path):
    renamed = shutil.copytree(model, tmp_path / "other-name")
    assert load_depth_model(renamed).fingerprint == load_depth_model(model).fingerprint


@pytest.mark.parametrize("num_lost", [1, 3])
def test_passing_read_errors_are_not_recorded(model, images, tmp_path, monkeypatch, num_lost):
    load, given = stage.load_image, images[:3]
    lost = {_key(path) for path in given[:num_lost]}

    def load_or_fail(loaded, path, key):
        if key in lost:
            raise OSError(5, "Input/output error")
        return load(loaded, path, key)

    monkeypatch.setattr(stage, "load_image", load_or_fail)
    first = precompute_depth(given, model, str(tmp_path), StageOneSettings(shard_rows=1))
    assert (first.num_computed, first.num_failed) == (3 - num_lost, num_lost)
    assert "Input/output error" in first.failures[0]["reason"]
    monkeypatch.undo()
    second = precompute_depth(given, model, str(tmp_path), StageOneSettings(shard_rows=1))
    assert (second.num_computed, second.num_failed) == (num_lost, 0)
    assert sorted(DepthCache.open(tmp_path).keys()) == sorted(map(_key, given))


def test_model_that_gives_nan_fails_every_image(model, images, tmp_path):
    import torch
    from transformers import DPTForDepthEstimation

    broken = shutil.copytree(model, tmp_path / "nan-dpt")
    network = DPTForDepthEstimation.from_pretrained(broken)
    with torch.no_grad():
        next(network.head.parameters()).fill_(float("nan"))
    network.save_pretrained(broken)
    summary = precompute_depth(images[:2], broken, str(tmp_path / "cache"))
    assert (summary.num_computed, summary.num_failed) == (0, 2)
    assert "not finite" in summary.failures[0]["reason"]
    assert len(DepthCache.open(tmp_path / "cache")) == 0


def test_root_that_cannot_be_written_is_an_error(model, images, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file|irectory"):
        precompute_depth(images[:1], model, str(tmp_path / "file" / "cache"))
