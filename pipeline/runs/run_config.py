"""Run one config from images to report; the demo runs two of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import take_snapshot
from pipeline.runs.experiment import (
    SPLITS,
    DatasetPaths,
    dataset_paths,
    is_demo_config,
    set_dataset_paths,
)
from pipeline.runs.manifest import Manifest, locked_run, open_manifest
from pipeline.resources import resolve_config
from pipeline.runs.stages import run_depth_stage, run_eval_stage, run_train_stage

logger = logging.getLogger(__name__)

NUM_DEMO_IMAGES = {"train": 240, "test": 60}
# Held-out scenes come from seeds that training scenes never use.
_HELD_OUT_SEED_OFFSET = 1_000_000


def run_config(
    config_name: str, assignments: Sequence[str], config: Any, folder: Path
) -> tuple[dict[str, Any], Manifest]:
    """Depth, train, eval, report.

    Args:
        config_name: as given on the command line.
        assignments: `--set` texts.
        config: the loaded config; its data and cache are set.
        folder: run folder.

    Returns:
        COCO metrics and the run's manifest.
    """
    with locked_run(folder):
        command = ["run", config_name, "--output", str(folder)]
        for assignment in assignments:
            command += ["--set", assignment]
        make_absent_demo_data(config_name, config, folder)
        manifest = open_manifest(
            folder,
            command=command,
            config={
                "path": config_name,
                "assignments": list(assignments),
                "resolved": take_snapshot(config),
            },
            stages=["depth", "train", "eval", "report"],
        )
        for key, change in manifest.changes.items():
            logger.info("config changed since the last start: %s: %s", key, change)
        run_depth_stage(
            manifest, config, choose_cache_root(config_name, assignments, config, folder), SPLITS
        )
        weights = run_train_stage(manifest, config)
        metrics = run_eval_stage(manifest, config, weights)
        from pipeline.report.page import RunResult, write_report

        with manifest.running("report", {}) as record:
            result = RunResult(
                name=folder.name, folder=folder, config=config, weights=weights, metrics=metrics
            )
            record.outputs = {
                "report": str(write_report(folder / "report.html", [result], manifest))
            }
    return metrics, manifest


def choose_cache_root(
    config_name: str, assignments: Sequence[str], config: Any, folder: Path
) -> str:
    """The config's cache root; a demo config keeps its cache in the run folder unless told."""
    is_told = any(assignment.startswith("depth.cache=") for assignment in assignments)
    if is_demo_config(resolve_config(config_name)) and not is_told:
        return str(folder / "depth-cache")
    return str(config.depth.cache)


def make_absent_demo_data(config_name: str, config: Any, folder: Path) -> None:
    """For configs/demo: make scenes under the run folder where the config's files do not exist.

    Args:
        config_name: as given on the command line.
        config: the loaded config; its data paths are set to what was made.
        folder: run folder.
    """
    if not is_demo_config(resolve_config(config_name)):
        return
    for split in SPLITS:
        paths = dataset_paths(config, split)
        if not paths.annotations.is_file():
            made = make_demo_split(folder / "data" / split, split, seed=int(config.train.seed))
            set_dataset_paths(config, split, made)


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
