"""SOLOv2 on R-50; which numbers are from memory, docs/method.md says."""

from __future__ import annotations

from detectron2.config import LazyCall

model = LazyCall("segtrain.modeling.solov2.model.SOLOv2")(
    backbone=LazyCall("segtrain.modeling.backbones.build_resnet_fpn")(
        depth=50, deformable=False, finest_level=2
    ),
    num_classes="${data.num_classes}",
    grid_numbers=[40, 36, 24, 16, 12],
    scale_ranges=[[0, 96], [48, 192], [96, 384], [192, 768], [384, 100_000]],
    mask_weight=3.0,
)
