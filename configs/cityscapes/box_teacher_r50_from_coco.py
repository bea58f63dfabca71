"""BoxTeacher (arXiv 2210.05174), R-50 from a COCO model, Cityscapes."""

from __future__ import annotations

from ..common.box_teacher import model, photometric
from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
dataloader.train.augmentation.photometric = photometric
train.distill_from = 0.0
# The result of configs/baselines/box_teacher_r50_3x.py; the class layer starts anew.
train.init_checkpoint = "runs/coco-box_teacher_r50_3x/model_final.pth"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
