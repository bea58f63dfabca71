"""The layers of CondInst, and what they compute at chosen places.

Shape legend: B images, I mask instances, H×W the mask grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

from segtrain.modeling.dynamic_mask_head import (
    SIZES_OF_INTEREST,
    DepthForm,
    MaskSettings,
    num_mask_parameters,
    run_dynamic_head,
)
from segtrain.modeling.fcos import (
    FCOS,
    Detections,
    FCOSHead,
    FCOSSettings,
    detect,
    gather_patches,
)
from segtrain.modeling.image_batches import batch_images
from segtrain.modeling.mask_branch import MaskBranch
from segtrain.precision import widen

LEVELS = ("p3", "p4", "p5", "p6", "p7")


class MaskHeadState(nn.Module):
    """The mask head's buffers; its weights come from the controller."""

    sizes_of_interest: torch.Tensor
    _iter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sizes_of_interest", torch.tensor(SIZES_OF_INTEREST))
        self.register_buffer("_iter", torch.zeros(1))


@dataclass(frozen=True)
class DensePredictions:
    """What the network computes at every location, for a batch; lists have one map a level."""

    levels: list[torch.Tensor]  # the pyramid, (B, C, H, W)
    box_features: list[torch.Tensor]  # (B, C, H, W)
    offsets: list[torch.Tensor]  # (B, 4, H, W)
    quality: list[torch.Tensor]  # (B, 1, H, W) logits
    mask_features: torch.Tensor  # (B, mask channels, H, W) at stride 8


class CondInstNetwork(nn.Module):
    """Backbone, FCOS, mask branch and controller, under the names of published checkpoints.

    Args:
        backbone: maps an image batch to a dict with p3 to p7.
        num_classes: without background.
        fcos: detector settings.
        mask: mask head settings.
        pixel_mean: subtracted from BGR pixels in 0..255.
        pixel_std: by which they are divided.
        feature_channels: of the pyramid.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        fcos: FCOSSettings,
        mask: MaskSettings,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        feature_channels: int = 256,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = FCOS(FCOSHead(num_classes, feature_channels, fcos.tower_depth))
        self.mask_branch = MaskBranch(
            feature_channels, mask.mask_channels, min(128, feature_channels), mask.norm
        )
        self.mask_head = MaskHeadState()
        self.controller = nn.Conv2d(
            feature_channels,
            num_mask_parameters(mask.mask_channels, depth_layer=mask.depth_layer),
            3,
            padding=1,
        )
        assert self.controller.bias is not None
        nn.init.normal_(self.controller.weight, std=0.01)
        nn.init.zeros_(self.controller.bias)
        if mask.depth_layer:
            nn.init.constant_(self.controller.bias[-2:-1], mask.depth_bias)
        self.num_classes = num_classes
        self.fcos_settings, self.mask_settings = fcos, mask
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean)[:, None, None], False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std)[:, None, None], False)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    @property
    def depth_form(self) -> DepthForm | None:
        """How depth guides masks, None without the depth layer."""
        return self.mask_settings.depth_form if self.mask_settings.depth_layer else None

    def batch_images(self, images: Sequence[torch.Tensor]) -> ImageList:
        """Normalised and padded to a multiple of 32."""
        return batch_images(images, self.pixel_mean, self.pixel_std)

    def predict_densely(self, images: torch.Tensor) -> DensePredictions:
        """What inference computes at every location."""
        features = self.backbone(images)
        levels = [features[name] for name in LEVELS]
        head = self.proposal_generator.fcos_head
        box_features = head.box_features(levels)
        offsets, quality = head.box_predictions(box_features)
        return DensePredictions(levels, box_features, offsets, quality, self.mask_branch(features))

    def detect_in(
        self, dense: DensePredictions, classes: Sequence[torch.Tensor] | None = None
    ) -> list[Detections]:
        """Detections of each image, of the given classes only or of all."""
        head = self.proposal_generator.fcos_head
        if classes is None:
            logits = head.class_logits(dense.levels)
            return detect(logits, dense.offsets, dense.quality, self.fcos_settings)
        asked = torch.cat([own.to(self.device) for own in classes]).unique()
        if len(asked) == 0:  # no boxes in the batch; a convolution needs an output
            asked = asked.new_zeros(1)
        logits = head.class_logits(dense.levels, asked)
        places = [torch.searchsorted(asked, own.to(self.device).unique()) for own in classes]
        return [
            dataclasses.replace(found, classes=asked[found.classes])
            for found in detect(logits, dense.offsets, dense.quality, self.fcos_settings, places)
        ]

    def mask_parameters(self, patches: torch.Tensor) -> torch.Tensor:
        """(I, P): what the controller predicts at the given 3×3 neighbourhoods (I, 9·C).

        Callers leave autocast for it: the weights of a network are no place for rounded values.
        """
        return F.linear(widen(patches), self.controller.weight.flatten(1), self.controller.bias)

    def masks_of(
        self,
        found: Detections,
        image: int,
        dense: DensePredictions,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mask logits of an image's detections, and their depth where the model predicts it."""
        image_indices = torch.full_like(found.levels, image)
        patches = gather_patches(dense.box_features, found.levels, image_indices, found.cells)
        with torch.autocast(self.device.type, enabled=False):
            return run_dynamic_head(
                dense.mask_features[image : image + 1],
                self.mask_parameters(patches),
                found.locations,
                self.mask_head.sizes_of_interest[found.levels],
                torch.zeros_like(image_indices),
                depth_form=self.depth_form,
            )
