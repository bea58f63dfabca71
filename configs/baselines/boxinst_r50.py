"""BoxInst, R-50, COCO 1x: boxes only, no depth. Paper: 30.7 mask AP (val)."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
