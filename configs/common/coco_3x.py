"""COCO, 270,000 iterations of 16 images: everything but the model."""

from __future__ import annotations

from .coco_1x import data, dataloader, depth, optimizer, schedule, train

train.max_iter = 270_000
schedule.drops = [210 / 270, 250 / 270]

__all__ = ["data", "dataloader", "depth", "optimizer", "schedule", "train"]
