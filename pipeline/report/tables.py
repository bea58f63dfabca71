"""AP tables, as text and as rows, and what they say in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.output import format_table

_GIVEN_BOXES = ("IoU given the box", "given_boxes", "IoU")
_COLUMNS = (
    _GIVEN_BOXES,
    ("box AP", "bbox", "AP"),
    ("box AP50", "bbox", "AP50"),
    ("mask AP", "segm", "AP"),
    ("mask AP50", "segm", "AP50"),
    ("mask AP75", "segm", "AP75"),
    ("mask APs", "segm", "APs"),
    ("mask APm", "segm", "APm"),
    ("mask APl", "segm", "APl"),
)


def ap_header(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Column titles; IoU given the box only where a run has it."""
    return ["run", *(title for title, _, _ in _columns(metrics_by_run))]


def ap_rows(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row of text cells a run; a value that was not measured is `–`.

    Args:
        metrics_by_run: run name → `{"bbox": {"AP": percent, …}, "segm": {…}}`; with `given_boxes`
            and `spread` where they were measured.
    """
    rows = []
    for name, metrics in metrics_by_run.items():
        cells = [name]
        for _, kind, key in _columns(metrics_by_run):
            value = _measured(metrics, kind, key)
            cells.append("–" if value is None else f"{value:.1f}")
            spread = metrics.get("spread", {}).get(kind) if key in ("AP", "IoU") else None
            if spread is not None:
                cells[-1] += f" ± {spread:.1f}"
        rows.append(cells)
    return rows


def _columns(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    has_ious = any("given_boxes" in metrics for metrics in metrics_by_run.values())
    return [column for column in _COLUMNS if has_ious or column != _GIVEN_BOXES]


def format_ap_table(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> str:
    """The AP table as plain text."""
    return format_table(ap_header(metrics_by_run), ap_rows(metrics_by_run))


def describe_outcome(metrics_by_run: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: how good the last run's masks are, and against the first run's.

    Args:
        metrics_by_run: as for `ap_rows`, with `num_images`, which may be absent.
    """
    if not metrics_by_run:
        return "There is no evaluated run yet."
    (first, metrics), (name, last) = (
        next(iter(metrics_by_run.items())),
        list(metrics_by_run.items())[-1],
    )
    masks, boxes = _measured(last, "segm", "AP"), _measured(last, "bbox", "AP")
    if masks is None:
        return f"{name} has no mask AP: the test data holds no annotated mask to compare with."
    images = last.get("num_images")
    where = f"{images} held-out images" if images else "the held-out images"
    text = f"{name} reaches {masks:.1f} mask AP"
    if boxes is not None:
        text += f" and {boxes:.1f} box AP"
    iou = _measured(last, *_GIVEN_BOXES[1:])
    if iou is not None:  # all that a short run is good at
        text += f", and {iou:.1f} IoU given the box"
    if "differences" in last:
        return f"{text} on {where}; {_describe_differences(last['differences'])}"
    baseline = _measured(metrics, "segm", "AP")
    if first == name or baseline is None:
        return f"{text} on {where}."
    difference = round(masks, 1) - round(baseline, 1)
    if abs(difference) < 0.05:
        return f"{text} on {where}, as many mask AP as {first}."
    comparison = "more" if difference > 0 else "less"
    return (
        f"{text} on {where}: {abs(difference):.1f} mask AP {comparison} than {first} "
        f"({baseline:.1f})."
    )


def _describe_differences(differences: Mapping[str, Any]) -> str:
    """Against every other run: how many points of mask AP and of IoU given the box, and ±."""
    told, is_clear = [], []
    for other, found in differences.items():
        parts = []
        for kind, unit in (("segm", "mask AP"), ("given_boxes", "IoU given the box")):
            mean, spread = found[kind]["mean"], found[kind]["spread"]
            parts.append(f"{abs(mean):.1f} ± {spread:.1f} {unit} {'more' if mean > 0 else 'less'}")
            is_clear.append(abs(mean) > 2 * spread)
        told.append(f"{' and '.join(parts)} than {other}")
    meaning = (
        "± is what other test images would change, and a difference below twice its ± is none"
        + ("" if any(is_clear) else ", as all of these are")
    )
    return f"{', '.join(told)} ({meaning})."


def _measured(metrics: Mapping[str, Any], kind: str, key: str) -> float | None:
    """A metric in per cent; None where there was nothing to measure."""
    value = (metrics.get(kind) or {}).get(key)
    if not isinstance(value, (int, float)) or not value >= 0:
        return None
    return float(value)
