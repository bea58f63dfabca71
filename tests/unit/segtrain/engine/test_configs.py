"""Every bundled config loads, and its model and settings can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain.data.loader import DataSettings, InferenceSizeSettings, TrainLoaderSettings
from segtrain.depth_source import DepthSettings
from segtrain.optimizer import OptimizerSettings
from segtrain.schedule import ScheduleSettings
from segtrain.training import TrainSettings, distillation_start, read_settings

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
NAMES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.py")
    if path.parent.name != "common"
)


_BACKBONES: dict[str, Any] = {}


def _build_model(cfg: Any) -> Any:
    """Build the model; configs that name the same backbone share one, which saves minutes."""
    if "backbone" not in cfg.model:
        return instantiate(cfg.model)
    key = repr(OmegaConf.to_container(cfg.model.backbone, resolve=True))
    if key not in _BACKBONES:
        _BACKBONES[key] = instantiate(cfg.model.backbone)
    settings = {
        name: instantiate(cfg.model[name])
        for name in cfg.model
        if name not in ("_target_", "backbone")
    }
    target = cfg.model._target_
    build = locate(target) if isinstance(target, str) else target
    return build(backbone=_BACKBONES[key], **settings)


# detectron2's Swin calls meshgrid in the way that torch asks to change.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_model(name: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / name))
    data = read_settings(cfg.data, DataSettings)
    train = read_settings(cfg.train, TrainSettings)
    depth = read_settings(cfg.depth, DepthSettings)
    read_settings(cfg.optimizer, OptimizerSettings)
    read_settings(cfg.schedule, ScheduleSettings)
    read_settings(cfg.dataloader.train, TrainLoaderSettings)
    read_settings(cfg.dataloader.test, InferenceSizeSettings)
    model = _build_model(cfg)
    if name == "baselines/mask_rcnn_r50.py":
        assert data.use_masks
        return
    assert model.num_classes == data.num_classes
    assert model.needs_depth == depth.enabled
    assert (model.distillation is not None) == (distillation_start(train) is not None)
    assert (model.loss_settings.supervision == "masks") == data.use_masks
    if model.distillation is not None:
        assert model.distillation.total_iterations == train.max_iter


def test_shares_follow_the_length_of_the_run() -> None:
    cfg = LazyConfig.load(str(CONFIGS / "coco/full_r50_1x.py"))
    train = read_settings(cfg.train, TrainSettings)
    assert distillation_start(train) == 65_000
    assert cfg.model.warmup_iterations == 10_000
    cfg.train.max_iter = 900
    assert distillation_start(read_settings(cfg.train, TrainSettings)) == 650
    assert cfg.model.warmup_iterations == 100


def test_mistyped_setting_is_refused() -> None:
    cfg = LazyConfig.load(str(CONFIGS / "demo/full.py"))
    with pytest.raises(OmegaConfBaseException, match="max_itre"):
        OmegaConf.update(cfg, "train.max_itre", 3)
