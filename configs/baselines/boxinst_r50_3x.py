"""BoxInst, R-50, COCO 3x."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
