"""The second phase: Mask R-CNN, R-50, COCO 1x, on masks that `pipeline masks` made from boxes."""

from __future__ import annotations

from .mask_rcnn_r50 import data, dataloader, depth, model, optimizer, schedule, train

data.train_json = "data/coco/annotations/labelled_train2017.json"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
