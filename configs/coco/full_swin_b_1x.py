"""The full method, Swin-B, COCO 1x. Paper: 39.5 mask AP (test-dev)."""

from __future__ import annotations

from ..common.adamw import optimizer
from ..common.coco_1x import data, dataloader, depth, schedule, train
from ..common.full_swin_base import init_checkpoint, model

train.init_checkpoint = init_checkpoint
train.distill_from = 65 / 90

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
