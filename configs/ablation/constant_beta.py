"""The full method with a constant β."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.full_method import model

train.distill_from = 65 / 90
model.distillation.beta_decays = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
