"""Where both methods of the demo start from: BoxInst on small pictures, without depth.

Most of a short training teaches the detector. Doing that once, on pictures a third as large, leaves
the time for what the two methods differ in, and no difference comes from their starts.
"""

from __future__ import annotations

from .boxinst import data, dataloader, depth, model, optimizer, schedule, train

train.max_iter = 300
model.warmup_iterations = "${fraction_of:0.333333,${train.max_iter}}"
dataloader.train.augmentation.short_sides = [192, 224, 256]
dataloader.train.augmentation.max_size = 256

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
