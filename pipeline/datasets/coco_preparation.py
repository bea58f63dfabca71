"""`data prepare coco`: check the downloaded tree and write boxes-only annotation files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.runs.manifest import write_atomically
from segtrain.data.box_coordinates import is_number
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import read_coco_file
from segtrain.data.image_files import missing_files

SPLITS = ("train2017", "val2017")
_EXPECTED_TREE = """\
ROOT/
├── annotations/instances_train2017.json, instances_val2017.json
├── train2017/*.jpg
└── val2017/*.jpg"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSplit:
    """What was written for one split.

    Attributes:
        split: name of the split.
        boxes: boxes-only COCO file.
        masks: COCO file with masks, for evaluation only.
        images: image folder.
        num_images: entries in the file.
        num_boxes: boxes in the file.
        missing: image files that the annotations name and the folder lacks.
    """

    split: str
    boxes: Path
    masks: Path
    images: Path
    num_images: int
    num_boxes: int
    missing: list[str]


def prepare_coco(root: Path, output: Path) -> list[PreparedSplit]:
    """Write `instances_<split>_boxes.json` for every split found under a COCO root.

    Args:
        root: folder with `annotations/`, `train2017/`, `val2017/`.
        output: folder to write into; made if absent.

    Raises:
        UsageError: the tree has no complete split.
        DatasetError: an annotation file cannot be used.
    """
    splits = []
    for split in SPLITS:
        annotations = root / "annotations" / f"instances_{split}.json"
        images = root / split
        if annotations.is_file() and images.is_dir():
            splits.append((split, annotations, images))
        elif annotations.is_file() or images.is_dir():
            absent = images if annotations.is_file() else annotations
            raise UsageError(f"split {split} is incomplete: {absent} is missing\n{_EXPECTED_TREE}")
    if not splits:
        raise UsageError(f"{root} holds no COCO split; expected\n{_EXPECTED_TREE}")
    output.mkdir(parents=True, exist_ok=True)
    prepared = []
    for split, annotations, images in splits:
        reading = read_coco_file(annotations, images)
        require_usable(reading.findings, annotations)
        boxes = output / f"instances_{split}_boxes.json"
        write_atomically(boxes, json.dumps(strip_masks(reading.document)))
        missing = missing_files((r.image_id, r.path, r.file_name) for r in reading.records)
        prepared.append(
            PreparedSplit(
                split=split,
                boxes=boxes,
                masks=annotations,
                images=images,
                num_images=len(reading.records),
                num_boxes=len(reading.document["annotations"]),
                missing=sorted(str(finding.file_name) for finding in missing),
            )
        )
    return prepared


def strip_masks(document: Mapping[str, Any]) -> dict[str, Any]:
    """A COCO document without `segmentation`; `area` becomes the area of the box.

    The mask's area would tell the trainer about the mask, so it goes as well, from a bad box too.

    Args:
        document: COCO document.
    """
    annotations = []
    for annotation in document["annotations"]:
        masks = ("segmentation", "area")
        kept = {key: value for key, value in annotation.items() if key not in masks}
        box = annotation.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            kept["area"] = box[2] * box[3]
        annotations.append(kept)
    return {**document, "annotations": annotations}
