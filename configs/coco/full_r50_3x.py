"""The full method, R-50, COCO 3x. Paper: 34.6 mask AP (test-dev)."""

from __future__ import annotations

from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 215 / 270

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
