"""The full method, Swin-T, COCO 3x."""

from __future__ import annotations

from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model
from ..common.swin_tiny import backbone, pixels

model.backbone = backbone
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std
train.init_checkpoint = None
optimizer.kind = "adamw"
optimizer.learning_rate = 1e-4
optimizer.weight_decay = 0.05
train.distill_from = 215 / 270

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
