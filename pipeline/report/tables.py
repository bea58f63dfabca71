"""AP tables, as text and as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.output import format_table

_COLUMNS = (
    ("box AP", "bbox", "AP"),
    ("box AP50", "bbox", "AP50"),
    ("mask AP", "segm", "AP"),
    ("mask AP50", "segm", "AP50"),
    ("mask AP75", "segm", "AP75"),
    ("mask APs", "segm", "APs"),
    ("mask APm", "segm", "APm"),
    ("mask APl", "segm", "APl"),
)


def ap_header() -> list[str]:
    """Column titles."""
    return ["run", *(title for title, _, _ in _COLUMNS)]


def ap_rows(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row of text cells a run; a value that was not measured is `–`.

    Args:
        metrics_by_run: run name → `{"bbox": {"AP": percent, …}, "segm": {…}}`.
    """
    rows = []
    for name, metrics in metrics_by_run.items():
        cells = [name]
        for _, kind, key in _COLUMNS:
            value = (metrics.get(kind) or {}).get(key)
            is_number = isinstance(value, (int, float)) and value == value and value >= 0  # noqa: PLR0124
            cells.append(f"{value:.1f}" if is_number else "–")
        rows.append(cells)
    return rows


def format_ap_table(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> str:
    """The AP table as plain text."""
    return format_table(ap_header(), ap_rows(metrics_by_run))
