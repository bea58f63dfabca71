"""From the recorded runs to a table: mean and spread over seeds, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.method_table.rows import ROWS
from depthcache.storage.durable_files import read_json_lines

_OTHERS = {
    "start": "what every row starts from",
    "labels-with-depth": "the labeller itself, which reads sensed depth",
    "labels": "the labeller itself, pictures only",
    "cut-by-depth": "GrabCut on sensed depth from the filled box",
    "labels-salient": "the labeller itself, pictures only, salient objects beside the boxes",
}
_COLUMNS = {
    "IoU given the box": ("iou", "all"),
    "textured": ("iou", "textured"),
    "camouflaged": ("iou", "camouflaged"),
    "easy": ("iou", "easy"),
    "mask AP": ("mask", "AP"),
    "box AP": ("box", "AP"),
}
_PAIRED = ("boxinst", "control")
Run = Mapping[str, Any]


def read_results(file: Path, split: str) -> list[dict[str, Any]]:
    """Finished runs of a split; a last line that a killed run left unfinished is skipped."""
    return [run for run in read_json_lines(file) if run["split"] == split and "error" not in run]


def draw_table(runs: Sequence[Run]) -> str:
    """Markdown: a row per method, in the order of `ROWS`; then the start and the labeller.

    The last columns are differences to BoxInst and to the control with the same seed.
    """
    by_row: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run
    heads = ["", "seeds", *_COLUMNS, "s/step", "MiB"]
    heads += [f"{what} − {ROWS[name].title.split(':')[0]}" for what in ("IoU", "mask AP")
              for name in _PAIRED]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    titles = {name: row.title for name, row in ROWS.items()} | _OTHERS
    for name in (name for name in titles if name in by_row):
        own = by_row[name]
        cells = [titles[name], str(len(own))]
        cells += [_mean_and_spread(_values(own, *place)) for place in _COLUMNS.values()]
        cells += [
            _format(np.median(list(_values(own, what).values())), digits)
            if _values(own, what)
            else ""
            for what, digits in (("seconds_per_step", 2), ("peak_mib", 0))
        ]
        for place in (("iou", "all"), ("mask", "AP")):
            cells += [
                "" if name == other else _paired(_values(own, *place), by_row.get(other, {}), place)
                for other in _PAIRED
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(runs: Mapping[int, Run], *place: str) -> dict[int, float]:
    """A number of each run that has it, by seed."""
    found: dict[int, float] = {}
    for seed, run in runs.items():
        value: Any = run
        for key in place:
            value = (value or {}).get(key)
        if value is not None:
            found[seed] = float(value)
    return found


def _mean_and_spread(values: Mapping[int, float]) -> str:
    known = list(values.values())
    if not known:
        return ""
    digits = 1 if max(known) > 1 else 3
    spread = f" ± {_format(np.std(known, ddof=1), digits)}" if len(known) > 1 else ""
    return _format(np.mean(known), digits) + spread


def _paired(own: Mapping[int, float], others: Mapping[int, Run], place: tuple[str, str]) -> str:
    theirs = _values(others, *place)
    differences = [own[seed] - theirs[seed] for seed in sorted(own.keys() & theirs.keys())]
    if not differences:
        return ""
    digits = 1 if place[0] == "mask" else 3
    each = ", ".join(_format(value, digits, "+") for value in differences)
    return f"**{_format(np.mean(differences), digits, '+')}** ({each})"


def _format(value: float | np.floating[Any], digits: int, sign: str = "") -> str:
    text = f"{value:{sign}.{digits}f}".replace("-", "−")
    return text.replace("0.", ".", 1) if digits == 3 else text
