"""SOLOv2 with annotated masks (arXiv 2003.10152), R-50, COCO 3x."""

from __future__ import annotations

from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train
from ..common.solov2 import model

depth.enabled = False
data.use_masks = True
schedule.drops = [27 / 36, 33 / 36]

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
