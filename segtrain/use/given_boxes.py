"""How good the masks are that a model draws for given boxes, apart from what it detects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_api

from segtrain.data.coco_reader import read_coco_file
from segtrain.data.segmentations import encode_segmentation
from segtrain.use.labelling import label_dataset


def measure_given_boxes(
    cfg: Any,
    weights: Path,
    coco_json: Path,
    image_dir: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """IoU of the mask of every annotated box with its annotated mask, by image.

    Masks are read to measure only; boxes without one are left out.

    Args:
        cfg: an experiment, or a loaded config file that is one.
        weights: checkpoint.
        coco_json: COCO file with boxes and masks.
        image_dir: folder of its images.
        on_progress: called with images done and images in all.

    Raises:
        DatasetError: as `label_dataset`.
    """
    drawn = label_dataset(cfg, weights, coco_json, image_dir, on_progress=on_progress)
    return [
        [
            float(
                mask_api.iou(
                    [drawn["annotations"][item.position]["segmentation"]],
                    [encode_segmentation(item.segmentation, record.height, record.width)],
                    [0],
                )[0, 0]
            )
            for item in record.annotations
            if item.segmentation
        ]
        for record in read_coco_file(coco_json, image_dir, masks=True).records
    ]
