"""Run one config from images to report; the demo runs two of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.resources import resolve_config
from pipeline.runs.experiment_files import SPLITS, DatasetPaths, dataset_paths, is_demo_config
from pipeline.runs.manifest import Manifest, locked_run, open_manifest
from pipeline.runs.stages import run_depth_stage, run_eval_stage, run_train_stage

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)

NUM_DEMO_IMAGES = {"train": 240, "test": 60}
# Held-out scenes come from seeds that training scenes never use.
_HELD_OUT_SEED_OFFSET = 1_000_000


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
    """
    with locked_run(folder):
        command = ["run", config_name, "--output", str(folder)]
        for assignment in assignments:
            command += ["--set", assignment]
        experiment = make_absent_demo_data(config_name, experiment, folder)
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
        from pipeline.report.run_result import RunResult
        from pipeline.runs.results import run_report_stage

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


def make_absent_demo_data(config_name: str, experiment: Experiment, folder: Path) -> Experiment:
    """For configs/demo: make scenes under the run folder where the config's files do not exist.

    Args:
        config_name: as given on the command line.
        experiment: what it says.
        folder: run folder.

    Returns:
        The experiment with what was made.
    """
    if not is_demo_config(resolve_config(config_name)):
        return experiment
    for split in SPLITS:
        if not dataset_paths(experiment, split).annotations.is_file():
            made = make_demo_split(folder / "data" / split, split, seed=experiment.train.seed)
            experiment = experiment.with_dataset(split, made.annotations, made.images)
    return experiment


def make_demo_split(folder: Path, split: str, *, seed: int) -> DatasetPaths:
    """Scenes of one split, made if absent.

    Args:
        folder: where they go.
        split: `train` or `test`.
        seed: of the run; the two splits never share a scene.
    """
    paths = DatasetPaths(annotations=folder / "annotations.json", images=folder / "images")
    if not paths.annotations.is_file():
        from pipeline.synth import generate_dataset

        logger.info("making %d %s scenes in %s", NUM_DEMO_IMAGES[split], split, folder)
        offset = _HELD_OUT_SEED_OFFSET if split == "test" else 0
        generate_dataset(folder, num_images=NUM_DEMO_IMAGES[split], seed=seed + offset)
    return paths
