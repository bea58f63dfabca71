"""BoxInst, R-50 from a COCO model, Cityscapes."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
train.distill_from = None
# The result of configs/baselines/boxinst_r50_3x.py; the class layer starts anew.
train.init_checkpoint = "runs/coco-boxinst_r50_3x/model_final.pth"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
