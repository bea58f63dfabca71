"""A step whose loss or gradient is not finite stops every process, before a weight changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

import torch
from detectron2.utils import comm

from segtrain.errors import NonFiniteLossError


def require_finite_losses(
    total: torch.Tensor, losses: Mapping[str, torch.Tensor], iteration: int, images: list[str]
) -> None:
    """Stop all processes if the sum of one's losses is not finite.

    Args:
        total: sum of the losses.
        losses: by name.
        iteration: for the message.
        images: of this process's step.

    Raises:
        NonFiniteLossError: in every process.
    """
    is_finite = torch.isfinite(total.detach()).float()
    if comm.get_world_size() > 1:
        # All processes stop together; one that raised alone would leave the others waiting.
        torch.distributed.all_reduce(is_finite, op=torch.distributed.ReduceOp.MIN)
    if float(is_finite) == 1.0:
        return
    values = {name: float(value.detach()) for name, value in losses.items()}
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if not bad and not math.isfinite(float(total.detach())):
        bad = [f"total_loss = {float(total.detach())}"]
    raise_non_finite(bad, iteration, images)


def raise_non_finite(bad: list[str], iteration: int, images: list[str]) -> NoReturn:
    """Stop every process with one message: each has only seen its own terms and images."""
    found = [(bad, images)] if comm.get_world_size() == 1 else comm.all_gather((bad, images))
    terms = dict.fromkeys(term for terms, _ in found for term in terms)
    guilty = [image for terms, own in found if terms for image in own]
    raise NonFiniteLossError(
        f"iteration {iteration}: {', '.join(terms)}; images: {', '.join(guilty)}. The "
        "weights are those before this step. Lower optimizer.learning_rate, set "
        "optimizer.gradient_clip_norm, or look at these images"
    )
