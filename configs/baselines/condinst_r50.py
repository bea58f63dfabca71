"""CondInst with annotated masks, R-50, COCO 1x: the ceiling of box supervision."""

from __future__ import annotations

from ..common.boxinst import model
from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

depth.enabled = False
data.use_masks = True
model.supervision = "masks"
model.mask_channels = 8
model.color = False
model.centre_on_bitmask = False

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
