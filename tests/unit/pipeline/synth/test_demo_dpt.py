"""The bundled demo depth model: loads as users load models, and is as good as its card says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pipeline.resources import demo_dpt_path
from pipeline.synth import render_scene

MODEL = Path(__file__).parents[4] / "data" / "demo-dpt"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MODEL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


training = load_script("train_demo_dpt")
evaluation = load_script("evaluate_demo_dpt")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_folder_is_small_and_complete() -> None:
    assert demo_dpt_path() == MODEL
    assert (MODEL / "model.safetensors").stat().st_size <= 6_000_000
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["DPTForDepthEstimation"]
    assert "Intel/dpt-large" in (MODEL / "README.md").read_text()


def test_the_card_meets_the_bars() -> None:
    card = json.loads((MODEL / "metrics.json").read_text())
    assert card["abs_rel"] <= 0.10
    assert card["delta_125"] >= 0.90


def test_held_out_scenes_are_as_the_card_says() -> None:
    measured = evaluation.evaluate(MODEL, 16)
    card = json.loads((MODEL / "metrics.json").read_text())
    # Sixteen of the scenes behind the card: as good, give or take what scenes differ.
    assert measured.abs_rel <= 1.35 * card["abs_rel"]
    assert measured.delta_125 >= card["delta_125"] - 0.05
    assert measured.boundary_recall >= 0.4 * card["boundary_recall"]


def test_larger_is_nearer_whatever_the_picture_shape() -> None:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor = AutoImageProcessor.from_pretrained(MODEL)
    model = AutoModelForDepthEstimation.from_pretrained(MODEL).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    scene = render_scene(77, (160, 240))
    with torch.no_grad():
        predicted = model(**processor(images=scene.image, return_tensors="pt")).predicted_depth
    assert predicted.shape == (1, 192, 192)
    rows = (np.arange(192) + 0.5) * 160 // 192
    columns = (np.arange(192) + 0.5) * 240 // 192
    truth = scene.inverse_depth[np.ix_(rows.astype(int), columns.astype(int))]
    assert np.corrcoef(predicted[0].numpy().ravel(), truth.ravel())[0, 1] > 0.9


def test_the_loss_ignores_scale_and_shift_where_it_says_so() -> None:
    torch.manual_seed(0)
    target = torch.rand(2, 32, 32)
    weight = torch.ones_like(target)
    aligned = training.align(2.0 * target + 3.0, target, weight)
    assert torch.allclose(aligned, target, atol=0.01)
    objects = torch.zeros(2, 32, 32, dtype=torch.bool)
    perfect = training.depth_loss(target, target, objects)
    assert perfect < 0.2 * training.depth_loss(torch.rand(2, 32, 32), target, objects)


def test_depth_steps_are_found_on_borders_and_not_on_slanted_floors() -> None:
    floor = torch.linspace(0, 0.4, 24)[None, :, None].repeat(1, 1, 24)
    assert training.near_depth_steps(floor).sum() == 0
    floor[0, 8:14, 8:14] = 0.9
    steps = training.near_depth_steps(floor)[0]
    assert steps[8, 8] == 1
    assert steps[:4].sum() == 0
    assert steps[:, 19:].sum() == 0


def test_missed_steps_ask_for_far_borders_as_for_near_ones_and_not_for_slants() -> None:
    floor = torch.linspace(0, 0.9, 24)[None, :, None].repeat(1, 1, 24)
    assert training.missed_steps(torch.zeros_like(floor), floor) == 0
    for height in (0.05, 0.5):
        target = torch.full((1, 24, 24), 0.1)
        target[0, 8:16, 8:16] += height
        assert training.missed_steps(target, target) == 0
        flat = torch.full_like(target, 0.1)
        assert training.missed_steps(flat, target) == pytest.approx(1)
        half = 0.1 + 0.5 * (target - 0.1)
        assert training.missed_steps(half, target) == pytest.approx(0.5, abs=1e-5)
        wrong = 0.1 - (target - 0.1)
        assert training.missed_steps(wrong, target) == pytest.approx(2, abs=1e-5)


def test_a_few_steps_of_training_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = training.build_model()
    scene = render_scene(3, (192, 192))
    image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    inverse = torch.from_numpy(scene.inverse_depth.copy())[None]
    inverse = (inverse - inverse.min()) / (inverse.max() - inverse.min())
    objects = torch.from_numpy(scene.masks.any(axis=0))[None]
    model.dpt.embeddings.image_size = (64, 64)
    image, inverse = image[..., ::3, ::3], inverse[..., ::3, ::3]
    objects = objects[..., ::3, ::3]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        loss = training.depth_loss(model(image).predicted_depth, inverse, objects)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_border_recall_is_whole_for_the_truth_and_nothing_for_a_flat_guess() -> None:
    scene = render_scene(5, (96, 96))
    truth = scene.inverse_depth.astype(np.float64)
    every = [evaluation.recovered_border(scene, truth, n) for n in range(len(scene.masks))]
    assert np.concatenate(every).size > 100
    assert np.concatenate(every).mean() > 0.9
    flat = np.full_like(truth, truth.mean())
    none = [evaluation.recovered_border(scene, flat, n) for n in range(len(scene.masks))]
    assert not np.concatenate(none).any()
    assert evaluation.count_false_steps(scene, truth)[0] == 0
    noise = np.random.default_rng(0).normal(0, 0.3, truth.shape)
    num_false, num_flat = evaluation.count_false_steps(scene, truth + noise)
    assert num_false > 0.5 * num_flat


def test_alignment_undoes_scale_and_shift() -> None:
    target = np.random.default_rng(0).uniform(0.1, 1, (8, 8)).astype(np.float32)
    aligned = evaluation.align_scale_and_shift((target * 7 - 2).astype(np.float32), target)
    assert np.allclose(aligned, target, atol=1e-5)


def test_the_card_carries_the_recorded_numbers() -> None:
    measured = evaluation.Measured(**json.loads((MODEL / "metrics.json").read_text()))
    card = (MODEL / "README.md").read_text()
    assert evaluation.fill_card(card, measured) == card
    with pytest.raises(ValueError, match="needs the lines"):
        evaluation.fill_card("no table here", measured)
