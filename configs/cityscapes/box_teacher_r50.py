"""BoxTeacher (arXiv 2210.05174), R-50 from ImageNet, Cityscapes."""

from __future__ import annotations

from ..common.box_teacher import model, photometric
from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
dataloader.train.augmentation.photometric = photometric
train.distill_from = 0.0

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
