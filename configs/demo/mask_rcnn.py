"""Mask R-CNN with the true masks of the synthetic scenes: a ceiling of box supervision."""

from __future__ import annotations

from ..common.demo import data, dataloader, depth, optimizer, schedule, train
from ..common.small_mask_rcnn import model

depth.enabled = False
data.use_masks = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
