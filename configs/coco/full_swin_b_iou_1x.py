"""The full method, Swin-B, IoU as box quality, COCO 1x. Paper: 40.1 mask AP (test-dev)."""

from __future__ import annotations

from ..common.adamw import optimizer
from ..common.coco_1x import data, dataloader, depth, schedule, train
from ..common.full_swin_base import init_checkpoint, model

train.init_checkpoint = init_checkpoint
train.distill_from = 65 / 90
model.quality = "iou"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
