"""BoxInst, R-50 from ImageNet, Cityscapes."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
train.distill_from = None

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
