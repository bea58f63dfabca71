"""Depth layer + consistency that is not limited to the box."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

model.depth_layer = True
model.consistency = True
model.consistency_inside_box_only = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
