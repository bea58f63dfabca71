"""The full method, Swin-T, Cityscapes at COCO's sizes. Paper: 27.6 mask AP (val)."""

from __future__ import annotations

from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model
from ..common.swin_tiny import backbone, pixels

model.backbone = backbone
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std
train.init_checkpoint = None
optimizer.kind = "adamw"
optimizer.learning_rate = 1e-4
optimizer.weight_decay = 0.05
train.distill_from = 19 / 24
dataloader.train.augmentation.short_sides = [640, 672, 704, 736, 768, 800]
dataloader.train.augmentation.max_size = 1333
dataloader.test.short_side = 800
dataloader.test.max_size = 1333

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
