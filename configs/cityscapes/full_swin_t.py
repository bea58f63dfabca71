"""The full method, Swin-T, Cityscapes at COCO's sizes. Paper: 27.6 mask AP (val)."""

from __future__ import annotations

from ..common.adamw import optimizer
from ..common.cityscapes import data, dataloader, depth, schedule, train
from ..common.full_swin_tiny import init_checkpoint, model

train.init_checkpoint = init_checkpoint
dataloader.train.augmentation.short_sides = [640, 672, 704, 736, 768, 800]
dataloader.train.augmentation.max_size = 1333
dataloader.test.short_side = 800
dataloader.test.max_size = 1333
# Pictures of 2048×1024 are bound by the long side: the teacher, too, sees 1333×667, no more than
# the largest of the student's sizes.
train.teacher_short_side = 800
train.teacher_max_size = 1333

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
