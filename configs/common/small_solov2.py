"""SOLOv2 on the small model's backbone, for pictures of 384 pixels rather than 800."""

from __future__ import annotations

from .efficientnet_lite0 import backbone, pixels
from .solov2 import model

model.backbone = backbone
model.backbone.finest_level = 2
model.feature_channels = 64
model.tower_depth = 2
model.mask_channels = 64
# The paper's ranges at 0.48 of its picture's side; numbers of cells are relative to it already.
model.scale_ranges = [[0, 46], [23, 92], [46, 184], [92, 368], [184, 100_000]]
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std

__all__ = ["model"]
