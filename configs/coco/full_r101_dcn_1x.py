"""The full method, R-101 with deformable convolutions, COCO 1x."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
model.backbone.depth = 101
model.backbone.deformable = True
train.distill_from = 65 / 90

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
