"""The full method on R-50: depth layer, consistency, distillation with depth matching."""

from __future__ import annotations

from detectron2.config import LazyCall

from .boxinst import model

model.depth_layer = True
model.consistency = True
model.distillation = LazyCall("segtrain.distillation.teacher.DistillationSettings")(
    loss_weight=4.0,
    depth_matching=True,
    box_affinity="iou",
    alpha=0.8,
    beta=0.2,
    beta_decays=True,
    total_iterations="${train.max_iter}",
    score_threshold=0.8,
    teacher_precision="auto",
    teacher_nms_threshold=None,
)
