"""The full method with λ_dice = 4. Paper: 32.7 mask AP (COCO val, R-50 1x)."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90
model.distillation.loss_weight = 4.0

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
