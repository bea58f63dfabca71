"""`pipeline report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import JsonOption
from pipeline.errors import UsageError
from pipeline.output import format_table, require_writable, stdout_kept_clean, write_result

if TYPE_CHECKING:
    from pipeline.runs.depth_report import DepthCall

_MAX_SHOWN_FAILURES = 20


def write_run_report(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run folders to compare, or the cache of `pipeline depth`."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Default report.html in the first run, or beside the records."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html, one self-contained file, for one run or several side by side.

    Of a cache it says what `pipeline depth` did, and which images have no depth.
    """
    from pipeline.runs.depth_report import find_depth_records

    records = {place: find_depth_records(place) for place in places}
    if all(records.values()):
        _report_depth(records, out, as_json=as_json)
    elif any(records.values()):
        depth, other = ([p for p in places if bool(records[p]) is kind] for kind in (True, False))
        raise UsageError(
            f"{depth[0]} is of `pipeline depth`, {other[0]} is not; they have reports of their "
            f"own: {shlex.join(['pipeline', 'report', *depth])} and "
            f"{shlex.join(['pipeline', 'report', *other])}"
        )
    else:
        _compare_runs([Path(place) for place in places], out, as_json=as_json)


def _compare_runs(folders: list[Path], out: Path | None, *, as_json: bool) -> None:
    from pipeline.report.page import write_report
    from pipeline.report.tables import format_ap_table
    from pipeline.runs.method_spread import compare_results
    from pipeline.runs.results import describe_coverage, find_reviews, load_results

    out = out or folders[0] / "report.html"
    with stdout_kept_clean():
        loaded = load_results(folders)
        require_writable(out)
        results = compare_results([result for result, _ in loaded])
        first = loaded[0][1]
        path = write_report(
            out,
            results,
            coverage=describe_coverage(first),
            environment=first.environment,
            links=find_reviews((manifest for _, manifest in loaded), out),
        )
    metrics = {result.name: result.metrics for result in results}
    text = f"{format_ap_table(metrics)}\n\nreport: {path}"
    write_result("report", {"report": path, "metrics": metrics}, text, as_json=as_json)


def _report_depth(records: dict[str, list[Path]], out: Path | None, *, as_json: bool) -> None:
    from pipeline.commands.status import describe_run
    from pipeline.report.depth_page import render_depth_page
    from pipeline.runs.depth_report import describe_depth_call
    from pipeline.runs.manifest import write_atomically

    first = next(iter(records))
    folders = list(dict.fromkeys(folder for found in records.values() for folder in found))
    if out is None:
        home = folders[0] if Path(first) in folders else folders[0].parent
        out = home / "report.html"
    with stdout_kept_clean():
        require_writable(out)
        runs = sorted(map(describe_run, folders), key=lambda run: str(run["updated"]), reverse=True)
        calls = [describe_depth_call(run) for run in runs]
        write_atomically(out, render_depth_page(f"Depth of images: {', '.join(records)}", calls))
    fields = ("state", "outcome", "next", "facts", "counts", "failures")
    told = [{"run": call.folder} | {name: getattr(call, name) for name in fields} for call in calls]
    text = "\n\n".join([*map(_call_text, calls), f"report: {out}"])
    write_result(
        "report", {"report": out, "metrics": {}, "depth_calls": told}, text, as_json=as_json
    )


def _call_text(call: DepthCall) -> str:
    lines = [call.outcome]
    if call.failures:
        shown = call.failures[:_MAX_SHOWN_FAILURES]
        width = max(len(item["reason"]) for item in shown)
        rows = [[item["path"], item["reason"].ljust(width)] for item in shown]
        lines += ["", format_table(["image", "reason".ljust(width)], rows)]
        if (num_left := call.counts.get("failed", 0) - len(shown)) > 0:
            lines.append(f"… and {num_left} more")
        lines.append("")
    names = ("model", "cache", "convention")
    lines += [f"{name}: {call.facts[name]}" for name in names if name in call.facts]
    return "\n".join([*lines, f"next: {call.next}"])
