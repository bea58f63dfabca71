"""What makes several processes equal one process with the joint batch."""

from __future__ import annotations

import torch
from torch import distributed, nn


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


def average_batch_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their batch norms' running statistics.

    Without it each process's teacher would follow its own, and a resumed run the first one's.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    num_processes = distributed.get_world_size()
    if num_processes == 1:
        return
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    distributed.all_reduce(flat)
    flat /= num_processes
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
