"""The full method on synthetic scenes; same data, start and schedule as boxinst.py."""

from __future__ import annotations

from ..common.demo import data, dataloader, depth, optimizer, schedule, train
from ..common.small_full_method import model

train.distill_from = 65 / 90
# As in boxinst.py. The depth loss waits too: at full weight from the start it closes the depth
# gate of the masks before they exist, and they stay empty.
model.warmup_iterations = "${fraction_of:2.0,${train.max_iter}}"
model.depth_warmup = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
