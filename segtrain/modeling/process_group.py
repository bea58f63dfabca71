"""Loss normalisers that make several processes equal one process with the joint batch."""

from __future__ import annotations

import torch
from torch import distributed


def joint_normaliser(count: torch.Tensor, minimum: float = 1.0) -> torch.Tensor:
    """Denominator of a loss so that averaging gradients over processes gives the joint mean.

    DDP divides the sum of gradients by the number of processes W, therefore every process divides
    its sum by max(Σ counts, minimum) / W.

    Args:
        count: scalar, this process's count.
        minimum: the least value of the joint count.
    """
    total = count.detach().to(torch.float32).clone()
    if not (distributed.is_available() and distributed.is_initialized()):
        return total.clamp(min=minimum)
    distributed.all_reduce(total)
    return total.clamp(min=minimum) / distributed.get_world_size()
