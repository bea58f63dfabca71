"""BoxTeacher on R-50: BoxInst's student with perturbed colours, and a teacher from the start."""

from __future__ import annotations

from detectron2.config import LazyCall
from omegaconf import OmegaConf

from segtrain.data.settings import PhotometricSettings

from .boxinst import model

model.distillation = LazyCall("segtrain.distillation.box_teacher.BoxTeacherSettings")(
    mask_weight=0.5,
    affinity_weight=0.1,
    warmup_iterations="${model.warmup_iterations}",
    min_iou=0.5,
    min_confidence=0.0,
    teacher_precision="auto",
    teacher_nms_threshold=None,
)
# Of the student's colours; the teacher and the colour loss see the photo's own. **choice**
photometric = OmegaConf.structured(
    PhotometricSettings(jitter_probability=0.8, grayscale_probability=0.2, blur_probability=0.5)
)

__all__ = ["model", "photometric"]
