"""`pipeline report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption
from pipeline.output import require_writable, stdout_kept_clean, write_result


def write_run_report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders to compare.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Default report.html in the first run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html, one self-contained file, for one run or several side by side."""
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
