"""Draw anew what a reviewer marked, and learn from what the reviewer left."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_api

from pipeline.errors import UsageError
from pipeline.masks.label_journal import LabelJournal
from pipeline.runs.manifest import Manifest
from segtrain.data.segmentations import FILLED_BOX, decode_segmentation
from segtrain.errors import DatasetError
from segtrain.labeller import (
    WEIGHTS_NAME,
    BoxedPhoto,
    LabellerSettings,
    MaskedCrops,
    MaskedObject,
    adapt_labeller,
    load_labeller,
)
from segtrain.run.resume_rules import describe_file

_APPROVED_CROPS = 8
_SAME_IOU = 0.95


def find_positions(annotations: Sequence[Mapping[str, Any]], ids: set[Any]) -> set[int]:
    """Where the named annotations stand.

    Raises:
        UsageError: an id that none of them has, or no id.
    """
    found = {position for position, item in enumerate(annotations) if item["id"] in ids}
    if not ids:
        raise UsageError(
            "--redo names no mask; mark some on the review page and download their ids"
        )
    if absent := ids - {annotations[position]["id"] for position in found}:
        raise UsageError(f"ids that the file has no annotation of: {sorted(map(str, absent))[:5]}")
    return found


def find_base(manifest: Manifest, drawn: LabelJournal, named: set[int]) -> LabelJournal:
    """Masks that a redo starts from: what was drawn, or what the redo before it made of that.

    The same marks again, or those of a redo that was cut off, start from where they started.

    Args:
        manifest: of the run.
        drawn: masks as the labeller drew them.
        named: positions that are marked now.
    """
    record = manifest.stages.get("redo")
    if record is None or record.inputs.get("drawn") != describe_file(str(drawn.path)):
        return drawn
    is_further = record.state == "done" and record.inputs["marked"] != sorted(named)
    wanted = record.outputs["labels"] if is_further else record.inputs["labels"]
    for path in drawn.path.parent.glob("redone-*.jsonl"):
        if describe_file(str(path)) == wanted:
            return LabelJournal(path)
    return drawn


def learn_from_the_others(
    photos: Sequence[BoxedPhoto],
    settings: LabellerSettings,
    folder: Path,
    *,
    entries: Sequence[Mapping[str, Any]],
    named: set[int],
    start: Path,
    minutes: float,
    on_progress: Callable[[int, int, Mapping[str, float]], None],
    num_processes: int = 1,
) -> Path:
    """Adapt further: all boxes teach as before, and the masks that were not named teach as true.

    Args:
        photos: all, with all boxes.
        settings: of the adaptation.
        folder: where its state and result are kept.
        entries: of the journal.
        named: positions of the masks that are wrong.
        start: weights that drew the masks.
        minutes: budget.
        on_progress: as for `adapt_labeller`.
        num_processes: as for `adapt_labeller`.

    Raises:
        DatasetError: every mask is named.
    """
    approved = [
        MaskedObject(
            name=f"annotation {item['position']} of {photos[entry['photo']].name}",
            load_image=photos[entry["photo"]].load_image,
            load_mask=functools.partial(
                decode_segmentation, item["segmentation"], *item["segmentation"]["size"]
            ),
        )
        for entry in entries
        for item in entry["objects"]
        if item["position"] not in named and item["mask_source"] != FILLED_BOX
    ]
    if not approved:
        raise DatasetError("no mask is left that could teach: all are to be drawn anew")
    description = load_labeller(start).network.description
    weights = adapt_labeller(
        photos,
        settings,
        folder,
        start=start,
        minutes=minutes,
        on_progress=on_progress,
        known_crops=MaskedCrops(approved, settings, description, _APPROVED_CROPS),
        num_processes=num_processes,
    )
    assert weights == folder / WEIGHTS_NAME
    return weights


def merge_labels(
    old: LabelJournal, fresh: Mapping[int, dict[str, Any]], named: set[int], merged: LabelJournal
) -> int:
    """Write the journal with the named masks replaced.

    Args:
        old: what was drawn before.
        fresh: new labels by position; those of photos that cannot be read any more are absent.
        named: positions of the masks to replace.
        merged: what is written.

    Returns:
        How many of the named ones changed (IoU with what they were below .95).
    """
    changed = 0
    merged.path.unlink(missing_ok=True)
    with merged:
        for entry in old.entries():
            objects = []
            for item in entry["objects"]:
                taken = fresh.get(item["position"], item) if item["position"] in named else item
                if taken is not item:
                    pair = [[taken["segmentation"]], [item["segmentation"]]]
                    changed += float(mask_api.iou(*pair, [0])[0, 0]) < _SAME_IOU
                objects.append(taken)
            merged.append(entry["photo"], objects, has_depth=entry["has_depth"])
    return changed
