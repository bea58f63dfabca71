"""From the recorded runs to a table: mean and spread over seeds, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mask_lab.experiment import BASELINES
from benchmarks.mask_lab.supervision import ROWS
from depthcache.storage.durable_files import read_json_lines

COLUMNS = ("all", "textured", "camouflaged", "easy", "small", "large")
CONTROL = "control"
_ORDER = [*BASELINES, *ROWS]


def read_results(file: Path, split: str) -> list[dict[str, Any]]:
    """Runs of a split; a last line that a killed run left unfinished is skipped."""
    return [run for run in read_json_lines(file) if run["split"] == split]


def draw_table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per supervision, in the order of `ROWS`.

    The last column is the difference to the control with the same seed: its mean, and each seed's.
    """
    by_row: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run["iou"]
    lines = [
        "| supervision | seeds | " + " | ".join(COLUMNS) + " | all, minus control |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, seeds in sorted(by_row.items(), key=lambda item: _ORDER.index(item[0])):
        cells = [
            _mean_and_spread([iou.get(column) for iou in seeds.values()]) for column in COLUMNS
        ]
        num_seeds = "–" if name in BASELINES else len(seeds)
        lines.append(
            f"| {_title(name)} | {num_seeds} | {' | '.join(cells)} | {_paired(by_row, name)} |"
        )
    return "\n".join(lines)


def _title(row: str) -> str:
    return ROWS[row].title if row in ROWS else row.replace("_", " ")


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}".replace("0.", ".")


def _paired(by_row: dict[str, dict[int, dict[str, float]]], name: str) -> str:
    control = by_row.get(CONTROL, {})
    paired = sorted(by_row[name].keys() & control.keys())
    if name == CONTROL or name in BASELINES or not paired:
        return ""
    differences = [by_row[name][seed]["all"] - control[seed]["all"] for seed in paired]
    each = ", ".join(f"{value:+.3f}" for value in differences)
    return f"**{np.mean(differences):+.3f}** ({each})".replace("0.", ".").replace("-", "−")
