"""`pipeline status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import JsonOption
from pipeline.output import format_table, write_result


def show_status(
    folder: Annotated[Path, typer.Argument(help="Run folder, or a folder of runs.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Say how far runs came, what failed, and what to do next."""
    from pipeline.errors import UsageError
    from pipeline.runs.manifest import FILE_NAME

    if (folder / FILE_NAME).is_file():
        folders = [folder]
    elif folder.is_dir():
        folders = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    else:
        raise UsageError(f"{folder} does not exist; `pipeline run CONFIG --output DIR` makes a run")
    runs = [describe_run(path) for path in folders]
    text = "\n\n".join(_run_text(run) for run in runs) or f"no runs in {folder}"
    write_result("status", {"runs": runs}, text, as_json=as_json)


def describe_run(folder: Path) -> dict[str, Any]:
    """State of a run: a stage that a killed process left as running is `stopped`."""
    from pipeline.runs.manifest import is_in_use, load_manifest

    manifest = load_manifest(folder)
    is_running = is_in_use(folder)
    stages = {}
    for name, record in manifest.stages.items():
        state = record.state
        if state == "running" and not is_running:
            state = "stopped"
        stages[name] = {
            "state": state,
            "counts": record.counts,
            "outputs": record.outputs,
            "num_failures": len(record.failures),
            "failures": record.failures,
            "error": record.error,
            "started": record.started,
            "finished": record.finished,
        }
    is_done = all(stage["state"] == "done" for stage in stages.values())
    if is_running:
        next_step = "running"
    elif is_done:
        next_step = "done"
    else:
        next_step = f"pipeline resume {folder}"
    return {
        "run": str(folder),
        "running": is_running,
        "done": is_done,
        "updated": manifest.updated,
        "next": next_step,
        "changes": manifest.changes,
        "stages": stages,
    }


def _run_text(run: dict[str, Any]) -> str:
    rows = []
    for name, stage in run["stages"].items():
        counts = ", ".join(f"{count} {what}" for what, count in stage["counts"].items())
        rows.append([name, stage["state"], stage["error"] or counts])
    lines = [f"{run['run']}  (updated {run['updated']})"]
    lines.append(format_table(["stage", "state", ""], rows))
    lines.append(f"next: {run['next']}")
    return "\n".join(lines)
