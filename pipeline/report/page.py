"""`report.html`: one self-contained file with the outcome, panels, curves and cache coverage.

No script, no font and no picture comes from elsewhere; colours follow the reader's light or dark
setting.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.report.curves import NUM_SERIES_COLOURS, read_curves, render_chart
from pipeline.report.panels import Panel, RGBImage, make_panels
from pipeline.report.run_result import RunResult
from pipeline.report.tables import ap_header, ap_rows, describe_outcome
from pipeline.runs.manifest import write_atomically

_MAX_PANEL_SIDE = 220


def write_report(
    path: Path,
    results: Sequence[RunResult],
    *,
    coverage: Mapping[str, str],
    environment: Mapping[str, Any],
    links: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        path: file to write.
        results: at least one; the last one is captioned as the run's own method.
        coverage: facts on the depth cache, label → text.
        environment: versions, as the manifest has them.
        links: other pages of the run, name → address relative to this one.
        notes: sentences beside the outcome.

    Returns:
        `path`.
    """
    page = render_page(
        title=f"Run report: {', '.join(result.name for result in results)}",
        metrics_by_run={result.name: result.metrics for result in results},
        curves_by_run={
            result.name: read_curves(result.folder / "metrics.jsonl") for result in results
        },
        coverage=coverage,
        panels=make_panels(results),
        environment=environment,
        links=links,
        notes=notes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def render_page(
    *,
    title: str,
    metrics_by_run: Mapping[str, Mapping[str, Any]],
    curves_by_run: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    coverage: Mapping[str, str],
    panels: Sequence[Panel],
    environment: Mapping[str, Any],
    links: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as one HTML text."""
    files = resources.files("pipeline.report")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files / "page.html.j2").read_text(encoding="utf-8"))
    losses = list(dict.fromkeys(name for curves in curves_by_run.values() for name in curves))
    return template.render(
        title=title,
        style=Markup((files / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        outcome=describe_outcome(metrics_by_run),
        header=ap_header(metrics_by_run),
        rows=ap_rows(metrics_by_run),
        panels=[
            (panel.title, {name: encode_png(one) for name, one in panel.pictures.items()})
            for panel in panels
        ],
        runs=[(name, index % NUM_SERIES_COLOURS) for index, name in enumerate(curves_by_run)],
        charts=[
            # Every run, also one without this loss: its place among them is its colour.
            render_chart(loss, {run: curves.get(loss, []) for run, curves in curves_by_run.items()})
            for loss in losses
        ],
        coverage=coverage,
        packages=environment.get("packages", {}),
        links=links or {},
        notes=notes,
    )


def encode_png(picture: RGBImage) -> str:
    """A picture, made small, as a `data:` address."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((_MAX_PANEL_SIDE, _MAX_PANEL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
