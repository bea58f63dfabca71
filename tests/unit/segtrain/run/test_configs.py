"""Every bundled config loads, and its model and settings can be built."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import take_snapshot
from segtrain.data.settings import DataSettings, InferenceSizeSettings, TrainLoaderSettings
from segtrain.depth_source import DepthSettings
from segtrain.distillation.teacher import DistillationSettings
from segtrain.errors import CheckpointError
from segtrain.run.checkpoints import initialise_weights
from segtrain.run.optimizer import OptimizerSettings, scale_learning_rate
from segtrain.run.schedule import ScheduleSettings, fraction_of
from segtrain.run.setting_rules import facts_of_config, facts_of_model
from segtrain.run.target_parameters import may_be_parameter
from segtrain.run.train_settings import (
    TrainSettings,
    distillation_start,
    read_settings,
)

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
    assert model.num_classes == data.num_classes
    assert model.needs_depth == depth.enabled
    known = asdict(facts_of_model(model))
    told = facts_of_config(OmegaConf.to_container(cfg.model))
    assert told is not None
    # The config alone tells nothing that the model does not bear out.
    assert {**known, **{field: v for field, v in asdict(told).items() if v is not None}} == known
    assert (model.distillation is not None) == (distillation_start(train) is not None)
    assert model.supervision.reads_masks == data.use_masks
    if isinstance(model.distillation, DistillationSettings):
        assert model.distillation.total_iterations == train.max_iter


def _targets(node: Any) -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else ():
        if name == "_target_":
            yield value
        yield from _targets(value)


def test_every_parameter_of_a_target_is_found_without_importing_it() -> None:
    models = (LazyConfig.load(str(CONFIGS / name)).model for name in NAMES)
    targets = {target for model in models for target in _targets(OmegaConf.to_container(model))}
    assert len(targets) > 8
    for target in targets:
        parameters = inspect.signature(locate(target)).parameters.values()
        named = [p.name for p in parameters if p.kind != p.VAR_KEYWORD]
        assert [name for name in named if not may_be_parameter(target, name)] == []
        assert not may_be_parameter(target, "score_treshold")
    # Words of the same package that are arguments of others.
    assert not may_be_parameter("segtrain.modeling.mask_rcnn.build_mask_rcnn", "consistency")
    assert not may_be_parameter("segtrain.modeling.solov2.model.SOLOv2", "depth_layer")
    assert may_be_parameter("elsewhere.build", "consistency")


# The paper's tables: iterations, batch, learning rate, drops, short sides, start of the teacher.
_COCO_1X = (90_000, 16, 0.01, [60_000, 80_000], (640, 800))
_COCO_3X = (270_000, 16, 0.01, [210_000, 250_000], (640, 800))
_CITYSCAPES = (24_000, 8, 0.01, [18_000], (800, 1024))
SCHEDULES = {
    **{f"coco/full_{net}_1x": (*_COCO_1X, 65_000) for net in ("r50", "r101", "r101_dcn")},
    **{f"coco/full_{net}_3x": (*_COCO_3X, 215_000) for net in ("r50", "r101", "r101_dcn")},
    **{f"cityscapes/full_r50{end}": (*_CITYSCAPES, 19_000) for end in ("", "_from_coco")},
    # What the method is compared with trains as long, on as much.
    **{f"baselines/boxinst_{net}": (*_COCO_1X, None) for net in ("r50", "r101")},
    **{f"baselines/boxinst_{net}_3x": (*_COCO_3X, None) for net in ("r50", "r101", "r101_dcn")},
    **{f"cityscapes/boxinst_r50{end}": (*_CITYSCAPES, None) for end in ("", "_from_coco")},
    "baselines/box_teacher_r50": (*_COCO_1X, 0),
    **{f"baselines/box_teacher_{net}_3x": (*_COCO_3X, 0) for net in ("r50", "r101", "r101_dcn")},
    **{f"cityscapes/box_teacher_r50{end}": (*_CITYSCAPES, 0) for end in ("", "_from_coco")},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_papers(name: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    train, schedule = cfg.train, cfg.schedule
    optimizer = read_settings(cfg.optimizer, OptimizerSettings)
    sizes = cfg.dataloader.train.augmentation.short_sides
    assert (
        train.max_iter,
        train.batch_size,
        scale_learning_rate(optimizer, train.batch_size),
        [fraction_of(drop, train.max_iter) for drop in schedule.drops],
        (min(sizes), max(sizes)),
        distillation_start(read_settings(train, TrainSettings)),
    ) == SCHEDULES[name]
    short_side = 1024 if name.startswith("cityscapes") else 800
    assert (train.teacher_short_side, train.teacher_momentum) == (short_side, 0.999)


# What each ablation of the paper changes, against the model of configs/common.
SWITCHES: dict[str, dict[str, Any]] = {
    "baselines/condinst_r50": {"supervision": "masks", "depth_layer": False, "mask_channels": 8},
    "baselines/boxinst_r50": {"depth_layer": False, "consistency": False, "distillation": None},
    "ablation/depth_layer": {"depth_layer": True, "consistency": False, "distillation": None},
    "ablation/consistency": {"depth_layer": False, "consistency": True, "distillation": None},
    "ablation/depth_layer_consistency": {"depth_layer": True, "consistency": True},
    "ablation/distillation_equal_size": {"distillation.depth_matching": False},
    "ablation/teacher_at_800": {"distillation.depth_matching": False},
    "coco/full_r50_1x": {"distillation.depth_matching": True, "distillation.loss_weight": 4.0},
    "ablation/quality_iou": {"quality": "iou"},
    "ablation/giou_affinity": {"distillation.box_affinity": "giou"},
    "ablation/constant_beta": {"distillation.beta_decays": False},
    "ablation/consistency_inside_box": {"consistency_inside_box_only": True},
    "ablation/color_everywhere": {"color_everywhere": True, "depth_layer": False},
    **{f"ablation/tau_0_{n}": {"depth_threshold": n / 10} for n in (3, 7)},
    **{f"ablation/lambda_dice_{n}": {"distillation.loss_weight": float(n)} for n in (0, 1, 2)},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_ablation_changes_what_its_name_says(name: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    for key, value in SWITCHES[name].items():
        assert OmegaConf.select(cfg.model, key) == value, key
    equal_size = name == "ablation/distillation_equal_size"
    assert cfg.train.teacher_short_side == (None if equal_size else 800)


def test_no_two_configs_are_one_under_two_names() -> None:
    found: dict[str, str] = {}
    for name in NAMES:
        cfg = LazyConfig.load(str(CONFIGS / name))
        content = json.dumps(take_snapshot(cfg), sort_keys=True)
        assert content not in found, f"{name} is {found[content]} under another name"
        found[content] = name


def test_teacher_sees_no_less_than_the_student() -> None:
    for name in NAMES:
        cfg = LazyConfig.load(str(CONFIGS / name))
        if cfg.train.distill_from is not None and cfg.train.teacher_short_side is not None:
            student = cfg.dataloader.train.augmentation
            assert cfg.train.teacher_short_side >= max(student.short_sides), name
            assert cfg.train.teacher_max_size >= student.max_size, name


def test_swin_is_not_trained_from_random_weights() -> None:
    for name in NAMES:
        if "swin" in name:
            cfg = LazyConfig.load(str(CONFIGS / name))
            with pytest.raises(CheckpointError, match=r"swin_\w+.pth: there is no such file"):
                initialise_weights(torch.nn.Linear(1, 1), cfg.train.init_checkpoint)


def test_shares_follow_the_length_of_the_run() -> None:
    cfg = LazyConfig.load(str(CONFIGS / "coco/full_r50_1x.py"))
    train = read_settings(cfg.train, TrainSettings)
    assert distillation_start(train) == 65_000
    assert cfg.model.warmup_iterations == 10_000
    cfg.train.max_iter = 900
    assert distillation_start(read_settings(cfg.train, TrainSettings)) == 650
    assert cfg.model.warmup_iterations == 100
    longer = LazyConfig.load(str(CONFIGS / "coco/full_r50_3x.py"))
    assert longer.model.warmup_iterations == 10_000


def test_mistyped_setting_is_refused() -> None:
    cfg = LazyConfig.load(str(CONFIGS / "demo/full.py"))
    with pytest.raises(OmegaConfBaseException, match="max_itre"):
        OmegaConf.update(cfg, "train.max_itre", 3)
