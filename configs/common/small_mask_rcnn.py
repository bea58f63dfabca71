"""Mask R-CNN on the small model's backbone."""

from __future__ import annotations

from .efficientnet_lite0 import backbone, pixels
from .mask_rcnn import model

model.backbone = backbone
model.backbone.out_channels = 64
model.backbone.finest_level = 2
model.head_channels = 64
model.rois_per_image = 128
model.pixel_mean = pixels.mean
model.pixel_std = pixels.std

__all__ = ["model"]
