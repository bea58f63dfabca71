"""The full method on the small model."""

from __future__ import annotations

from .efficientnet_lite0 import backbone, pixels
from .full_method import model

model.backbone = backbone
model.feature_channels = 64
model.tower_depth = 2
model.mask_channels = 8
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std
