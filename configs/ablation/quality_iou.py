"""The full method with IoU as box quality."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90
model.quality = "iou"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
