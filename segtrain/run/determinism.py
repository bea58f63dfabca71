"""The same sums in the same order: what makes two runs from one seed end with the same bits.

A gather's gradient adds several values into one place, and with several threads torch adds them in
the order in which the threads arrive. Its deterministic algorithms fix that order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

# cuBLAS reads it when it is first used; without it matrix products may differ between runs.
_CUBLAS_SETTING = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# A module whose one attribute torch's type stubs leave out.
_TORCH_DETERMINISTIC: Any = torch.utils.deterministic


@contextlib.contextmanager
def deterministic_algorithms(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Let torch compute in an order that does not depend on its threads.

    Args:
        device: on a GPU, an operation that has no deterministic form warns and runs; on the CPU
            there is none.
        enabled: False leaves torch as it is.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _TORCH_DETERMINISTIC.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.deterministic
    if device.type == "cuda":
        os.environ.setdefault(*_CUBLAS_SETTING)
        torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # Nothing here reads memory that it has not written, so filling it first only costs time.
    _TORCH_DETERMINISTIC.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        _TORCH_DETERMINISTIC.fill_uninitialized_memory = filled
        torch.backends.cudnn.deterministic = cudnn
