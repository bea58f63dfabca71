"""`pipeline status`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import JsonOption
from pipeline.output import format_seconds, format_table, write_result


def show_status(
    place: Annotated[
        str,
        typer.Argument(
            metavar="[DIR]", help="Run folder, folder of runs, or the cache of `pipeline depth`."
        ),
    ] = "runs",
    as_json: JsonOption = False,
) -> None:
    """Say how far runs came, what failed, and what to do next."""
    from pipeline.errors import UsageError
    from pipeline.runs.depth_record import records_folder
    from pipeline.runs.manifest import FILE_NAME

    folder, records = Path(place), records_folder(place)
    if (folder / FILE_NAME).is_file():
        folders = [folder]
    elif folder.is_dir() or records.is_dir():
        files = [*folder.glob(f"*/{FILE_NAME}"), *records.glob(f"*/{FILE_NAME}")]
        folders = sorted(path.parent for path in files)
    else:
        raise UsageError(f"{place} does not exist; `pipeline run CONFIG --output DIR` makes a run")
    runs = [describe_run(path) for path in folders]
    text = "\n\n".join(_run_text(run) for run in runs) or f"no runs in {place}"
    write_result("status", {"runs": runs}, text, as_json=as_json)


def describe_run(folder: Path) -> dict[str, Any]:
    """State of a run: a stage that a killed process left as running is `stopped`.

    So is one that was done, and that looked again whether it still is: such a stage keeps its
    record until it finds work, and its progress until it ends.
    """
    from pipeline.progress import read_progress
    from pipeline.runs.manifest import is_in_use, load_manifest, name_holder

    manifest = load_manifest(folder)
    is_running = is_in_use(folder)
    progress = read_progress(manifest.progress_file)
    looks_again = progress is not None and all(
        record.state == "done" for record in manifest.stages.values()
    )
    stages = {}
    for name, record in manifest.stages.items():
        state: str = "running" if looks_again else record.state
        if state == "running" and not is_running:
            state = "stopped"
        stages[name] = {
            "state": state,
            "counts": record.counts,
            "outputs": record.outputs,
            "num_failures": len(record.failures),
            "failures": record.failures,
            "error": record.error,
            "exit_code": record.exit_code,
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
        "holder": name_holder(folder) if is_running else None,
        "done": is_done,
        "updated": manifest.updated,
        "next": next_step,
        "command": shlex.join(["pipeline", *manifest.command]) if manifest.command else None,
        "config": manifest.config.get("path"),
        "changes": manifest.changes,
        "stages": stages,
        "progress": progress,
        "training": find_training(folder, manifest.config.get("resolved", {})),
    }


def find_training(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """How far the run's training came, by the last row of its metrics.jsonl.

    Args:
        folder: run folder; the demo's has those of its trainings in it, of which the newest counts.
        config: the run's resolved config; empty for the demo.

    Returns:
        Iterations, loss, seconds per iteration and seconds left; None before the first row.
    """
    from pipeline.runs.manifest import FILE_NAME, load_manifest
    from segtrain.run.metrics_log import read_metrics

    logs = [*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl")]
    if not logs:
        return None
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    if newest.parent != folder and (newest.parent / FILE_NAME).is_file():
        config = load_manifest(newest.parent).config.get("resolved", {})
    rows = read_metrics(newest)
    max_iter = (config.get("train") or {}).get("max_iter")
    if not rows or max_iter is None:
        return None
    last = rows[-1]
    seconds = last.get("seconds")
    return {
        "run": str(newest.parent),
        "iteration": last["iteration"],
        "max_iter": max_iter,
        "total_loss": last.get("total_loss"),
        "seconds_per_iteration": seconds,
        "seconds_left": None if seconds is None else (max_iter - last["iteration"]) * seconds,
    }


def _run_text(run: dict[str, Any]) -> str:
    from pipeline.progress import format_progress_line

    rows = []
    for name, stage in run["stages"].items():
        # Counted at a stage's end: those of one under way are of the time before.
        counts = stage["counts"].items() if stage["state"] in ("done", "failed") else ()
        told = ", ".join(f"{count} {what}" for what, count in counts)
        rows.append([name, stage["state"], stage["error"] or told])
    lines = [f"{run['run']}  (updated {run['updated']})"]
    if run["command"] is not None:
        lines.append(run["command"])
    lines.append(format_table(["stage", "state", ""], rows))
    if run["training"] is not None:
        lines.append(_training_text(run["training"]))
    if run["progress"] is not None:
        lines.append(format_progress_line(run["progress"]))
    lines.append(f"next: {_next_text(run)}")
    return "\n".join(lines)


def _next_text(run: dict[str, Any]) -> str:
    """What to do next, where a run is done, runs, or was refused too."""
    from pipeline.errors import ExitCode

    if run["running"]:
        return f"wait; {run['holder']} is at work in {run['run']}"
    if run["next"] != "done":
        refused = [name for name, s in run["stages"].items() if s["exit_code"] == ExitCode.USAGE]
        return _text_of_refusal(run, refused[0]) if refused else str(run["next"])
    report = run["stages"].get("report", {}).get("outputs", {}).get("report")
    weights = run["stages"].get("train", {}).get("outputs", {}).get("weights")
    if report is not None:
        return f"done; look at {report}"
    if weights is not None and run["config"] is not None:
        return f"done; pipeline eval {run['config']} --weights {weights}"
    depth = run["stages"].get("depth")
    if len(run["stages"]) == 1 and depth is not None and depth["num_failures"]:
        return f"done; `pipeline report {run['run']}` lists the images that failed"
    return "done"


def _text_of_refusal(run: dict[str, Any], stage: str) -> str:
    """What to do about a stage that ended with exit code 2: the same again ends so again."""
    return (
        f"correct what {stage} was refused for: repeat the command above with another setting, or "
        f"put the file that it names right and `{run['next']}`"
    )


def _training_text(training: dict[str, Any]) -> str:
    text = f"training: iteration {training['iteration']}/{training['max_iter']}"
    if training["total_loss"] is not None:
        text += f", loss {training['total_loss']:.3f}"
    if training["seconds_per_iteration"] is not None:
        text += f", {training['seconds_per_iteration']:.2f} s/iteration"
        if training["iteration"] < training["max_iter"]:
            text += f", {format_seconds(training['seconds_left'])} left"
    return text
