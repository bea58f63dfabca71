"""Depth layer + consistency with τ = 0.3. Paper: 30.9 mask AP (COCO val, R-50 1x)."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

model.depth_layer = True
model.consistency = True
model.depth_threshold = 0.3

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
