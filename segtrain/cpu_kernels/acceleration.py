"""The door to this folder: a model's layers take the faster ways, its weights and keys stay.

Each layer is given the class of its faster form in place, so that a state dict, a copy and
`isinstance` see the layer that the model's own file made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.modeling.backbone.resnet import BasicStem
from torch import nn

from segtrain.cpu_kernels.folded_batch_norm import (
    FoldedBottleneck,
    FoldedConv2d,
    FoldedDeformableBottleneck,
    FoldedStem,
)
from segtrain.cpu_kernels.winograd import convolve_3x3, convolve_levels_3x3, is_plain_3x3
from segtrain.modeling.backbones import DeformableBottleneck
from segtrain.modeling.fcos import FCOSHead, Tower

_FOLDED: dict[Any, Any] = {
    BasicStem: FoldedStem,
    BottleneckBlock: FoldedBottleneck,
    DeformableBottleneck: FoldedDeformableBottleneck,
}


class TiledConv3x3(nn.Conv2d):
    """A 3×3 convolution of stride 1 and padding 1, by the faster way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        return convolve_3x3(x, self.weight, self.bias)


class TiledPyramidConv(Conv2d):
    """The same for detectron2's layer without norm and activation, as in a pyramid."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        return convolve_3x3(x, self.weight, self.bias)


class TiledTower(Tower):
    """A tower that transforms its kernels once for all levels."""

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features of each level."""
        levels = list(features)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                levels = convolve_levels_3x3(levels, layer.weight, layer.bias)
            else:
                levels = [layer(level) for level in levels]
        return levels


class TiledFCOSHead(FCOSHead):
    """A head that transforms its kernels once for all levels."""

    @staticmethod
    def convolve(
        levels: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """A 3×3 convolution of each level."""
        return convolve_levels_3x3(levels, weight, bias)


def accelerate(model: nn.Module) -> None:
    """Let a model's convolutions take the faster ways of this folder, in place."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        kind: Any = type(module)
        if kind is Tower:
            module.__class__ = TiledTower
        elif kind is FCOSHead:
            module.__class__ = TiledFCOSHead
        elif kind is nn.Conv2d and is_plain_3x3(module):
            module.__class__ = TiledConv3x3
        elif kind is Conv2d and module.activation is None:
            if isinstance(module.norm, FrozenBatchNorm2d):
                module.__class__ = FoldedConv2d
            elif module.norm is None and is_plain_3x3(module):
                module.__class__ = TiledPyramidConv
        elif kind in _FOLDED and all(map(_is_foldable, module.children())):
            module.__class__ = _FOLDED[kind]


def _is_foldable(layer: nn.Module) -> bool:
    return not isinstance(layer, Conv2d) or isinstance(layer.norm, FrozenBatchNorm2d)
