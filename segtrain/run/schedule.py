"""Learning rate and phases of a run, as fractions of its length.

Every point in time of the paper's 90,000-iteration schedule is kept as a share of the run, so a run
of 50 iterations passes through the same phases as one of 270,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from segtrain.errors import TrainingConfigError


@dataclass(kw_only=True)
class ScheduleSettings:
    """Learning-rate schedule: linear warm-up, then steps.

    Attributes:
        warmup: share of the run that the linear warm-up takes, 0..1.
        warmup_iterations_max: the warm-up is never longer than this many iterations.
        warmup_factor: first learning rate as a share of the full one.
        drops: shares of the run at which the learning rate drops, ascending.
        drop_factor: the learning rate is multiplied by this at each drop.
    """

    warmup: float = 1 / 90
    warmup_iterations_max: int = 1000
    warmup_factor: float = 0.001
    drops: list[float] = field(default_factory=lambda: [60 / 90, 80 / 90])
    drop_factor: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges and the order."""
        if not 0 <= self.warmup <= 1:
            raise TrainingConfigError(
                f"schedule.warmup={self.warmup} is a share of the run, 0..1, not iterations"
            )
        if list(self.drops) != sorted(self.drops) or any(not 0 < d <= 1 for d in self.drops):
            raise TrainingConfigError(
                f"schedule.drops={list(self.drops)} are ascending shares of the run in (0, 1], "
                "not iterations"
            )


def learning_rate_factor(iteration: int, max_iter: int, settings: ScheduleSettings) -> float:
    """Learning rate of an iteration as a share of the full one.

    Args:
        iteration: 0 … max_iter − 1.
        max_iter: length of the run.
        settings: the schedule.
    """
    num_drops = sum(iteration >= fraction_of(drop, max_iter) for drop in settings.drops)
    factor = float(settings.drop_factor**num_drops)
    num_warmup = min(fraction_of(settings.warmup, max_iter), settings.warmup_iterations_max)
    if iteration < num_warmup:
        share = iteration / num_warmup
        factor *= settings.warmup_factor * (1 - share) + share
    return factor


def fraction_of(fraction: float, total: int, most: int | None = None) -> int:
    """A share of the run as an iteration, rounded to the nearest; also `${fraction_of:0.5,80}`.

    Args:
        fraction: share of the run.
        total: its iterations.
        most: the result is never larger; as for the share, a config writes it as text.
    """
    share = math.floor(float(fraction) * int(total) + 0.5)
    return share if most is None else min(share, int(most))


OmegaConf.register_new_resolver("fraction_of", fraction_of, replace=True)
