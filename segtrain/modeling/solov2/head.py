"""The layers of SOLOv2: categories and kernels of grid cells, and the features that kernels meet.

Shape legend: B images, K classes, E mask channels, S cells along a side of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.modeling.fcos import Tower, init_dense_head
from segtrain.precision import widen


class GridHead(nn.Module):
    """Category and kernel of every cell, by two towers that all grids share.

    The kernel tower also sees where a cell is (CoordConv, arXiv 1807.03247): its kernel has to tell
    its object from others that look the same.

    Args:
        num_classes: K.
        channels: of the pyramid and the towers.
        tower_depth: convolutions in each tower.
        mask_channels: E, parameters of a 1×1 kernel.
        grid_numbers: S of each level's grid.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        tower_depth: int,
        mask_channels: int,
        grid_numbers: Sequence[int],
    ) -> None:
        super().__init__()
        self.grid_numbers = tuple(grid_numbers)
        groups = max(channels // 8, 1)
        self.cate_tower = Tower(channels, tower_depth, groups)
        self.kernel_tower = Tower(channels, tower_depth, groups, in_channels=channels + 2)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.kernels = nn.Conv2d(channels, mask_channels, 3, padding=1)
        init_dense_head(self, self.cls_logits)

    def forward(
        self, features: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Class logits (B, K, S, S) and kernels (B, E, S, S) of each grid, kernels in float32."""
        grids = [
            resize_to_grid(level, cells)
            for level, cells in zip(features, self.grid_numbers, strict=True)
        ]
        logits = [self.cls_logits(level) for level in self.cate_tower(grids)]
        towers = self.kernel_tower([append_coordinates(grid) for grid in grids])
        # Weights of a network are no place for rounded values.
        with torch.autocast(grids[0].device.type, enabled=False):
            kernels = [self.kernels(widen(level)) for level in towers]
        return logits, kernels


class UnifiedMaskFeature(nn.Module):
    """One feature map at stride 4 for all sizes of objects, from p2 to p5.

    Level n passes n − 2 convolutions, each followed by an up-sampling to twice the size (p2 one
    without); their sum passes a 1×1 convolution. The deepest level sees coordinates first.

    Args:
        in_channels: of the pyramid.
        channels: inside.
        mask_channels: E.
    """

    def __init__(self, in_channels: int, channels: int, mask_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(4):
            blocks = nn.ModuleList()
            entering = in_channels + 2 if level == 3 else in_channels
            for _ in range(max(level, 1)):
                blocks.append(_block(entering, channels, 3))
                entering = channels
            self.levels.append(blocks)
        self.merge = _block(channels, mask_channels, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, E, H / 4, W / 4) of p2 to p5, float32 under autocast too."""
        total: torch.Tensor | None = None
        for level, (maps, blocks) in enumerate(zip(features, self.levels, strict=True)):
            hidden = append_coordinates(maps) if level == 3 else maps
            for block in blocks.children():
                hidden = block(hidden)
                if level > 0:
                    hidden = aligned_bilinear(hidden, 2)
            total = hidden if total is None else total + hidden
        assert total is not None
        with torch.autocast(total.device.type, enabled=False):
            merged: torch.Tensor = self.merge(widen(total))
        return merged


def resize_to_grid(maps_BCHW: torch.Tensor, cells: int) -> torch.Tensor:
    """Resample maps to S×S by bilinear interpolation that averages where it shrinks.

    Two matrix products, so that the gradient is summed in a fixed order on a GPU too.
    """
    rows, columns = (
        _resampling_matrix(side, cells, maps_BCHW).to(maps_BCHW.dtype)
        for side in maps_BCHW.shape[-2:]
    )
    return rows @ maps_BCHW @ columns.T


def append_coordinates(maps_BCHW: torch.Tensor) -> torch.Tensor:
    """Maps with two more channels: x and y from −1 at the first to 1 at the last cell."""
    height, width = maps_BCHW.shape[-2:]
    xs = torch.linspace(-1, 1, width, device=maps_BCHW.device).expand(height, width)
    ys = torch.linspace(-1, 1, height, device=maps_BCHW.device)[:, None].expand(height, width)
    both = torch.stack((xs, ys)).expand(len(maps_BCHW), 2, height, width)
    return torch.cat((maps_BCHW, both.to(maps_BCHW.dtype)), 1)


def _resampling_matrix(size: int, cells: int, like: torch.Tensor) -> torch.Tensor:
    """(cells, size) weights of each sample in each cell."""
    basis = torch.eye(size, device=like.device)[None, :, None]
    resampled = F.interpolate(basis, (1, cells), mode="bilinear", antialias=True)
    return resampled[0, :, 0].T


def _block(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.GroupNorm(max(channels // 8, 1), channels)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))
