"""Loss curves: read from a run's log, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from segtrain.run.metrics_log import read_metrics

NUM_SERIES_COLOURS = 6
_MAX_CURVE_POINTS = 400


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Losses over iterations from `metrics.jsonl`.

    Args:
        path: one JSON object a line; unreadable lines (a killed run's last) are left out. A resumed
            run repeats iterations: the last value counts.

    Returns:
        Loss name → (iteration, value), by iteration; `total_loss` first.
    """
    values: dict[str, dict[int, float]] = {}
    for row in read_metrics(path):
        iteration = row["iteration"]
        for name, value in row.items():
            is_loss = name == "total_loss" or name.startswith("loss_")
            if is_loss and isinstance(value, (int, float)) and math.isfinite(value):
                values.setdefault(name, {})[iteration] = float(value)
    names = sorted(values, key=lambda name: (name != "total_loss", name))
    return {name: sorted(values[name].items()) for name in names}


def render_chart(title: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> Markup:
    """One line chart as inline SVG.

    Args:
        title: name of the loss.
        series: run name → (iteration, value), empty where a run has none; drawn from 0 to the
            highest value, in the colour that the legend gives the run.
    """
    width, height, left, bottom, top = 340, 190, 44, 24, 10
    points = [point for line in series.values() for point in line]
    last_iteration = max((iteration for iteration, _ in points), default=1) or 1
    highest = nice_ceiling(max((value for _, value in points), default=1.0))
    plot_width, plot_height = width - left - 8, height - bottom - top

    def place(iteration: float, value: float) -> str:
        x = left + plot_width * iteration / last_iteration
        y = top + plot_height * (1 - value / highest)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for step in range(5):
        value = highest * step / 4
        y = top + plot_height * (1 - step / 4)
        parts.append(f'<line class=grid x1={left} x2={width - 8} y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f'<text x={left - 6} y="{y + 4:.1f}" text-anchor=end>{value:.3g}</text>'
        parts.append(label)
    for step in range(3):
        iteration = last_iteration * step // 2
        x = left + plot_width * step / 2
        anchor = ("start", "middle", "end")[step]
        text = f'<text x="{x:.1f}" y={height - 6} text-anchor={anchor}>{iteration}</text>'
        parts.append(text)
    for index, line in enumerate(series.values()):
        if not line:
            continue
        stride = max(1, len(line) // _MAX_CURVE_POINTS)
        drawn = " ".join(place(iteration, max(value, 0.0)) for iteration, value in line[::stride])
        parts.append(f'<polyline class="s{index % NUM_SERIES_COLOURS}" points="{drawn}"/>')
    drawing = Markup("".join(parts))  # noqa: S704 - numbers only
    return Markup(
        '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role=img'
        ' aria-label="{title} over iterations">{drawing}</svg></figure>'
    ).format(title=title, width=width, height=height, drawing=drawing)


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5 × 10^k that is not below `value`; 1 for zero."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if value <= factor * power * (1 + 1e-9):
            return float(factor * power)
    return 10.0 * power
