"""Settings of a stage that adapts the labeller: chosen once, and kept when the stage goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runs.manifest import Manifest

if TYPE_CHECKING:
    from segtrain.data.coco_reader import ImageRecord
    from segtrain.labeller import LabellerSettings

logger = logging.getLogger(__name__)

_CHOSEN = ("crop_size", "batch_size", "max_iterations")


def choose_stage_settings(
    manifest: Manifest,
    stage: str,
    inputs: Mapping[str, Any],
    records: Sequence[ImageRecord],
    start: Path,
    **given: Any,
) -> LabellerSettings:
    """Settings for this machine and these boxes; those that the stage began with, if it did.

    So a run that is resumed on another machine goes on with what it has.

    Args:
        manifest: of the run; its record of the stage has the settings under `settings`.
        stage: its name.
        inputs: all else that the stage depends on.
        records: photos with the boxes that are adapted to.
        start: weights to start from.
        **given: settings that are not chosen here.
    """
    from segtrain.labeller import choose_settings

    before = manifest.stages[stage].inputs.get("settings")
    if before is not None and manifest.changed(stage, {**inputs, "settings": before}):
        before = None
    kept = {name: before[name] for name in _CHOSEN} if before else {}
    num_boxes = sum(len(record.annotations) for record in records)
    settings = choose_settings(num_boxes, start, **given, **kept)
    logger.info(
        "%s: at most %d steps of %d crops of %d pixels for %d boxes",
        stage, settings.max_iterations, settings.batch_size, settings.crop_size, num_boxes,
    )  # fmt: skip
    return settings
