"""What a report shows of one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """One trained model in a report.

    Attributes:
        name: row title.
        folder: run folder; `metrics.jsonl` in it gives the curves.
        experiment: for the panels.
        weights: checkpoint, for the panels.
        metrics: COCO metrics in per cent.
    """

    name: str
    folder: Path
    experiment: Experiment
    weights: Path | None
    metrics: Mapping[str, Any]
