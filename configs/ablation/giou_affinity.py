"""The full method with GIoU as box affinity."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90
model.distillation.box_affinity = "giou"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
