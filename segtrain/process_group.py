"""What makes several processes equal one process with the joint batch."""

from __future__ import annotations

from collections.abc import Sequence

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
    average_over_processes(
        [
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
    )


def average_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their mean over all processes, in one exchange in float32.

    Args:
        tensors: floating point, of the same shapes in every process.
    """
    if not (tensors and distributed.is_available() and distributed.is_initialized()):
        return
    num_processes = distributed.get_world_size()
    if num_processes == 1:
        return
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= num_processes
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
