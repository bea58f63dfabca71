"""Sums of several threads come out the same every time."""

from __future__ import annotations

import pytest
import torch

from segtrain.run.determinism import deterministic_algorithms

CPU = torch.device("cpu")


def _gathered_gradients(num_repeats: int) -> set[bytes]:
    """Gradients of a gather that takes each value many times, as controllers at close points do."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 3, (200_000,), generator=generator)
    weights = torch.randn(200_000, generator=generator)
    seen = set()
    for _ in range(num_repeats):
        values = torch.zeros(3, requires_grad=True)
        (values[index] * weights).sum().backward()
        assert values.grad is not None
        seen.add(values.grad.numpy().tobytes())
    return seen


@pytest.mark.usefixtures("two_threads")
def test_gradient_of_a_gather_has_one_value_on_two_threads() -> None:
    # Without it they differ, here within a few repeats.
    with deterministic_algorithms(CPU, enabled=True):
        assert len(_gathered_gradients(30)) == 1


def test_settings_of_the_process_come_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(CPU, enabled=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_algorithms(CPU, enabled=False):
        assert not torch.are_deterministic_algorithms_enabled()
