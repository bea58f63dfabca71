"""detectron2's Mask R-CNN on R-50."""

from __future__ import annotations

from detectron2.config import LazyCall

model = LazyCall("segtrain.modeling.mask_rcnn.build_mask_rcnn")(
    backbone=LazyCall("segtrain.modeling.backbones.build_resnet_fpn")(
        depth=50, deformable=False, finest_level=2
    ),
    num_classes="${data.num_classes}",
    head_channels=256,
    rois_per_image=512,
)
