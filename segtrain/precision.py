"""In which precision to compute what."""

from __future__ import annotations

import torch


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
