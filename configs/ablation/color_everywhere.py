"""Colour a second time over the whole map: the control for the consistency term."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
model.color_everywhere = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
