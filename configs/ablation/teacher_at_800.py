"""+ distillation, teacher at 800. Paper: 32.4 mask AP (COCO val, R-50 1x)."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90
model.distillation.depth_matching = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
