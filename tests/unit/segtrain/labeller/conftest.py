"""A labeller at random weights and photos with one disc each."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain.labeller import BoxedPhoto, LabellerSettings, adapt_labeller
from segtrain.labeller.crop_network import build_crop_network, save_crop_network


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Small networks: threads only slow them down."""


@pytest.fixture(scope="session")
def start_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("labeller") / "start.safetensors"
    save_crop_network(build_crop_network(), path)
    return path


@pytest.fixture
def tiny_settings() -> LabellerSettings:
    return LabellerSettings(crop_size=64, batch_size=4, max_iterations=4, warmup_iterations=2)


@pytest.fixture
def eager_settings() -> LabellerSettings:
    """Of an adaptation that learns within some twenty steps."""
    return LabellerSettings(crop_size=64, batch_size=6, warmup_iterations=2, learning_rate=3e-3)


def follow_loss(name: str, *arguments: Any, **options: Any) -> list[float]:
    """Adapt a labeller, with the arguments of `adapt_labeller`: one of its losses at every step."""
    seen: list[float] = []
    adapt_labeller(
        *arguments, **options, on_progress=lambda done, total, losses: seen.append(losses[name])
    )
    return seen


def draw_disc(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A bright disc on a dark ground: image, mask, box, inverse depth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:96, 0:128]
    x, y, radius = rng.uniform(40, 80), rng.uniform(40, 56), rng.uniform(15, 30)
    mask = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2
    image = np.where(mask[..., None], (220, 180, 40), (40, 60, 90)) + rng.normal(0, 4, (96, 128, 3))
    box = np.array([x - radius, y - radius, x + radius, y + radius], np.float32)
    depth = np.where(mask, 0.8, 0.2).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), mask, box, depth


@pytest.fixture
def photos() -> list[BoxedPhoto]:
    result = []
    for seed in range(3):
        image, _, box, depth = draw_disc(seed)
        result.append(
            BoxedPhoto(
                name=f"disc {seed}",
                boxes=box[None],
                load_image=functools.partial(np.copy, image),
                load_inverse_depth=functools.partial(np.copy, depth),
            )
        )
    return result
