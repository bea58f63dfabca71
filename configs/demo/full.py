"""The full method on synthetic scenes; same data, start and schedule as boxinst.py."""

from __future__ import annotations

from ..common.demo import data, dataloader, depth, optimizer, schedule, train
from ..common.small_full_method import model

train.distill_from = 65 / 90

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
