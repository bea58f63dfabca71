"""The FCOS detector: towers, predictions at every location, and detections.

What only some locations need (boxes, quality and mask parameters of positives in training, mask
parameters of detections) is computed there only: a 3×3 convolution at P places is one product.

Shape legend: B images, P chosen locations, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from segtrain.losses.detector import Quality
from segtrain.modeling.fcos_targets import STRIDES, level_locations


@dataclass(kw_only=True)
class FCOSSettings:
    """The detector's switches.

    Attributes:
        quality: what the box-quality branch predicts; "centerness" or "iou".
        centre_on_bitmask: sample around the centroid of the filled pixels, as BoxInst trains.
        sampling_radius: of centre sampling, in strides.
        tower_depth: convolutions in each tower.
        score_threshold: least score of a candidate.
        threshold_on: what that score is: its "class" probability, or "class_times_quality".
        num_before_nms: candidates per level and image.
        nms_threshold: IoU above which a lower-scored box of the same class is dropped.
        num_detections: per image, after NMS.
    """

    quality: Quality = "centerness"
    centre_on_bitmask: bool = True
    sampling_radius: float = 1.5
    tower_depth: int = 4
    score_threshold: float = 0.05
    threshold_on: Literal["class", "class_times_quality"] = "class"
    num_before_nms: int = 1000
    nms_threshold: float = 0.6
    num_detections: int = 100

    def __post_init__(self) -> None:
        for name, allowed in (
            ("quality", ("centerness", "iou")),
            ("threshold_on", ("class", "class_times_quality")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


class Scale(nn.Module):
    """One learnt factor per level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x * self.scale


def init_dense_head(head: nn.Module, cls_logits: nn.Conv2d) -> None:
    """Small random convolutions; every place starts at a foreground probability of 0.01.

    Source: focal loss (arXiv 1708.02002).
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    assert cls_logits.bias is not None
    nn.init.constant_(cls_logits.bias, -math.log(99.0))


class Tower(nn.Sequential):
    """Convolution, GroupNorm and ReLU in turn, on all levels of a pyramid."""

    def __init__(
        self, channels: int, depth: int, groups: int, in_channels: int | None = None
    ) -> None:
        super().__init__()
        for index in range(depth):
            entering = channels if index or in_channels is None else in_channels
            self.append(nn.Conv2d(entering, channels, 3, padding=1))
            self.append(nn.GroupNorm(groups, channels))
            self.append(nn.ReLU(inplace=True))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features of each level."""
        levels = list(features)
        for layer in self:
            levels = [layer(level) for level in levels]
        return levels


class FCOSHead(nn.Module):
    """Two towers with GroupNorm, shared by all levels, and the prediction layers.

    Args:
        num_classes: without background.
        channels: of the feature pyramid.
        depth: convolutions in each tower.
    """

    def __init__(self, num_classes: int, channels: int = 256, depth: int = 4) -> None:
        super().__init__()
        groups = max(channels // 8, 1)  # 32 groups of 8 at the published width
        self.cls_tower = Tower(channels, depth, groups)
        self.bbox_tower = Tower(channels, depth, groups)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in STRIDES)
        init_dense_head(self, self.cls_logits)

    def class_logits(
        self, features: Sequence[torch.Tensor], classes_K: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Classification logits of each level, (B, K, H, W); of all classes by default."""
        levels = self.cls_tower(features)
        weight, bias = self.cls_logits.weight, self.cls_logits.bias
        if classes_K is not None:
            weight, bias = weight[classes_K], None if bias is None else bias[classes_K]
        return self.convolve(levels, weight, bias)

    @staticmethod
    def convolve(
        levels: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """A 3×3 convolution of each level."""
        return [F.conv2d(level, weight, bias, padding=1) for level in levels]

    def box_features(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Output of the box tower on each level."""
        towers: list[torch.Tensor] = self.bbox_tower(features)
        return towers

    def box_predictions(
        self, box_features: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Dense offsets (B, 4, H, W) ≥ 0 in strides and quality logits (B, 1, H, W) per level."""
        weight = torch.cat((self.bbox_pred.weight, self.ctrness.weight))
        bias = self._box_biases()
        offsets, quality = [], []
        for level, scale in zip(box_features, self.scales, strict=False):
            both = F.conv2d(level, weight, bias, padding=1)
            offsets.append(torch.relu(scale(both[:, :4])))
            quality.append(both[:, 4:])
        return offsets, quality

    def _box_biases(self) -> torch.Tensor:
        layers = (self.bbox_pred, self.ctrness)
        return torch.cat([layer.bias for layer in layers if layer.bias is not None])

    def predictions_at(
        self, patches_PN: torch.Tensor, levels_P: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Offsets (P, 4) and quality logits (P,) at chosen locations, from `gather_patches`."""
        weight = torch.cat((self.bbox_pred.weight, self.ctrness.weight)).flatten(1)
        bias = self._box_biases()
        both = F.linear(patches_PN, weight, bias)
        scales = torch.cat(list(self.scales.parameters()))
        return torch.relu(both[:, :4] * scales[levels_P][:, None]), both[:, 4]


class FCOS(nn.Module):
    """Holder of the head under the key that published checkpoints use."""

    def __init__(self, fcos_head: FCOSHead) -> None:
        super().__init__()
        self.fcos_head = fcos_head


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Detections of one image, best first."""

    boxes: torch.Tensor  # (D, 4) x1, y1, x2, y2 in pixels of the resized image
    scores: torch.Tensor  # (D,) sqrt(class probability · quality)
    classes: torch.Tensor  # (D,) int64
    levels: torch.Tensor  # (D,) int64
    cells: torch.Tensor  # (D, 2) row, column of the location
    locations: torch.Tensor  # (D, 2) x, y in pixels

    def select(self, indices: torch.Tensor) -> Detections:
        """Rows in the order of `indices`."""
        return Detections(**{name: value[indices] for name, value in vars(self).items()})


def gather_patches(
    feature_maps: Sequence[torch.Tensor],
    levels_P: torch.Tensor,
    image_indices_P: torch.Tensor,
    cells_P2: torch.Tensor,
) -> torch.Tensor:
    """3×3 surroundings of chosen cells, zero outside the map.

    `F.linear(patches, conv.weight.flatten(1), conv.bias)` is then the 3×3 convolution there.

    Returns:
        (P, channels · 9).
    """
    channels = feature_maps[0].shape[1]
    offsets = torch.arange(-1, 2, device=levels_P.device)
    patches, order = [], []
    for level, maps in enumerate(feature_maps):
        chosen = torch.nonzero(levels_P == level)[:, 0]
        if len(chosen) == 0:
            continue
        height, width = maps.shape[-2:]
        rows = cells_P2[chosen, 0, None, None] + offsets[:, None]
        columns = cells_P2[chosen, 1, None, None] + offsets
        is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        values = maps.permute(0, 2, 3, 1)[
            image_indices_P[chosen, None, None],
            rows.clamp(0, height - 1),
            columns.clamp(0, width - 1),
        ]
        patches.append((values * is_inside[..., None]).permute(0, 3, 1, 2).flatten(1))
        order.append(chosen)
    if not patches:
        return feature_maps[0].new_zeros(0, channels * 9) + sum(m.sum() for m in feature_maps) * 0.0
    return torch.cat(patches)[torch.argsort(torch.cat(order))]


def decode_boxes(
    locations_P2: torch.Tensor, offsets_P4: torch.Tensor, levels_P: torch.Tensor
) -> torch.Tensor:
    """Boxes in pixels from distances in strides."""
    strides = torch.tensor(STRIDES, device=offsets_P4.device)[levels_P][:, None]
    distances = offsets_P4.float() * strides
    return torch.cat((locations_P2 - distances[:, :2], locations_P2 + distances[:, 2:]), dim=1)


def detect(
    class_logits: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    quality_logits: Sequence[torch.Tensor],
    settings: FCOSSettings,
    classes: Sequence[torch.Tensor] | None = None,
) -> list[Detections]:
    """Detections of every image from dense predictions.

    Candidates are the locations and classes with a score above the threshold, the best
    `num_before_nms` per level by class × quality; then class-wise NMS. Source: FCOS, arXiv
    1904.01355.

    Args:
        class_logits: (B, K, H, W) of each level.
        offsets: (B, 4, H, W), distances in strides.
        quality_logits: (B, 1, H, W).
        settings: threshold and limits.
        classes: those of the K to look for in each image, as if there were no others; None for all.
    """
    results = []
    for image in range(len(class_logits[0])):
        parts = [
            _level_candidates(
                class_logits[level][image],
                offsets[level][image],
                quality_logits[level][image],
                level,
                settings,
                None if classes is None else classes[image],
            )
            for level in range(len(class_logits))
        ]
        found = Detections(
            **{
                name: torch.cat([getattr(part, name) for part in parts])
                for name in Detections.__dataclass_fields__
            }
        )
        kept = batched_nms(found.boxes, found.scores, found.classes, settings.nms_threshold)
        results.append(found.select(kept[: settings.num_detections]))
    return results


def _level_candidates(
    class_logits_KHW: torch.Tensor,
    offsets_4HW: torch.Tensor,
    quality_1HW: torch.Tensor,
    level: int,
    settings: FCOSSettings,
    wanted: torch.Tensor | None,
) -> Detections:
    height, width = class_logits_KHW.shape[1:]
    if wanted is not None:
        class_logits_KHW = class_logits_KHW[wanted]
    probabilities = class_logits_KHW.float().sigmoid().flatten(1)
    quality = quality_1HW.float().sigmoid().flatten()
    by_class = settings.threshold_on == "class"
    asked = probabilities if by_class else probabilities * quality
    classes, places = torch.nonzero(asked > settings.score_threshold, as_tuple=True)
    scores = probabilities[classes, places] * quality[places]
    best = scores.topk(min(settings.num_before_nms, len(scores))).indices
    classes, places = classes[best], places[best]
    levels = torch.full_like(places, level)
    locations = level_locations(height, width, STRIDES[level], scores.device)[places]
    return Detections(
        boxes=decode_boxes(locations, offsets_4HW.flatten(1).T[places], levels),
        scores=scores[best].sqrt(),
        classes=classes if wanted is None else wanted[classes],
        levels=levels,
        cells=torch.stack((places.div(width, rounding_mode="floor"), places % width), 1),
        locations=locations,
    )
