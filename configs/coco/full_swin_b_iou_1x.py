"""The full method, Swin-B, box quality iou, COCO 1x. Paper: 40.1 mask AP (test-dev)."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model
from ..common.swin_base import backbone, pixels

model.backbone = backbone
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std
train.init_checkpoint = None
optimizer.kind = "adamw"
optimizer.learning_rate = 1e-4
optimizer.weight_decay = 0.05
train.distill_from = 65 / 90
model.quality = "iou"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
