"""The full method on Swin-B, which starts from ImageNet weights that the user has to fetch."""

from __future__ import annotations

from detectron2.config import LazyCall

from .full_method import model

model.backbone = LazyCall("segtrain.modeling.backbones.build_swin_fpn")(size="base")
model.pixel_std = [57.375, 57.12, 58.395]
# A run stops and names this file where it is absent: from random weights nothing is reproduced.
init_checkpoint = "data/weights/swin_base_patch4_window12_384_22k.pth"

__all__ = ["init_checkpoint", "model"]
