"""3×3 convolutions with a quarter of the multiplications, for CPUs.

Winograd's F(4×4, 3×3): overlapping 6×6 tiles of the input and the kernels are transformed, 36
matrix products replace the convolution, and 4×4 tiles of the output are transformed back. Source:
Lavin and Gray, arXiv 1509.09308. In float32 rounding grows from 1e-6 to 3e-6 of the output's
deviation. In bfloat16 it would grow from 0.17 % to 2 %, so there only gradients go this way, which
carry more rounding from elsewhere (docs/performance.md). cuDNN does the same on GPUs, where this
file therefore leaves the work to it.

Shape legend: N images, C input and O output channels, H×W cells, T tiles, 36 = 6·6 frequencies.
Maps are in channels-last memory, so that every copy and product runs along channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE = 4
_WINDOW = TILE + 2
_Matrix = tuple[tuple[float, ...], ...]


class _Transform:
    """A linear map of square tiles: the same matrix along rows and along columns."""

    def __init__(self, matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
        self._matrix = matrix.to(dtype)
        self._both_axes = torch.kron(matrix, matrix).to(dtype)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """(n·n, K) to (m·m, K) with the (m, n) matrix.

        One axis after the other is faster in float32; bfloat16 would round in between.
        """
        if tiles.dtype != torch.float32:
            return self._both_axes @ tiles
        size, width = self._matrix.shape
        columns = torch.matmul(self._matrix, tiles.reshape(width, width, -1))
        return (self._matrix @ columns.reshape(width, -1)).view(size * size, -1)


class _Transforms:
    """The transforms of one type of maps, and what is worth them (docs/performance.md).

    Args:
        dtype: of the maps.
        input_66: of 6×6 tiles of the input.
        kernel_63: of 3×3 kernels, in float32: weights are transformed before they are rounded.
        output_46: back to 4×4 tiles of the output.
        tiles_per_chunk: so that the buffers of a chunk stay in the processor's cache.
        min_tiles: below these the transforms cost more than the products save.
        min_channels: likewise.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        input_66: _Matrix,
        kernel_63: _Matrix,
        output_46: _Matrix,
        tiles_per_chunk: int,
        min_tiles: int,
        min_channels: int,
    ) -> None:
        inputs, kernel, output = (
            torch.tensor(matrix, dtype=torch.float64) for matrix in (input_66, kernel_63, output_46)
        )
        self.input = _Transform(inputs, dtype)
        self.kernel = _Transform(kernel)
        self.kernel_adjoint = _Transform(kernel.T)
        self.output = _Transform(output, dtype)
        self.output_adjoint = _Transform(output.T, dtype)
        self.tiles_per_chunk = tiles_per_chunk
        self.min_tiles = min_tiles
        self.min_channels = min_channels


_TRANSFORMS = {
    # Interpolation points 0, 1, −1, 2, −2 and infinity, as in the paper.
    torch.float32: _Transforms(
        torch.float32,
        input_66=(
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        kernel_63=(
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        output_46=(
            (1, 1, 1, 1, 1, 0),
            (0, 1, -1, 2, -2, 0),
            (0, 1, 1, 4, 4, 0),
            (0, 1, -1, 8, -8, 1),
        ),
        tiles_per_chunk=256,
        min_tiles=128,
        min_channels=80,
    ),
    # Points 0, 1, −1, −1/2, 2 and infinity: of those whose matrices of both axes are exact in
    # bfloat16 they round least.
    torch.bfloat16: _Transforms(
        torch.bfloat16,
        input_66=(
            (2, 3, -4, -3, 2, 0),
            (0, -2, -5, -1, 2, 0),
            (0, 2, 1, -5, 2, 0),
            (0, 2, -1, -2, 1, 0),
            (0, -1, -2, 1, 2, 0),
            (0, 2, 3, -4, -3, 2),
        ),
        kernel_63=(
            (1 / 2, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (1 / 6, -1 / 6, 1 / 6),
            (-16 / 15, 8 / 15, -4 / 15),
            (1 / 30, 1 / 15, 2 / 15),
            (0, 0, 1 / 2),
        ),
        output_46=(
            (1, 1, 1, 1, 1, 0),
            (0, 1, -1, -1 / 2, 2, 0),
            (0, 1, 1, 1 / 4, 4, 0),
            (0, 1, -1, -1 / 8, 8, 1),
        ),
        tiles_per_chunk=1024,
        min_tiles=512,
        min_channels=80,
    ),
}
# The output transform turns this frequency, of point 1, into ones everywhere: a bias added there is
# added to every output.
_CONSTANT_FREQUENCY = 7


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution of stride 1 and padding 1, by the faster way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        return convolve_3x3(x, self.weight, self.bias)


def convolve_3x3(
    x_NCHW: torch.Tensor, weight_OC33: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """Convolve with stride 1 and padding 1; by Winograd's way where that is faster.

    Returns:
        (N, O, H, W), bfloat16 under autocast.
    """
    dtype = tiled_dtype(x_NCHW, weight_OC33)
    if dtype is None:
        return F.conv2d(x_NCHW, weight_OC33, bias_O, padding=1)
    tiled = _TiledConvolution if dtype == torch.float32 else _TiledGradients
    output: torch.Tensor = tiled.apply(x_NCHW, weight_OC33, bias_O)
    return output


def is_plain_3x3(convolution: nn.Conv2d) -> bool:
    """Whether a layer is what `convolve_3x3` computes."""
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.padding == (1, 1)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def tiled_dtype(x_NCHW: torch.Tensor, weight_OC33: torch.Tensor) -> torch.dtype | None:
    """The type in which tiles compute, or their gradients; None where they would not be faster."""
    if (
        x_NCHW.device.type != "cpu"
        or weight_OC33.dtype != torch.float32
        or torch.onnx.is_in_onnx_export()
        or torch.compiler.is_compiling()
    ):
        return None
    dtype = x_NCHW.dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not torch.is_grad_enabled() or not (x_NCHW.requires_grad or weight_OC33.requires_grad):
            return None
    elif dtype != torch.float32:
        return None
    transforms = _TRANSFORMS.get(dtype)
    num_images, channels, height, width = x_NCHW.shape
    num_tiles = num_images * _num_tiles(height) * _num_tiles(width)
    if (
        transforms is None
        or num_tiles < transforms.min_tiles
        or min(channels, len(weight_OC33)) < transforms.min_channels
    ):
        return None
    return dtype


class _TiledConvolution(torch.autograd.Function):
    """Keeps input and weight only; the backward pass transforms them again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve_tiles(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _convolve_tiles(grad, weight.flip(2, 3).transpose(0, 1), None) if needs_x else None,
            _weight_gradient(x, grad) if needs_weight else None,
            grad.sum((0, 2, 3)).float() if needs_bias else None,
        )


class _TiledGradients(_TiledConvolution):
    """An ordinary convolution in bfloat16, of which only the gradients are computed by tiles."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        x = x.bfloat16()
        ctx.save_for_backward(x, weight)
        rounded = None if bias is None else bias.bfloat16()
        return F.conv2d(x, weight.bfloat16(), rounded, padding=1)


def _convolve_tiles(
    x_NCHW: torch.Tensor, weight_OC33: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    transforms = _TRANSFORMS[x_NCHW.dtype]
    num_images, channels, height, width = x_NCHW.shape
    outputs = len(weight_OC33)
    kernels_36CO = transforms.kernel(weight_OC33.permute(2, 3, 1, 0).reshape(9, -1))
    kernels_36CO = kernels_36CO.view(-1, channels, outputs).to(x_NCHW.dtype)
    columns = _num_tiles(width)
    result = torch.empty(
        (num_images, outputs, TILE * _num_tiles(height), TILE * columns),
        dtype=x_NCHW.dtype,
        memory_format=torch.channels_last,
    )
    result_NHWO = result.permute(0, 2, 3, 1)
    for image, rows, tiles_36 in _input_tiles(x_NCHW, transforms.tiles_per_chunk):
        inputs = transforms.input(tiles_36).view(36, -1, channels)
        products = torch.bmm(inputs, kernels_36CO)
        if bias_O is not None:
            products[_CONSTANT_FREQUENCY] += bias_O
        tiles = transforms.output(products.view(36, -1)).view(TILE, TILE, -1, columns, outputs)
        result_NHWO[image, TILE * rows.start : TILE * rows.stop].view(
            -1, TILE, columns, TILE, outputs
        ).copy_(tiles.permute(2, 0, 3, 1, 4))
    if result.shape[2:] == (height, width):
        return result  # not a view: the layer that follows may change it in place
    return result[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_gradient(x_NCHW: torch.Tensor, grad_NOHW: torch.Tensor) -> torch.Tensor:
    """(O, C, 3, 3), float32 whatever the maps are."""
    transforms = _TRANSFORMS[x_NCHW.dtype]
    channels, outputs = x_NCHW.shape[1], grad_NOHW.shape[1]
    height, width = grad_NOHW.shape[2:]
    columns = _num_tiles(width)
    grad_NHWO = F.pad(
        grad_NOHW.permute(0, 2, 3, 1),
        (0, 0, 0, TILE * columns - width, 0, TILE * _num_tiles(height) - height),
    )
    kernels_36CO = torch.zeros(36, channels, outputs)
    for image, rows, tiles_36 in _input_tiles(x_NCHW, transforms.tiles_per_chunk):
        inputs = transforms.input(tiles_36).view(36, -1, channels)
        grads_16 = (
            grad_NHWO[image, TILE * rows.start : TILE * rows.stop]
            .view(-1, TILE, columns, TILE, outputs)
            .permute(1, 3, 0, 2, 4)
            .reshape(TILE * TILE, -1)
        )
        grads = transforms.output_adjoint(grads_16).view(36, -1, outputs)
        if x_NCHW.dtype == torch.float32:
            kernels_36CO.baddbmm_(inputs.transpose(1, 2), grads)
        else:
            kernels_36CO += torch.bmm(inputs.transpose(1, 2), grads)
    weight_9CO = transforms.kernel_adjoint(kernels_36CO.view(36, -1))
    return weight_9CO.view(3, 3, channels, outputs).permute(3, 2, 0, 1)


def _input_tiles(
    x_NCHW: torch.Tensor, tiles_per_chunk: int
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield (image, rows of tiles, their overlapping 6×6 windows as (36, T · C))."""
    num_images, channels, height, width = x_NCHW.shape
    rows, columns = _num_tiles(height), _num_tiles(width)
    padded_NHWC = F.pad(
        x_NCHW.permute(0, 2, 3, 1),
        (0, 0, 1, TILE * columns + 1 - width, 1, TILE * rows + 1 - height),
    )
    step = max(tiles_per_chunk // columns, 1)
    row_stride, column_stride = padded_NHWC.stride()[1:3]
    for image in range(num_images):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            windows = padded_NHWC[image, TILE * start :].as_strided(
                (_WINDOW, _WINDOW, stop - start, columns, channels),
                (row_stride, column_stride, TILE * row_stride, TILE * column_stride, 1),
            )
            yield image, slice(start, stop), windows.reshape(_WINDOW * _WINDOW, -1)


def _num_tiles(size: int) -> int:
    return -(-size // TILE)
