"""Run one config from images to report; the demo runs two of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.run_result import RunResult
from pipeline.resources import resolve_config
from pipeline.runs.demo_data import find_absent_demo_splits, make_absent_demo_data
from pipeline.runs.experiment_files import SPLITS, is_demo_config
from pipeline.runs.manifest import Manifest, locked_run, open_manifest
from pipeline.runs.results import run_report_stage
from pipeline.runs.stages import (
    run_depth_stage,
    run_eval_stage,
    run_train_stage,
)
from pipeline.runs.start_checks import refuse_unusable_files
from segtrain.run.setting_rules import refuse_contradictions

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)


def run_config(
    config_name: str, assignments: Sequence[str], experiment: Experiment, folder: Path
) -> tuple[dict[str, Any], Manifest]:
    """Depth, train, eval, report.

    Args:
        config_name: as given on the command line.
        assignments: `--set` texts.
        experiment: what they say.
        folder: run folder.

    Returns:
        COCO metrics and the run's manifest.

    Raises:
        UsageError, DatasetError, TrainingConfigError, CheckpointError: the training could not
            start, or a stage not read its files; told before anything is computed.
    """
    refuse_contradictions(experiment)
    with locked_run(folder):
        command = ["run", config_name, "--output", str(folder)]
        for assignment in assignments:
            command += ["--set", assignment]
        absent = find_absent_demo_splits(config_name, assignments, experiment)
        refuse_unusable_files(folder, experiment, [s for s in SPLITS if s not in absent])
        if absent:
            experiment = make_absent_demo_data(config_name, assignments, experiment, folder)
            refuse_unusable_files(folder, experiment, SPLITS)
        manifest = open_manifest(
            folder,
            command=command,
            config={
                "path": config_name,
                "assignments": list(assignments),
                "resolved": experiment.to_plain(),
            },
            stages=[*(["depth"] if experiment.depth.enabled else []), "train", "eval", "report"],
        )
        for key, change in manifest.changes.items():
            logger.info("config changed since the last start: %s: %s", key, change)
        if experiment.depth.enabled:
            root = choose_cache_root(config_name, assignments, experiment, folder)
            cache = run_depth_stage(manifest, experiment, root, SPLITS)
            experiment = experiment.with_depth_cache(cache)
        weights = run_train_stage(manifest, experiment)
        metrics = run_eval_stage(manifest, experiment, weights)
        result = RunResult(
            name=folder.name,
            folder=folder,
            experiment=experiment,
            weights=weights,
            metrics=metrics,
        )
        run_report_stage(manifest, [result])
    return metrics, manifest


def choose_cache_root(
    config_name: str, assignments: Sequence[str], experiment: Experiment, folder: Path
) -> str:
    """The config's cache root; a demo config keeps its cache in the run folder unless told."""
    is_told = any(assignment.startswith("depth.cache=") for assignment in assignments)
    if is_demo_config(resolve_config(config_name)) and not is_told:
        return str(folder / "depth-cache")
    return experiment.depth.cache
