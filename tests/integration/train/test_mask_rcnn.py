"""detectron2's Mask R-CNN trains with masks in the same engine, and is evaluated by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import load_config
from segtrain.run.trainer import train_model
from segtrain.use.evaluation import evaluate_model


# detectron2's anchors call meshgrid in the way that torch asks to change.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_mask_rcnn_trains_a_step_and_is_evaluated(tmp_path: Path, scenes: Path) -> None:
    settings = {
        "data.train_json": scenes / "annotations.json",
        "data.train_images": scenes / "images",
        "data.test_json": scenes / "annotations.json",
        "data.test_images": scenes / "images",
        "data.num_classes": 6,
        "train.init_checkpoint": "null",
        "train.max_iter": 1,
        "train.batch_size": 1,
        "train.device": "cpu",
        "train.tensorboard": False,
        "dataloader.train.num_workers": 0,
        "dataloader.train.augmentation.short_sides": "[64]",
        "dataloader.test.short_side": 64,
    }
    assignments = [f"{key}={value}" for key, value in settings.items()]
    cfg = load_config("configs/baselines/mask_rcnn_r50.py", assignments)
    summary = train_model(cfg, tmp_path / "run", resume=False)
    losses = {name for name in summary.last_metrics if name.startswith("loss_")}
    assert losses == {*("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask")}
    assert torch.isfinite(torch.tensor(summary.last_metrics["total_loss"]))
    metrics = evaluate_model(cfg, Path(summary.final_weights), tmp_path / "eval")
    assert metrics["num_images"] == 8
    assert 0 <= metrics["segm"]["AP"] <= 100
