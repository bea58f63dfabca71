"""Plain BoxInst on synthetic scenes."""

from __future__ import annotations

from ..common.demo import data, dataloader, depth, optimizer, schedule, train
from ..common.small_model import model

depth.enabled = False
# Masks need some hundred iterations to appear, in a short schedule as in a long one.
model.warmup_iterations = "${fraction_of:0.333333,${train.max_iter}}"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
