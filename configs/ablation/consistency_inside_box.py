"""Depth layer + consistency that is limited to the box: the other reading of Eq. 4."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

model.depth_layer = True
model.consistency = True
model.consistency_inside_box_only = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
