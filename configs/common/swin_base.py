"""Swin-B in place of R-50; set train.init_checkpoint to its ImageNet weights."""

from __future__ import annotations

from detectron2.config import LazyCall

from segtrain.modeling.backbones import build_swin_fpn

backbone = LazyCall(build_swin_fpn)(size="base")
pixels = {"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}
