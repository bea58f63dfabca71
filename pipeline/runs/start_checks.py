"""What a run of all stages will read, looked at before its first stage takes hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runs.experiment_files import existing_dataset_paths
from pipeline.runs.manifest import FILE_NAME, load_manifest
from pipeline.runs.stages import refuse_unmet_needs

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment


def refuse_unusable_files(folder: Path, experiment: Experiment, splits: Sequence[str]) -> None:
    """Refuse now what training or evaluation would refuse when its turn comes.

    Args:
        folder: of the run; what only its finished stages read may be gone.
        experiment: names the files.
        splits: those whose files should be there; the run makes the others.

    Raises:
        UsageError, DatasetError, TrainingConfigError, CheckpointError: as of those stages.
    """
    stages = load_manifest(folder).stages if (folder / FILE_NAME).is_file() else {}
    done = {name for name, record in stages.items() if record.state == "done"}
    if "train" not in done:
        refuse_unmet_needs(experiment)
    reads_train = "train" in splits and "train" not in done
    reads_test = "test" in splits and "eval" not in done
    for split, is_read in (("train", reads_train), ("test", reads_test)):
        if is_read:
            existing_dataset_paths(experiment, split)
    from segtrain.data.category_matching import match_categories
    from segtrain.run.dataset_records import read_test_data, read_training_data

    # Files of any size are read: however long that takes, the stages before take longer.
    known = read_training_data(experiment).categories if reads_train else None
    wanted = read_test_data(experiment).categories if reads_test else None
    if known is not None and wanted is not None:
        match_categories(known, wanted)
