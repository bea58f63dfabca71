"""BoxInst on R-50: the model that every other one is a variation of."""

from __future__ import annotations

from detectron2.config import LazyCall

from segtrain.modeling.backbones import build_resnet_fpn
from segtrain.modeling.build import build_condinst

model = LazyCall(build_condinst)(
    backbone=LazyCall(build_resnet_fpn)(depth=50, deformable=False),
    num_classes="${data.num_classes}",
    mask_channels=16,
    depth_layer=False,
    quality="centerness",
    color=True,
    color_threshold=0.3,
    depth_weight=1.0,
    depth_warmup=False,
    consistency=False,
    depth_threshold=0.5,
    # 10,000 of 90,000 iterations, as a share of the run.
    warmup_iterations="${fraction_of:0.111111,${train.max_iter}}",
    distillation=None,
)
