"""DiscoBox (arXiv 2105.06464) on our detector, R-101-DCN, COCO 3x."""

from __future__ import annotations

from ..common.coco_3x import data, dataloader, depth, optimizer, schedule, train
from ..common.disco_box import model

depth.enabled = False
train.distill_from = 0.0
# The teacher sees the student's picture. **choice**
train.teacher_short_side = None
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
model.backbone.depth = 101
model.backbone.deformable = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
