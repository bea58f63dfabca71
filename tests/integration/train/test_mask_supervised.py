"""Detectors that learn from masks: Mask R-CNN and SOLOv2 train, evaluate, predict and label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.synth import generate_dataset
from pipeline.synth.scene_layout import SceneSettings
from segtrain.errors import DatasetError, TrainingConfigError
from segtrain.run.trainer import train_model
from segtrain.use.evaluation import evaluate_model
from segtrain.use.labelling import label_dataset
from segtrain.use.prediction import predict_images

LOSSES = {
    "mask_rcnn": {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"},
    "solov2": {"loss_category", "loss_mask"},
}
# detectron2's anchors call meshgrid in the way that torch asks to change.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")


@pytest.fixture
def load_detector(scenes: Path) -> Callable[..., Any]:
    """A demo config on a tiny backbone, one iteration on the scenes."""

    def load(name: str, folder: Path = scenes, **changes: Any) -> Any:
        backbone: dict[str, Any] = {"name": "test_efficientnet_gn", "pretrained": False}
        settings = {
            **{f"model.backbone.{key}": value for key, value in backbone.items()},
            "data.train_json": folder / "annotations.json",
            "data.train_images": folder / "images",
            "data.test_json": folder / "annotations.json",
            "data.test_images": folder / "images",
            "train.max_iter": 1,
            "train.batch_size": 2,
            "train.device": "cpu",
            "train.tensorboard": False,
            "dataloader.train.num_workers": 0,
            "dataloader.train.augmentation.short_sides": "[64]",
            "dataloader.test.short_side": 64,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        return load_config(
            f"configs/demo/{name}.py", [f"{key}={value}" for key, value in settings.items()]
        )

    return load


@pytest.mark.parametrize("name", LOSSES)
def test_every_verb_works(
    name: str, tmp_path: Path, scenes: Path, load_detector: Callable[..., Any]
) -> None:
    cfg = load_detector(name)
    summary = train_model(cfg, tmp_path / "run", resume=False)
    losses = {key for key in summary.last_metrics if key.startswith("loss_")}
    assert losses == LOSSES[name]
    weights = Path(summary.final_weights)
    metrics = evaluate_model(cfg, weights, tmp_path / "eval")
    assert metrics["num_images"] == 8
    photos = sorted((scenes / "images").iterdir())[:2]
    assert isinstance(predict_images(cfg, weights, photos), list)
    labelled = label_dataset(cfg, weights, scenes / "annotations.json", scenes / "images")
    for item in labelled["annotations"]:
        assert item["segmentation"]["size"] == [96, 96]
        assert item["area"] > 0
        assert 0 <= item["score"] <= 1
        assert item["mask_source"] in ("detector", "filled_box")


@pytest.mark.parametrize("name", LOSSES)
def test_masks_that_are_missing_teach_nothing_and_none_at_all_is_refused(
    name: str, tmp_path: Path, load_detector: Callable[..., Any], change_annotations: Any
) -> None:
    def drop_some(document: dict[str, Any]) -> None:
        for item in document["annotations"][::2]:
            item.pop("segmentation")

    cfg = load_detector(name, data__train_json=change_annotations(drop_some))
    summary = train_model(cfg, tmp_path / "some", resume=False)
    assert LOSSES[name] <= set(summary.last_metrics)

    def drop_all(document: dict[str, Any]) -> None:
        for item in document["annotations"]:
            item.pop("segmentation")

    cfg = load_detector(name, data__train_json=change_annotations(drop_all))
    with pytest.raises(DatasetError, match=r"no object has a mask.*data\.use_masks=False"):
        train_model(cfg, tmp_path / "none", resume=False)
    cfg = load_detector(name, data__use_masks=False)
    with pytest.raises(TrainingConfigError, match=r"set data\.use_masks=True"):
        train_model(cfg, tmp_path / "boxes", resume=False)


def test_solov2_overfits_four_images(
    tmp_path: Path, load_detector: Callable[..., Any], one_thread: None
) -> None:
    large = SceneSettings(
        num_objects_min=1, num_objects_max=3, diameter_min=0.35, diameter_max=0.6, one_class=True,
        tiny_share=0.0, border_share=0.0, visible_share_min=0.6,
    )  # fmt: skip
    folder = generate_dataset(
        tmp_path / "four", num_images=4, size=(96, 96), seed=3, settings=large, workers=1
    )
    cfg = load_detector(
        "solov2",
        folder,
        data__num_classes=1,
        model__grid_numbers="[12, 10, 8, 6, 4]",
        model__scale_ranges=json.dumps([[0, 60], [40, 90], [60, 120], [90, 180], [140, 1000]]),
        model__backbone__out_channels=32,
        model__feature_channels=32,
        model__mask_channels=32,
        model__tower_depth=1,
        optimizer__learning_rate=0.002,
        train__max_iter=40,
        train__batch_size=4,
        dataloader__train__augmentation__short_sides="[192]",
        dataloader__train__augmentation__flip_probability=0,
        dataloader__test__short_side=192,
    )
    summary = train_model(cfg, tmp_path / "run", resume=False)
    metrics = evaluate_model(cfg, Path(summary.final_weights), tmp_path / "eval")
    assert metrics["segm"]["AP"] > 80
