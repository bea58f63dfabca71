"""+ distillation, teacher at the student's size. Paper: 31.6 mask AP (COCO val, R-50 1x)."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90
train.teacher_short_side = None
model.distillation.depth_matching = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
