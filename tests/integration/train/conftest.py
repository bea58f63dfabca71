"""A data set, a depth cache and a config that train in seconds."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from depthcache.exchange.interchange import import_maps
from pipeline.synth import generate_dataset

REPOSITORY = Path(__file__).resolve().parents[3]

# What a process does that trains and is killed after an iteration.
TRAIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
import torch
from detectron2.config import LazyConfig
from segtrain.run.trainer import train_model

config, run_dir, kill_after = sys.argv[1:]
torch.set_num_threads(2)

def kill_when_due(iteration, max_iter, metrics):
    if iteration == int(kill_after):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    train_model(LazyConfig.load(config), Path(run_dir), resume=True, on_progress=kill_when_due)
"""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight synthetic scenes with boxes, masks and, in `cache`, their true depth."""
    folder = tmp_path_factory.mktemp("scenes")
    generate_dataset(folder, num_images=8, size=(96, 96), seed=3, workers=1)
    import_maps(
        folder / "depth",
        folder / "cache",
        images=folder / "images",
        format="npy",
        convention="metric",
    )
    return folder


@pytest.fixture(scope="session")
def tiny_config(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full method on a tiny backbone with group norm; the mask branch has a batch norm."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(
        f"""
from detectron2.config import LazyCall, LazyConfig
from segtrain.modeling.backbones import build_timm_fpn

_full = LazyConfig.load({str(REPOSITORY / "configs/demo/full.py")!r})
data, depth, optimizer = _full.data, _full.depth, _full.optimizer
schedule, dataloader, train, model = (
    _full.schedule, _full.dataloader, _full.train, _full.model
)
model.backbone = LazyCall(build_timm_fpn)(name="test_efficientnet_gn", out_channels=32)
model.feature_channels = 32
model.tower_depth = 1
model.pixel_mean = [103.53, 116.28, 123.675]
model.pixel_std = [58.0, 57.0, 57.0]
data.train_json = data.test_json = {str(scenes / "annotations.json")!r}
data.train_images = data.test_images = {str(scenes / "images")!r}
depth.cache = {str(scenes / "cache")!r}
train.max_iter = 6
train.batch_size = 2
train.device = "cpu"
train.checkpoint_period = 2
train.log_period = 4
train.distill_from = 0.5
train.teacher_short_side = 96
train.tensorboard = False
optimizer.learning_rate = 0.001
dataloader.train.num_workers = 1
dataloader.train.augmentation.short_sides = [64, 80]
dataloader.test.short_side = 96
dataloader.test.max_size = 96
"""
    )
    return path


@pytest.fixture(scope="session")
def load_tiny(tiny_config: Path) -> Callable[..., Any]:
    """Load the tiny config with some settings changed, by dotted name."""

    def load(changes: dict[str, Any] | None = None) -> Any:
        cfg = LazyConfig.load(str(tiny_config))
        for key, value in (changes or {}).items():
            # An object replaces the one that was there; plain values are merged into it.
            OmegaConf.update(cfg, key, value, merge=not isinstance(value, DictConfig))
        return cfg

    return load


@pytest.fixture
def train_and_die(tiny_config: Path) -> Callable[..., None]:
    """Train in a process of its own that is killed with SIGKILL after an iteration."""

    def run(run_dir: Path, *, kill_after: int) -> None:
        finished = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-c", TRAIN_AND_DIE),
                *(str(tiny_config), str(run_dir), str(kill_after)),
            ],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert finished.returncode == -9, finished.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def joint_work() -> Iterator[Any]:
    """What processes of a joint run do: a module that spawned processes can import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield importlib.import_module("joint_work")


@pytest.fixture
def change_annotations(scenes: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a changed copy of the scenes' annotation file."""

    def write(change: Callable[[dict[str, Any]], None]) -> Path:
        document = json.loads((scenes / "annotations.json").read_text())
        change(document)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(document))
        return path

    return write
