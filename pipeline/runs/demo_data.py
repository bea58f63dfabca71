"""The demo's scenes: made under a run's folder where the config's own files do not exist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.resources import resolve_config
from pipeline.runs.experiment_files import SPLITS, DatasetPaths, dataset_paths, is_demo_config

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)

NUM_DEMO_IMAGES = {"train": 240, "test": 60}
# Held-out scenes come from seeds that training scenes never use.
_HELD_OUT_SEED_OFFSET = 1_000_000


def find_absent_demo_splits(
    config_name: str, assignments: Sequence[str], experiment: Experiment
) -> list[str]:
    """Splits whose scenes are to be made: of configs/demo, whose own files do not exist.

    Files that the user named are never replaced by scenes: where they are absent, that is told.

    Args:
        config_name: as given on the command line.
        assignments: `--set` texts.
        experiment: what they say.
    """
    if not is_demo_config(resolve_config(config_name)):
        return []
    keys = {assignment.partition("=")[0] for assignment in assignments}
    return [
        split
        for split in SPLITS
        if keys.isdisjoint({f"data.{split}_json", f"data.{split}_images"})
        and not dataset_paths(experiment, split).annotations.is_file()
    ]


def make_absent_demo_data(
    config_name: str, assignments: Sequence[str], experiment: Experiment, folder: Path
) -> Experiment:
    """Make the scenes of `find_absent_demo_splits` under the run folder.

    Args:
        config_name: as given on the command line.
        assignments: `--set` texts.
        experiment: what they say.
        folder: run folder.

    Returns:
        The experiment with what was made.
    """
    for split in find_absent_demo_splits(config_name, assignments, experiment):
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
