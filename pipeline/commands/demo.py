"""`pipeline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption
from pipeline.output import stdout_kept_clean, write_result


def run_demo(
    output: Annotated[Path, typer.Option(help="Folder for data, cache, runs and report.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Of scenes, initialisation and data order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Boxes to masks on synthetic scenes: BoxInst, its control and ours, with a report."""
    from pipeline.report.tables import describe_outcome, format_ap_table
    from pipeline.runs.demo import run_demo as run

    with stdout_kept_clean():
        result = run(output, seed=seed)
    tables = f"{format_ap_table(result.metrics)}\n\n{describe_outcome(result.metrics)}"
    text = f"{tables}\n\n{result.labelled.text()}\nreport: {result.report}"
    document = {
        "output": output,
        "seed": seed,
        "metrics": result.metrics,
        "report": result.report,
        "weights": result.weights,
        "cache": result.cache,
        "labeller": result.labelled,
        "seconds": result.seconds,
    }
    write_result("demo", document, text, as_json=as_json)
