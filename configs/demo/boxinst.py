"""Plain BoxInst on synthetic scenes."""

from __future__ import annotations

from ..common.demo import data, dataloader, depth, optimizer, schedule, train
from ..common.small_model import model

depth.enabled = False
# The projection loss needs some hundred iterations, in a short schedule as in a long one; pairwise
# terms at full weight before that smear the masks beyond their boxes. Half the weight at the end.
model.warmup_iterations = "${fraction_of:2.0,${train.max_iter}}"

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
