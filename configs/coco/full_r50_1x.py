"""The full method, R-50, COCO 1x. Paper: 32.7 mask AP (val)."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
