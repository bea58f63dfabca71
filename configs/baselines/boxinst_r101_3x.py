"""BoxInst, R-101, COCO 3x."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
model.backbone.depth = 101

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
