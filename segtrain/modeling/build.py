"""One call that builds the model, for configs and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from segtrain.distillation.teaching import DistillationSettings
from segtrain.losses.detector import Quality
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.condinst_settings import LossSettings, MaskSettings
from segtrain.modeling.dynamic_mask_head import DepthForm
from segtrain.modeling.fcos import FCOSSettings


def build_condinst(
    *,
    backbone: nn.Module,
    num_classes: int,
    mask_channels: int = 16,
    depth_layer: bool = False,
    depth_form: DepthForm = "multiply",
    quality: Quality = "centerness",
    centre_on_bitmask: bool = True,
    tower_depth: int = 4,
    supervision: Literal["boxes", "masks", "mixed"] = "boxes",
    color: bool = True,
    color_threshold: float = 0.3,
    depth_weight: float = 1.0,
    depth_warmup: bool = False,
    consistency: bool = False,
    depth_threshold: float = 0.5,
    consistency_inside_box_only: bool = True,
    warmup_iterations: int = 10_000,
    masks_per_image: int = 64,
    norm: str = "BN",
    distillation: DistillationSettings | None = None,
    pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    feature_channels: int = 256,
    score_threshold: float = 0.05,
    num_detections: int = 100,
    encode_masks: bool = False,
) -> CondInst:
    """Build CondInst; the arguments are the attributes of the settings classes.

    BoxInst is the default; the full method is depth_layer=True, consistency=True and distillation
    settings. See `FCOSSettings`, `MaskSettings`, `LossSettings` and `DistillationSettings`.
    """
    return CondInst(
        backbone=backbone,
        num_classes=num_classes,
        fcos=FCOSSettings(
            quality=quality,
            centre_on_bitmask=centre_on_bitmask,
            tower_depth=tower_depth,
            score_threshold=score_threshold,
            num_detections=num_detections,
        ),
        mask=MaskSettings(
            channels=mask_channels,
            depth_layer=depth_layer,
            depth_form=depth_form,
            masks_per_image=masks_per_image,
            norm=norm,
        ),
        losses=LossSettings(
            supervision=supervision,
            color=color,
            color_threshold=color_threshold,
            depth_weight=depth_weight,
            depth_warmup=depth_warmup,
            consistency=consistency,
            depth_threshold=depth_threshold,
            consistency_inside_box_only=consistency_inside_box_only,
            warmup_iterations=warmup_iterations,
        ),
        distillation=distillation,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        feature_channels=feature_channels,
        encode_masks=encode_masks,
    )
