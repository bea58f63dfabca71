"""BoxInst + depth layer + consistency, τ = 0.5. Paper: 31.5 mask AP (COCO val, R-50 1x)."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

model.depth_layer = True
model.consistency = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
