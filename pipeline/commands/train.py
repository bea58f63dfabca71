"""`pipeline train`: stage two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, DryRunOption, JsonOption, SetOption
from pipeline.output import stdout_kept_clean, write_result


def train(
    config_name: ConfigArgument,
    output: Annotated[Path | None, typer.Option(help="Run folder; default runs/<config>.")] = None,
    assignments: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train on boxes and cached depth. The same command again resumes.

    On several machines, give each the same command and its own train.machine_rank.
    """
    from pipeline.commands.run import default_run_folder, machine_folder, plan_of
    from pipeline.config import load_experiment
    from pipeline.runs.experiment_files import existing_annotations, refuse_absent_files
    from pipeline.runs.manifest import locked_run, open_manifest

    chosen = assignments or []
    refuse_absent_files(chosen, ["train"])
    with stdout_kept_clean():
        experiment = load_experiment(config_name, chosen)
        folder = machine_folder(output or default_run_folder(config_name, experiment), experiment)
        if dry_run:
            plan = plan_of(experiment, folder, ["train"])
        else:
            existing_annotations(experiment, "train")
            from pipeline.runs.stages import run_train_stage

            with locked_run(folder):
                manifest = open_manifest(
                    folder,
                    command=["train", config_name, "--output", str(folder), *_as_options(chosen)],
                    config={
                        "path": config_name,
                        "assignments": chosen,
                        "resolved": experiment.to_plain(),
                    },
                    stages=["train"],
                )
                weights = run_train_stage(manifest, experiment)
    if dry_run:
        write_result("train plan", plan, _plan_text(plan), as_json=as_json)
        return
    result = {"run": folder, "weights": weights, "stages": manifest.to_document()["stages"]}
    write_result("train", result, f"weights: {weights}", as_json=as_json)


def _as_options(assignments: list[str]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def _plan_text(plan: dict[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in plan.items())
