"""Tiled convolutions equal ordinary ones, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segtrain.cpu_kernels.winograd import convolve_3x3, convolve_levels_3x3, tiled_dtype

# Whole tiles, and a last row and column of tiles that reach outside the map.
SIZES = [(32, 64), (45, 47)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_equal_those_of_float64(size: tuple[int, int], has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 96, *size, generator=generator).requires_grad_()
    weight = (torch.randn(80, 96, 3, 3, generator=generator) / 30).requires_grad_()
    bias = torch.randn(80, generator=generator).requires_grad_() if has_bias else None
    assert tiled_dtype([x], weight) == torch.float32
    upstream = torch.randn(2, 80, *size, generator=generator)

    # In place, as the layers of the network do it.
    F.relu_(convolve_3x3(x, weight, bias)).backward(upstream)

    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = F.conv2d(wide[0], wide[1], wide[2] if has_bias else None, padding=1)
    actual = convolve_3x3(x, weight, bias)
    # Where both sides agree on the sign, so that a rounding at 0 does not decide the gradient.
    assert ((actual > 0) == (expected > 0)).float().mean() > 0.9999
    expected.backward(upstream.double() * (actual > 0))
    assert relative_error(actual, expected) < 1e-4
    for leaf, own in zip(leaves, wide, strict=True):
        assert leaf.grad is not None
        assert own.grad is not None
        assert relative_error(leaf.grad, own.grad) < 1e-4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_levels_of_a_pyramid_equal_one_convolution_each(precision: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(96, 100), (48, 50), (25, 26), (5, 7)]  # the last is too small for tiles
    weight = (torch.randn(80, 96, 3, 3, generator=generator) / 30).requires_grad_()
    bias = torch.randn(80, generator=generator).requires_grad_()
    levels = [torch.randn(2, 96, *s, generator=generator).requires_grad_() for s in sizes]
    used = (0, 2, 3)  # a loss need not read every level
    outputs, gradients = [], []
    for convolve in (
        lambda: convolve_levels_3x3(levels, weight, bias),
        lambda: [F.conv2d(level, weight, bias, padding=1) for level in levels],
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            outputs.append(convolve())
        loss = sum(outputs[-1][index].float().square().sum() for index in used)
        gradients.append(torch.autograd.grad(loss, [weight, bias, *levels], materialize_grads=True))
    tolerance = 1e-5 if precision == "float32" else 0.03
    for actual, expected in zip(outputs[0], outputs[1], strict=True):
        assert (actual - expected).norm() < tolerance * expected.norm()
    for actual, expected in zip(gradients[0], gradients[1], strict=True):
        assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("size", [(64, 96), (61, 95)])
def test_autocast_convolves_as_usual_and_rounds_gradients_little(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 96, *size, generator=generator).requires_grad_()
    weight = (torch.randn(80, 96, 3, 3, generator=generator) / 30).requires_grad_()
    bias = torch.randn(80, generator=generator).requires_grad_()
    upstream = torch.randn(2, 80, *size, generator=generator).bfloat16()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiled_dtype([x], weight) == torch.bfloat16
        output = convolve_3x3(x, weight, bias)
        usual = F.conv2d(x, weight, bias, padding=1)
    output.backward(upstream)

    assert output.dtype == torch.bfloat16
    assert torch.equal(output, usual)
    wide = [leaf.detach().double().requires_grad_() for leaf in (x.bfloat16(), weight, bias)]
    F.conv2d(wide[0], wide[1], wide[2], padding=1).backward(upstream.double())
    for leaf, own in zip((x, weight, bias), wide, strict=True):
        assert leaf.grad is not None
        assert own.grad is not None
        assert leaf.grad.dtype == torch.float32
        rounding = leaf.grad.double() - own.grad
        assert rounding.norm() < (0.005 if leaf is bias else 0.025) * own.grad.norm()
        # It is noise: transforms that were rounded themselves would bend all gradients one way.
        assert abs(float((rounding * own.grad).sum())) < 1e-3 * float(own.grad.square().sum())


def test_small_maps_half_precision_and_inference_in_autocast_take_the_ordinary_way() -> None:
    weight = torch.zeros(96, 96, 3, 3, requires_grad=True)
    large = torch.zeros(1, 96, 96, 96)
    assert tiled_dtype([large], weight) == torch.float32
    assert tiled_dtype([torch.zeros(1, 96, 16, 16)], weight) is None
    assert tiled_dtype([large.bfloat16()], weight.bfloat16()) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiled_dtype([large], weight) == torch.bfloat16
        assert tiled_dtype([large], weight.detach()) is None
        with torch.no_grad():
            assert tiled_dtype([large], weight) is None
            assert convolve_3x3(large, weight).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.float16):
        assert tiled_dtype([large], weight) is None


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (actual.double() - expected).detach()
    return float(difference.abs().max() / expected.detach().std())
