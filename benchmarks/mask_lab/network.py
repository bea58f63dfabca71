"""The laboratory's network: a frozen ImageNet encoder, and a U-shaped decoder that learns.

The encoder's features are computed once for a fixed set of crops, so that a row trains in seconds
on one core.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.mask_lab.crops import (
    Views,
    box_extents,
    cut_images,
    cut_inverse_depth,
    cut_masks,
)
from benchmarks.mask_lab.scenes import Scenes
from benchmarks.mask_lab.supervision import Targets, colour_links
from segtrain.modeling.backbones import EFFICIENTNET_LITE_PIXELS, load_efficientnet_lite_weights

_CHANNELS = (16, 24, 40, 112, 320)  # of the encoder at strides 2, 4, 8, 16 and 32
_DEPTH_CHANNELS = (8, 16, 24)  # of the depth branch at strides 2, 4 and 8
_WIDTHS = (16, 24, 40, 64, 64)  # of the decoder at strides 2, 4, 8, 16 and 32
_BATCH = 64


@dataclasses.dataclass(kw_only=True, frozen=True)
class Bank:
    """Crops with everything about them that no row changes.

    Attributes:
        views: where they lie.
        features: of the encoder, (I, C, S/s, S/s) float16 for s = 2, 4, 8, 16, 32.
        colour_links_I8HW: see `supervision.colour_links`.
        masks_IHW: the true masks.
        extents_I4: cells of the boxes.
    """

    views: Views
    features: tuple[torch.Tensor, ...]
    colour_links_I8HW: torch.Tensor
    masks_IHW: torch.Tensor
    extents_I4: torch.Tensor

    def features_of(self, chosen: torch.Tensor | slice) -> list[torch.Tensor]:
        """float32 features of some crops."""
        return [
            level[chosen].float().contiguous(memory_format=torch.channels_last)
            for level in self.features
        ]

    def targets_of(self, chosen: torch.Tensor, inverse_depth_255_ISS: torch.Tensor) -> Targets:
        """What some crops may learn from, with the depth of all crops given."""
        return Targets(
            colour_links_I8HW=self.colour_links_I8HW[chosen],
            inverse_depth_255_ISS=inverse_depth_255_ISS[chosen],
            masks_IHW=self.masks_IHW[chosen],
            extents_I4=self.extents_I4[chosen],
        )


def fill_bank(scenes: Scenes, views: Views) -> Bank:
    """Cut crops and encode them."""
    body = timm.create_model("tf_efficientnet_lite0", features_only=True)
    load_efficientnet_lite_weights(body)
    body = body.eval().to(memory_format=torch.channels_last)
    (mean, *_), (deviation, *_) = EFFICIENTNET_LITE_PIXELS
    features: list[list[torch.Tensor]] = []
    links = []
    for first in range(0, len(views), _BATCH):
        images = cut_images(scenes, views[first : first + _BATCH])
        links.append(colour_links(images))
        with torch.inference_mode():
            encoded = body(
                ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)
            )
        features.append([level.half() for level in encoded])
    return Bank(
        views=views,
        features=tuple(torch.cat(level) for level in zip(*features, strict=True)),
        colour_links_I8HW=torch.cat(links),
        masks_IHW=cut_masks(scenes, views),
        extents_I4=box_extents(views),
    )


def depth_of(bank: Bank, inverse_depth_255_SHW: npt.NDArray[np.float32]) -> torch.Tensor:
    """(I, S, S) depth of one source for all crops of a bank."""
    return cut_inverse_depth(inverse_depth_255_SHW, bank.views)


class Decoder(nn.Module):
    """From the encoder's features, and a branch that reads depth, to mask logits at stride 2.

    The depth branch is always there, so that every row starts from the same weights; without depth
    it reads zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        d1, d2, d3 = _DEPTH_CHANNELS
        self.depth = nn.ModuleList([_block(1, d1, 2), _block(d1, d2, 2), _block(d2, d3, 2)])
        w1, w2, w3, w4, w5 = _WIDTHS
        c1, c2, c3, c4, c5 = _CHANNELS
        self.top = _block(c5, w5)
        self.decoder = nn.ModuleList(
            [
                _block(w5 + c4, w4),
                _block(w4 + c3 + d3, w3),
                _block(w3 + c2 + d2, w2),
                _block(w2 + c1 + d1, w1),
            ]
        )
        self.mask = nn.Conv2d(w1, 1, 1)
        self.inverse_depth = nn.Conv2d(w1, 1, 1)

    def forward(
        self, features: list[torch.Tensor], inverse_depth_255_ISS: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (I, H, W), and logits of the inverse depth that the picture suggests."""
        count, _, half, _ = features[0].shape
        if inverse_depth_255_ISS is None:
            depth = features[0].new_zeros(count, 1, 2 * half, 2 * half)
        else:
            depth = _scale_per_crop(inverse_depth_255_ISS)
        depth_maps = []
        for block in self.depth:
            depth = block(depth)
            depth_maps.append(depth)
        y = self.top(features[4])
        for block, level in zip(self.decoder, (3, 2, 1, 0), strict=True):
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            y = block(torch.cat((y, features[level], *depth_maps[level : level + 1]), dim=1))
        return self.mask(y)[:, 0], self.inverse_depth(y)[:, 0]


def _scale_per_crop(inverse_depth_ISS: torch.Tensor) -> torch.Tensor:
    """(I, 1, S, S) in −1..1: what is far in the scene may fill a crop."""
    flat = inverse_depth_ISS.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    return ((inverse_depth_ISS - low) / (high - low).clamp(min=1) * 2 - 1)[:, None]


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
