"""The full method, R-50 from a COCO model, Cityscapes. Paper: 28.9 mask AP (val)."""

from __future__ import annotations

from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

# The result of configs/coco/full_r50_3x.py; the class layer starts anew.
train.init_checkpoint = "runs/coco-full_r50_3x/model_final.pth"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
