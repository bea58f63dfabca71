"""DiscoBox (arXiv 2105.06464) on our detector, R-50, COCO 1x."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.disco_box import model

depth.enabled = False
train.distill_from = 0.0
# The teacher sees the student's picture. **choice**
train.teacher_short_side = None

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
