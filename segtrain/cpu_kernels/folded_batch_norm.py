"""ResNet layers whose frozen batch norms are folded into their convolutions at run time.

The keys of a state dict stay those of detectron2's layers. Where no gradient is needed on a CPU,
the ReLU and the sum with the shortcut are handed to oneDNN with the convolution, which applies them
before a value leaves the processor's cache: fewer passes over memory. The operator is the one that
torch's compiler uses for the same purpose.
"""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.modeling.backbone.resnet import BasicStem
from torch.nn import functional as F

from segtrain.cpu_kernels.winograd import (
    convolve_3x3,
    is_plain_3x3,
    runs_on_cpu_kernels,
    tiled_dtype,
)
from segtrain.modeling.backbones import DeformableBottleneck


class FoldedConv2d(Conv2d):
    """A convolution with its frozen batch norm folded into weight and bias on every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and normalise."""
        return self._convolve(x, *self._folded())

    def forward_relu(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, normalise and apply ReLU."""
        weight, bias = self._folded()
        dtype = _fusing_dtype(x, weight)
        if dtype is None or (is_plain_3x3(self) and tiled_dtype([x], weight) is not None):
            return F.relu_(self._convolve(x, weight, bias))
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype),
            weight.to(dtype),
            bias.to(dtype),
            *self._geometry(),
            "relu",
            [],
            "",
        )
        return result

    def forward_add_relu(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Convolve, normalise, add the shortcut, apply ReLU; `shortcut` may be overwritten."""
        weight, bias = self._folded()
        dtype = _fusing_dtype(x, weight)
        if dtype is None or shortcut.dtype != dtype or not _is_channels_last(shortcut):
            return F.relu_(self._convolve(x, weight, bias).add_(shortcut))
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut,
            x.to(dtype),
            weight.to(dtype),
            bias.to(dtype),
            *self._geometry(),
            "add",
            1.0,
            "relu",
            [],
            "",
        )
        return result

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if is_plain_3x3(self):
            return convolve_3x3(x, weight, bias)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def _geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        assert not isinstance(self.padding, str)
        return self.padding, self.stride, self.dilation, self.groups


class FoldedStem(BasicStem):
    """The 7×7 convolution and the pooling, 4 pixels to a cell."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and pool."""
        return F.max_pool2d(self.conv1.forward_relu(x), kernel_size=3, stride=2, padding=1)


class FoldedBottleneck(BottleneckBlock):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut.

    Without gradients an input that is the shortcut is overwritten. Nothing else reads it: the first
    block of a stage, whose input is the output of another, has a convolution as shortcut.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform and add."""
        hidden = self.conv2.forward_relu(self.conv1.forward_relu(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        output: torch.Tensor = self.conv3.forward_add_relu(hidden, shortcut)
        return output


class FoldedDeformableBottleneck(DeformableBottleneck):
    """The same with a deformable convolution in the middle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform and add."""
        hidden = self.conv1.forward_relu(x)
        hidden = F.relu_(self.conv2(hidden, self.conv2_offset(hidden)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        output: torch.Tensor = self.conv3.forward_add_relu(hidden, shortcut)
        return output


def _fusing_dtype(x: torch.Tensor, weight: torch.Tensor) -> torch.dtype | None:
    """The type in which oneDNN computes a convolution with what follows it; None if it does not."""
    if (
        not runs_on_cpu_kernels(x)
        or not _is_channels_last(x)
        or not torch.backends.mkldnn.is_available()
        or not hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in {torch.float32, torch.bfloat16} else None


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)
