"""Photos as the labeller takes them, its labels as the journal takes them, and its progress."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.masks.photo_depth import PhotoDepth
from pipeline.progress import ProgressReporter
from segtrain.data.coco_reader import ImageRecord
from segtrain.data.image_files import find_image_file

if TYPE_CHECKING:
    from segtrain.labeller import BoxedPhoto, Labeller


def boxed_photos(records: Sequence[ImageRecord], depth: PhotoDepth) -> list[BoxedPhoto]:
    """Photos with their boxes as the labeller takes them; any process may read them later."""
    from segtrain.labeller import BoxedPhoto

    return [
        BoxedPhoto(
            name=record.file_name,
            boxes=np.array([item.box_xyxy for item in record.annotations], dtype=np.float32),
            load_image=functools.partial(_load_image, record),
            load_inverse_depth=functools.partial(_load_depth, record, depth)
            if depth.cache
            else None,
        )
        for record in records
    ]


def _load_image(record: ImageRecord) -> Any:
    from segtrain.data.mapper import read_image

    return read_image(record)[0]


def _load_depth(record: ImageRecord, depth: PhotoDepth) -> Any:
    data = find_image_file(record.path).read_bytes()
    return depth.read_of_bytes(data, record.height, record.width)


def learn_with_progress(
    minutes: float,
    warmup: int,
    say: Callable[[str], None],
    adapt: Callable[[Callable[[int, int, Mapping[str, float]], None]], Path],
    progress_file: Path,
) -> tuple[Path, int]:
    """Adapt with a progress bar; the weights and the iterations made.

    Args:
        minutes: budget.
        warmup: iterations before the plan stands.
        say: told what is being done.
        adapt: adapts, and calls what it is given after each iteration.
        progress_file: of the run, for `pipeline status`.
    """
    began, last = time.monotonic(), 0

    def tell(iteration: int, total: int, losses: Mapping[str, float]) -> None:
        nonlocal last
        last = iteration
        # How many iterations fit is known after the first few; until then, from their rate.
        fitting = int(minutes * 60 * iteration / max(time.monotonic() - began, 1e-3))
        total = max(min(total, fitting), iteration) if iteration < warmup else total
        say(f"the adaptation, {iteration} of {total} iterations")
        bar.update(iteration, total, losses["loss"])

    with ProgressReporter("adapt", "iterations", kept_in=progress_file) as bar:
        return adapt(tell), last


# Larger where the same weights draw other masks than before, so that a folder never mixes them.
LABELLING = 3


def draw_objects(
    labeller: Labeller, record: ImageRecord, image_rgb: Any, key: str, depth: PhotoDepth
) -> tuple[list[dict[str, Any]], bool]:
    """A photo's labels, and whether depth was used for them."""
    from segtrain.labeller import label_boxes

    inverse_depth = depth.read(key, record.height, record.width)
    boxes = np.array([a.box_xyxy for a in record.annotations], dtype=np.float32)
    classes = [a.category for a in record.annotations]
    masks = label_boxes(labeller, image_rgb, boxes, inverse_depth, classes=classes)
    objects = [
        {
            "position": annotation.position,
            "segmentation": mask.rle(),
            "area": int(mask.crop.sum()),
            "score": round(float(mask.score), 4),
            "mask_source": mask.source,
        }
        for annotation, mask in zip(record.annotations, masks, strict=True)
    ]
    return objects, inverse_depth is not None
