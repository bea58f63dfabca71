"""Fixtures of the tests of run folders: a demo config with two scenes as its data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config import load_experiment
from pipeline.synth import generate_dataset
from segtrain.run.experiment import Experiment

# Its absent data are made on the spot, unless the user names some.
CONFIG = "configs/demo/boxinst.py"
Load = Callable[..., Experiment]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that name two scenes as both splits."""
    folder = tmp_path_factory.mktemp("scenes")
    generate_dataset(folder, num_images=2, size=(64, 64), seed=3, workers=1)
    return [
        f"data.{split}_{kind}={folder / name}"
        for split in ("train", "test")
        for kind, name in (("json", "annotations.json"), ("images", "images"))
    ]


@pytest.fixture
def load(files: list[str]) -> Load:
    """Reads the config with those data and more settings."""
    return lambda *settings: load_experiment(CONFIG, [*files, *settings])
