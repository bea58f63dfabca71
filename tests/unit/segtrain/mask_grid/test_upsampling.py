"""Up-sampling by the formula, and its gradient, which is written by hand."""

from __future__ import annotations

import pytest
import torch

from segtrain.mask_grid.upsampling import aligned_bilinear


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(5, 7), (1, 3), (1, 1)])
def test_values_and_gradients_are_those_of_the_formula(factor: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64).requires_grad_()
    rows, columns = (sampling_matrix(cells, factor) for cells in size)
    upstream = torch.randn(3, 2, len(rows), len(columns), generator=generator, dtype=torch.float64)

    fine = aligned_bilinear(maps, factor)
    fine.backward(upstream)

    torch.testing.assert_close(fine, rows @ maps @ columns.T, rtol=0, atol=1e-6)
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, rows.T @ upstream @ columns, rtol=0, atol=1e-12)
    torch.testing.assert_close(aligned_bilinear(maps.detach(), factor), fine, rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_gradients_are_summed_in_float32(
    memory_format: torch.memory_format,
) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 16, 6, 5, generator=generator).bfloat16().requires_grad_()
    upstream = torch.randn(2, 16, 24, 20, generator=generator).bfloat16()
    aligned_bilinear(maps.to(memory_format=memory_format), 4).backward(
        upstream.to(memory_format=memory_format)
    )
    rows, columns = sampling_matrix(6, 4), sampling_matrix(5, 4)
    expected = (rows.T @ upstream.double() @ columns).bfloat16()
    assert maps.grad is not None
    assert maps.grad.dtype == torch.bfloat16
    torch.testing.assert_close(maps.grad, expected, rtol=2**-7, atol=1e-6)


def sampling_matrix(cells: int, factor: int) -> torch.Tensor:
    """Row y samples at max(y − factor // 2, 0) / factor, between the two cells beside it."""
    matrix = torch.zeros(factor * cells, cells, dtype=torch.float64)
    for y in range(factor * cells):
        below, rest = divmod(max(y - factor // 2, 0), factor)
        matrix[y, below] += 1 - rest / factor
        matrix[y, min(below + 1, cells - 1)] += rest / factor
    return matrix
