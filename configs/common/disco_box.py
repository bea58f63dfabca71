"""DiscoBox on R-50: the projection term, and a structured teacher from the start."""

from __future__ import annotations

from detectron2.config import LazyCall

from .boxinst import model

model.color = False
model.distillation = LazyCall("segtrain.distillation.disco_box.DiscoBoxSettings")(
    mask_weight=1.0,
    warmup_iterations="${model.warmup_iterations}",
    pairwise_weight=2.0,
    dilations=[1, 2],
    color_width=6.0,
    position_width=3.0,
    reads_depth=False,
    depth_width=10.0,
    num_updates=10,
    memory_entries=8,
    correspondence_weight=1.0,
    contrast_weight=0.1,
    num_bins=14,
    temperature=0.1,
    teacher_precision="auto",
)

__all__ = ["model"]
