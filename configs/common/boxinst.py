"""BoxInst on R-50: the model that most others are a variation of."""

from __future__ import annotations

from .condinst import model

model.supervision = "boxes"
model.color = True
model.color_threshold = 0.3
model.depth_weight = 1.0
model.depth_warmup = False
model.consistency = False
model.depth_threshold = 0.5
# 10,000 of 90,000 iterations: a shorter run has fewer, a longer one as many.
model.warmup_iterations = "${fraction_of:0.111111,${train.max_iter},10000}"
model.total_iterations = "${train.max_iter}"

__all__ = ["model"]
