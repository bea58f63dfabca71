"""detectron2's Mask R-CNN, R-50, COCO 1x, with annotated masks."""

from __future__ import annotations

from detectron2.config import LazyCall

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train

model = LazyCall("segtrain.modeling.mask_rcnn.build_mask_rcnn")(
    depth=50, num_classes="${data.num_classes}"
)
depth.enabled = False
data.use_masks = True
optimizer.learning_rate = 0.02

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
