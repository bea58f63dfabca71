"""BBTP's supervision (arXiv 1904.07512) on our detector and dynamic head, R-50, COCO 1x."""

from __future__ import annotations

from detectron2.config import LazyCall

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.condinst import model

depth.enabled = False
model.supervision = LazyCall("segtrain.losses.bbtp.BBTP")(
    smoothness_weight=0.05,
    smooth_along_depth=False,
    consistency_weight=0.0,
    warmup_iterations="${fraction_of:0.111111,${train.max_iter},10000}",
)

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
