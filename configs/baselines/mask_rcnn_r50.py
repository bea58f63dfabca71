"""detectron2's Mask R-CNN, R-50, COCO 1x, with annotated masks."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.mask_rcnn import model

depth.enabled = False
data.use_masks = True
optimizer.learning_rate = 0.02

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
