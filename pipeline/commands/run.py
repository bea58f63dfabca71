"""`pipeline run` and `pipeline resume`: both stages, evaluation and the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import ConfigArgument, DryRunOption, JsonOption, SetOption
from pipeline.errors import UsageError
from pipeline.output import stdout_kept_clean, write_result

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

STAGES = ("depth", "train", "eval", "report")


def run(
    config_name: ConfigArgument,
    output: Annotated[Path | None, typer.Option(help="Run folder; default runs/<config>.")] = None,
    assignments: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Depth, training, evaluation and report of one config. The same command again resumes."""
    from pipeline.config import load_config
    from pipeline.report.tables import format_ap_table

    chosen = assignments or []
    with stdout_kept_clean():
        config = load_config(config_name, chosen)
        if config.train.num_machines > 1:
            raise UsageError(
                f"train.num_machines={config.train.num_machines}, but `pipeline run` works on one "
                "machine; run `pipeline depth` once, then `pipeline train` on each machine"
            )
        from pipeline.runs.experiment_files import SPLITS, refuse_absent_files
        from segtrain.run.experiment import read_experiment

        experiment = read_experiment(config)
        folder = output or default_run_folder(config_name, experiment)
        if dry_run:
            refuse_absent_files(chosen, SPLITS)
            plan = plan_of(experiment, folder, list(STAGES))
        else:
            from pipeline.runs.run_config import run_config

            metrics, manifest = run_config(config_name, chosen, experiment, folder)
    if dry_run:
        text = "\n".join(f"{name}: {value}" for name, value in plan.items())
        write_result("run plan", plan, text, as_json=as_json)
        return
    text = f"{format_ap_table({folder.name: metrics})}\n\nreport: {folder / 'report.html'}"
    result = {
        "run": folder,
        "metrics": metrics,
        "report": folder / "report.html",
        "stages": manifest.to_document()["stages"],
    }
    write_result("run", result, text, as_json=as_json)


def resume(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    as_json: JsonOption = False,
) -> None:
    """Repeat the command that started a run; what is done is skipped."""
    from pipeline.config import split_assignments
    from pipeline.runs.manifest import load_manifest

    manifest = load_manifest(folder)
    if not manifest.command:
        raise UsageError(f"{folder} does not say which command started it")
    words = list(manifest.command)
    if "--output" in words:  # the folder may have been moved, or named from elsewhere
        words[words.index("--output") + 1] = str(folder)
    words += ["--json"] if as_json else []
    program = context.find_root().command
    returned = program.main(split_assignments(words), standalone_mode=False, prog_name="pipeline")
    if returned:
        raise typer.Exit(returned)


def default_run_folder(config_name: str, experiment: Experiment) -> Path:
    """The config's `train.output_dir`, else `runs/<folder>-<name>` for `<folder>/<name>.py`."""
    if experiment.train.output_dir:
        return Path(experiment.train.output_dir)
    path = Path(config_name)
    parts = [path.parent.name] if path.parent.name not in ("", "configs") else []
    return Path("runs") / "-".join([*parts, path.stem])


def machine_folder(folder: Path, experiment: Experiment) -> Path:
    """The run folder on this machine: `machine-N` in it on any but the first.

    Machines may share a disk, and each keeps a manifest of its own.
    """
    rank = experiment.train.machine_rank
    name = f"machine-{rank}"
    return folder if rank == 0 or folder.name == name else folder / name


def plan_of(experiment: Experiment, folder: Path, stages: list[str]) -> dict[str, Any]:
    """What a run would do, from its config and the state of its folder."""
    from pipeline.runs.experiment_files import SPLITS, dataset_paths, resolve_model
    from pipeline.runs.manifest import FILE_NAME, load_manifest

    states = dict.fromkeys(stages, "pending")
    if (folder / FILE_NAME).is_file():
        recorded = load_manifest(folder).stages
        states = {
            stage: recorded[stage].state if stage in recorded else "pending" for stage in stages
        }
    datasets: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        paths = dataset_paths(experiment, split)
        datasets[split] = {
            "annotations": str(paths.annotations),
            "exists": os.path.exists(paths.annotations),  # noqa: PTH110 - never raises
        }
    if "train" in stages and datasets["train"]["exists"]:
        from segtrain.run.dataset_records import read_training_data

        dataset = read_training_data(experiment)  # refuses what training would refuse
        datasets["train"] |= {
            "num_images": len(dataset.records),
            "num_boxes": dataset.num_boxes,
            "left_out": dataset.dropped,
        }
    return {
        "dry_run": True,
        "run": str(folder),
        "stages": states,
        "data": datasets,
        "depth_model": resolve_model(experiment.depth.model),
        "max_iter": experiment.train.max_iter,
    }
