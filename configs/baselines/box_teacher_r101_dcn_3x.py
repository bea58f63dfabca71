"""BoxTeacher (arXiv 2210.05174), R-101 with deformable convolutions, COCO 3x."""

from __future__ import annotations

from ..common.box_teacher import model, photometric
from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
dataloader.train.augmentation.photometric = photometric
train.distill_from = 0.0
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
model.backbone.depth = 101
model.backbone.deformable = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
