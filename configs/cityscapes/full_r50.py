"""The full method, R-50 from ImageNet, Cityscapes. Paper: 24.4 mask AP (val)."""

from __future__ import annotations

from ..common.cityscapes import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
