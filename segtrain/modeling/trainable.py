"""What the trainer asks of a model, whatever it is made of."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from segtrain.losses.supervision import Distillation, Supervision


class TrainableModel(Protocol):
    """A module whose call gives a dict of weighted losses in training, detections otherwise.

    Attributes:
        needs_depth: whether training reads `inverse_depth_255`.
        supervision: says whether annotated masks are read.
        distillation: makes the teacher that calls in training are then given; None without.
    """

    supervision: Supervision
    distillation: Distillation | None

    @property
    def needs_depth(self) -> bool:
        """Whether training reads `inverse_depth_255`."""

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses, or detections."""

    def set_iteration(self, iteration: int) -> None:
        """Told before each step, 0-based."""

    def pop_metrics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last step besides its losses."""
