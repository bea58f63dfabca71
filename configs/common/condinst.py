"""CondInst on R-50 without a supervision of its own: the network of every model but Mask R-CNN."""

from __future__ import annotations

from detectron2.config import LazyCall

model = LazyCall("segtrain.modeling.build.build_condinst")(
    backbone=LazyCall("segtrain.modeling.backbones.build_resnet_fpn")(depth=50, deformable=False),
    num_classes="${data.num_classes}",
    mask_channels=16,
    depth_layer=False,
    quality="centerness",
    distillation=None,
)
