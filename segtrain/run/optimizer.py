"""The optimizer, its parameter groups, and the learning rate that fits the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segtrain.errors import TrainingConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

# As Swin trains (arXiv 2103.14030): they are offsets of logits, not factors.
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")


@dataclass(kw_only=True)
class OptimizerSettings:
    """What updates the weights.

    Attributes:
        kind: `sgd` or `adamw`.
        learning_rate: for `reference_batch_size` images a step; scaled linearly to the real batch.
        reference_batch_size: the batch that `learning_rate` was chosen for.
        momentum: of SGD.
        weight_decay: of convolution and linear weights; Swin's tables of positions have none.
        weight_decay_norm: of normalisation weights and of all biases of AdamW.
        gradient_clip_norm: largest norm of the whole gradient; 0 means no clipping.
    """

    kind: str = "sgd"
    learning_rate: float = 0.01
    reference_batch_size: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_norm: float = 0.0
    gradient_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.kind not in ("sgd", "adamw"):
            raise TrainingConfigError(f"optimizer.kind={self.kind!r} is not sgd or adamw")
        if self.learning_rate <= 0 or self.reference_batch_size < 1:
            raise TrainingConfigError(
                f"optimizer.learning_rate={self.learning_rate} and "
                f"optimizer.reference_batch_size={self.reference_batch_size} must be positive"
            )


def scale_learning_rate(settings: OptimizerSettings, batch_size: int) -> float:
    """Full learning rate of a run: linear in the images per step.

    Source: the linear scaling rule of arXiv 1706.02677.
    """
    return settings.learning_rate * batch_size / settings.reference_batch_size


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """Make the optimizer over the trainable parameters.

    Args:
        model: its parameters without gradient are left out.
        settings: kind and decay.
        learning_rate: the full learning rate.

    Raises:
        TrainingConfigError: nothing is trainable.
    """
    import torch  # here, as the settings above are read before it is known that anything trains
    from torch import nn

    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        is_norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            without_decay = (
                is_norm or name in _POSITION_TABLES or (settings.kind == "adamw" and name == "bias")
            )
            (undecayed if without_decay else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": undecayed, "weight_decay": settings.weight_decay_norm},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingConfigError("the model has no trainable parameter")
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
