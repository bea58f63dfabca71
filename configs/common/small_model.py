"""EfficientNet-Lite0 with a thin pyramid and BoxInst's losses, for CPUs."""

from __future__ import annotations

from .boxinst import model
from .efficientnet_lite0 import backbone, pixels

model.backbone = backbone
model.feature_channels = 64
model.tower_depth = 2
model.mask_channels = 8
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std
