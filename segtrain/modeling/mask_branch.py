"""The mask branch: p3, p4 and p5 become one feature map at stride 8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.layers import get_norm
from torch import nn

from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.precision import widen


class MaskBranch(nn.Module):
    """Refine each level, add them at stride 8, and reduce to the channels the dynamic head reads.

    Source: CondInst, arXiv 2003.05664.

    Args:
        in_channels: of the feature pyramid.
        mask_channels: of the output; 16 for BoxInst, 8 for CondInst.
        channels: inside.
        norm: a name that detectron2's `get_norm` knows, such as "BN" or "SyncBN".
    """

    def __init__(
        self, in_channels: int = 256, mask_channels: int = 16, channels: int = 128, norm: str = "BN"
    ) -> None:
        super().__init__()
        self.in_features = ("p3", "p4", "p5")
        self.refine = nn.ModuleList(_block(in_channels, channels, norm) for _ in self.in_features)
        last = nn.Conv2d(channels, mask_channels, 1)
        nn.init.kaiming_uniform_(last.weight, a=1)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.tower = nn.Sequential(*(_block(channels, channels, norm) for _ in range(4)), last)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, mask_channels, H / 8, W / 8), float32 under autocast too."""
        merged = self.refine[0](features[self.in_features[0]])
        for index, name in enumerate(self.in_features[1:], start=1):
            level = self.refine[index](features[name])
            merged = merged + aligned_bilinear(level, merged.shape[-1] // level.shape[-1])
        hidden = self.tower[:-1](merged)
        # Masks are thresholds of these few channels, so they are not rounded to half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            output: torch.Tensor = self.tower[-1](widen(hidden))
        return output


def _block(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, get_norm(norm, channels), nn.ReLU(inplace=True))
