"""The precision in which losses are computed."""

from __future__ import annotations

import torch


def widen(values: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; float64 stays, so that gradients can be checked numerically."""
    return values if values.dtype == torch.float64 else values.float()
