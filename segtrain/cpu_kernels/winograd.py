"""3×3 convolutions with a quarter of the multiplications, for CPUs.

Winograd's F(4×4, 3×3): overlapping 6×6 tiles of the input and the kernels are transformed, 36
matrix products replace the convolution, and 4×4 tiles of the output are transformed back. Source:
Lavin and Gray, arXiv 1509.09308. In float32 rounding grows from 1e-6 to 3e-6 of the output's
deviation. In bfloat16 it would grow from 0.17 % to 2 %, so there only gradients go this way, which
carry more rounding from elsewhere (docs/notes/training-speed.md). cuDNN does the same on GPUs,
where this file therefore leaves the work to it.

Shape legend: N images, C input and O output channels, H×W cells, T tiles, 36 = 6·6 frequencies.
Maps are in channels-last memory, so that every copy and product runs along channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """The transforms of one type of maps, and what is worth them (docs/notes/training-speed.md).

    Args:
        dtype: of the maps.
        input_66: of 6×6 tiles of the input.
        kernel_63: of 3×3 kernels, in float32: weights are transformed before they are rounded.
        output_46: back to 4×4 tiles of the output.
        tiles_per_chunk: so that the buffers of a chunk stay in the processor's cache.
        min_tiles: of the largest of the maps; below these the transforms cost more than the
            products save.
        min_further_tiles: of a map that shares the transforms of the kernels with a larger one.
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
        min_further_tiles: int,
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
        self.min_further_tiles = min_further_tiles
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
        tiles_per_chunk=512,
        min_tiles=100,
        min_further_tiles=50,
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
        min_further_tiles=256,
        min_channels=80,
    ),
}
# The output transform turns this frequency, of point 1, into ones everywhere: a bias added there is
# added to every output.
_CONSTANT_FREQUENCY = 7


def runs_on_cpu_kernels(x: torch.Tensor) -> bool:
    """Whether a layer may take this project's own way on CPUs: not on a GPU, in an export or graph.

    An ONNX file or a compiled graph is to hold torch's ordinary operators.
    """
    return (
        x.device.type == "cpu"
        and not torch.onnx.is_in_onnx_export()
        and not torch.compiler.is_compiling()
    )


def convolve_3x3(
    x_NCHW: torch.Tensor, weight_OC33: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """Convolve with stride 1 and padding 1; by Winograd's way where that is faster.

    Returns:
        (N, O, H, W), bfloat16 under autocast.
    """
    return convolve_levels_3x3([x_NCHW], weight_OC33, bias_O)[0]


def convolve_levels_3x3(
    levels: Sequence[torch.Tensor], weight_OC33: torch.Tensor, bias_O: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Convolve the levels of a pyramid with the same kernels, which are transformed once.

    Returns:
        (N, O, H, W) of each level (N, C, H, W), bfloat16 under autocast.
    """
    dtype = tiled_dtype(levels, weight_OC33)
    chosen = [] if dtype is None else _worthwhile(levels, _TRANSFORMS[dtype])
    outputs = {}
    if chosen:
        tiled = _TiledConvolution if dtype == torch.float32 else _TiledGradients
        results = tiled.apply(weight_OC33, bias_O, *(levels[index] for index in chosen))
        outputs = dict(zip(chosen, results, strict=True))
    return [
        outputs[index] if index in outputs else F.conv2d(x, weight_OC33, bias_O, padding=1)
        for index, x in enumerate(levels)
    ]


def is_plain_3x3(convolution: nn.Conv2d) -> bool:
    """Whether a layer is what `convolve_3x3` computes."""
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.padding == (1, 1)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def tiled_dtype(levels: Sequence[torch.Tensor], weight_OC33: torch.Tensor) -> torch.dtype | None:
    """The type in which tiles compute, or their gradients; None where they would not be faster."""
    if weight_OC33.dtype != torch.float32 or not runs_on_cpu_kernels(levels[0]):
        return None
    dtype = levels[0].dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not torch.is_grad_enabled() or not (
            weight_OC33.requires_grad or any(x.requires_grad for x in levels)
        ):
            return None
    elif dtype != torch.float32:
        return None
    transforms = _TRANSFORMS.get(dtype)
    if (
        transforms is None
        or min(weight_OC33.shape[:2]) < transforms.min_channels
        or max(map(_count_tiles, levels)) < transforms.min_tiles
    ):
        return None
    return dtype


def _worthwhile(levels: Sequence[torch.Tensor], transforms: _Transforms) -> list[int]:
    return [i for i, x in enumerate(levels) if _count_tiles(x) >= transforms.min_further_tiles]


class _TiledConvolution(torch.autograd.Function):
    """Keeps input and weight only; the backward pass transforms them again."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, *levels: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *levels)
        return tuple(_convolve_tiles(levels, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        weight, *levels = ctx.saved_tensors
        needs_weight, needs_bias, *needs_levels = ctx.needs_input_grad
        # Losses that read a few places only leave some levels without a gradient.
        known = {index: grad for index, grad in enumerate(grads) if grad is not None}
        if not known:
            return (None,) * len(ctx.needs_input_grad)
        wanted = [index for index in known if needs_levels[index]]
        turned = weight.flip(2, 3).transpose(0, 1)
        grad_levels = dict(
            zip(
                wanted,
                _convolve_tiles([known[index] for index in wanted], turned, None),
                strict=True,
            )
        )
        return (
            _weight_gradient([(levels[i], grad) for i, grad in known.items()], weight)
            if needs_weight
            else None,
            torch.stack([grad.sum((0, 2, 3)).float() for grad in known.values()]).sum(0)
            if needs_bias
            else None,
            *(grad_levels.get(index) for index in range(len(levels))),
        )


class _TiledGradients(_TiledConvolution):
    """Ordinary convolutions in bfloat16, of which only the gradients are computed by tiles."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, *levels: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        levels = tuple(x.bfloat16() for x in levels)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *levels)
        rounded, rounded_bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
        return tuple(F.conv2d(x, rounded, rounded_bias, padding=1) for x in levels)


def _convolve_tiles(
    levels: Sequence[torch.Tensor], weight_OC33: torch.Tensor, bias_O: torch.Tensor | None
) -> list[torch.Tensor]:
    if not levels:
        return []
    dtype = levels[0].dtype
    transforms = _TRANSFORMS[dtype]
    outputs, channels = weight_OC33.shape[:2]
    kernels_36CO = transforms.kernel(weight_OC33.permute(2, 3, 1, 0).reshape(9, -1))
    kernels_36CO = kernels_36CO.view(-1, channels, outputs).to(dtype)
    results = []
    for x_NCHW in levels:
        num_images, _, height, width = x_NCHW.shape
        columns = _num_tiles(width)
        result = torch.empty(
            (num_images, outputs, TILE * _num_tiles(height), TILE * columns),
            dtype=dtype,
            memory_format=torch.channels_last,
        )
        result_NHWO = result.permute(0, 2, 3, 1)
        for images, rows in _chunks(x_NCHW, transforms.tiles_per_chunk):
            tiles_36 = _input_tiles(x_NCHW, images, rows)
            inputs = transforms.input(tiles_36).view(36, -1, channels)
            products = torch.bmm(inputs, kernels_36CO)
            if bias_O is not None:
                products[_CONSTANT_FREQUENCY] += bias_O
            tiles = transforms.output(products.view(36, -1))
            tiles = tiles.view(TILE, TILE, images.stop - images.start, -1, columns, outputs)
            chunk = result_NHWO[images, TILE * rows.start : TILE * rows.stop]
            chunk.view(len(chunk), -1, TILE, columns, TILE, outputs).copy_(
                tiles.permute(2, 3, 0, 4, 1, 5)
            )
        if result.shape[2:] != (height, width):
            # Not a view: the layer that follows may change it in place.
            result = result[:, :, :height, :width].clone(memory_format=torch.channels_last)
        results.append(result)
    return results


def _weight_gradient(
    levels: Sequence[tuple[torch.Tensor, torch.Tensor]], weight_OC33: torch.Tensor
) -> torch.Tensor:
    """(O, C, 3, 3) from inputs and gradients; float32 whatever the maps are."""
    outputs, channels = weight_OC33.shape[:2]
    kernels_36CO = torch.zeros(36, channels, outputs)
    transforms = _TRANSFORMS[levels[0][0].dtype]
    for x_NCHW, grad_NOHW in levels:
        height, width = grad_NOHW.shape[2:]
        columns = _num_tiles(width)
        grad_NHWO = grad_NOHW.permute(0, 2, 3, 1)
        for images, rows in _chunks(x_NCHW, transforms.tiles_per_chunk):
            inputs = transforms.input(_input_tiles(x_NCHW, images, rows)).view(36, -1, channels)
            chunk = F.pad(
                grad_NHWO[images, TILE * rows.start : TILE * rows.stop],
                (0, 0, 0, TILE * columns - width, 0, max(TILE * rows.stop - height, 0)),
            )
            grads_16 = (
                chunk.view(len(chunk), -1, TILE, columns, TILE, outputs)
                .permute(2, 4, 0, 1, 3, 5)
                .reshape(TILE * TILE, -1)
            )
            grads = transforms.output_adjoint(grads_16).view(36, -1, outputs)
            if x_NCHW.dtype == torch.float32:
                kernels_36CO.baddbmm_(inputs.transpose(1, 2), grads)
            else:
                kernels_36CO += torch.bmm(inputs.transpose(1, 2), grads)
    weight_9CO = transforms.kernel_adjoint(kernels_36CO.view(36, -1))
    return weight_9CO.view(3, 3, channels, outputs).permute(3, 2, 0, 1)


def _chunks(x_NCHW: torch.Tensor, tiles_per_chunk: int) -> Iterator[tuple[slice, slice]]:
    """Yield (images, rows of tiles): several images where they are small, else parts of one."""
    num_images, _, height, width = x_NCHW.shape
    rows, columns = _num_tiles(height), _num_tiles(width)
    images_per_chunk = max(tiles_per_chunk // (rows * columns), 1)
    rows_per_chunk = max(tiles_per_chunk // columns, 1)
    for image in range(0, num_images, images_per_chunk):
        images = slice(image, min(image + images_per_chunk, num_images))
        for row in range(0, rows, rows_per_chunk):
            yield images, slice(row, min(row + rows_per_chunk, rows))


def _input_tiles(x_NCHW: torch.Tensor, images: slice, rows: slice) -> torch.Tensor:
    """Overlapping 6×6 windows of a chunk, zero outside the map, as (36, T · C)."""
    channels, height, width = x_NCHW.shape[1:]
    columns = _num_tiles(width)
    top, bottom = TILE * rows.start - 1, TILE * rows.stop + 1
    padded_NHWC = F.pad(
        x_NCHW.permute(0, 2, 3, 1)[images, max(top, 0) : bottom],
        (0, 0, 1, TILE * columns + 1 - width, max(-top, 0), max(bottom - height, 0)),
    )
    image_stride, row_stride, column_stride, _ = padded_NHWC.stride()
    windows = padded_NHWC.as_strided(
        (_WINDOW, _WINDOW, len(padded_NHWC), rows.stop - rows.start, columns, channels),
        (row_stride, column_stride, image_stride, TILE * row_stride, TILE * column_stride, 1),
    )
    return windows.reshape(_WINDOW * _WINDOW, -1)


def _count_tiles(x_NCHW: torch.Tensor) -> int:
    num_images, _, height, width = x_NCHW.shape
    return num_images * _num_tiles(height) * _num_tiles(width)


def _num_tiles(size: int) -> int:
    return -(-size // TILE)
