"""Plain BoxInst on synthetic scenes."""

from __future__ import annotations

from ..common.demo import data, dataloader, depth, optimizer, schedule, train
from ..common.small_model import model

depth.enabled = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
