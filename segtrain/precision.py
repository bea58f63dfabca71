"""On what, and in which precision, to compute."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from segtrain.run.devices import no_cuda_device

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as this process's device.

    Raises:
        TrainingConfigError: `cuda` without a GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise no_cuda_device()
    return torch.device("cuda", torch.cuda.current_device())


def autocast_to(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Forward passes run in `fp32`, `bf16` or `fp16` inside this context."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_HALF[precision])


def widen(values: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; float64 stays, so that gradients can be checked numerically."""
    return values if values.dtype == torch.float64 else values.float()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it is a CPU with instructions for bfloat16; others emulate it, many times slower."""
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.6 cannot tell
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
