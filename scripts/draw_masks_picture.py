"""Draw the README's picture: boxes, masks from the picture alone, masks that read sensed depth.

    python scripts/draw_masks_picture.py demo-output docs/images/masks.png

Four of the demo's held-out scenes with four to nine objects, those at 20, 40, 60 and 80 % of the
order by mean IoU from pictures alone: none is picked by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.report.panels import draw_masks
from segtrain.data.coco_reader import ImageRecord, read_coco_file
from segtrain.data.mapper import read_image
from segtrain.data.segmentations import decode_segmentation

_PLACES, _OBJECTS, _GAP = (0.2, 0.4, 0.6, 0.8), range(4, 10), 6
_BOX_COLOUR = (255, 90, 0)


def main(demo: Path, picture: Path) -> None:
    """Draw it.

    Args:
        demo: output folder of `pipeline demo`.
        picture: PNG file to write.
    """
    images = demo / "data" / "seed-0" / "test" / "images"
    truth = read_coco_file(images.parent / "annotations.json", images, masks=True).records
    folder = demo / "labeller" / "held-out"
    rows = [_read_masks(folder / f"{name}.json", truth)
            for name in ("from-pictures-alone", "with-sensed-depth")]  # fmt: skip
    masks_of = [_decode(record, [a.segmentation for a in record.annotations]) for record in truth]
    wanted = [k for k, record in enumerate(truth) if len(record.annotations) in _OBJECTS]
    wanted.sort(key=lambda k: _mean_iou(rows[0][k], masks_of[k]))
    chosen = [wanted[round(place * (len(wanted) - 1))] for place in _PLACES]
    columns = []
    for k in chosen:
        image = read_image(truth[k])[0]
        drawn = [draw_masks(image, row[k]) for row in rows]
        columns.append(_stack([_draw_boxes(image, truth[k]), *drawn], axis=0))
        print(truth[k].file_name, *(f"{_mean_iou(row[k], masks_of[k]):.3f}" for row in rows))
    Image.fromarray(_stack(columns, axis=1)).quantize(255).save(picture, optimize=True)


def _read_masks(file: Path, truth: list[ImageRecord]) -> list[list[npt.NDArray[np.bool_]]]:
    """Masks of a labelled file, by scene, in the order of its objects."""
    of = {
        item["id"]: item.get("segmentation") for item in json.loads(file.read_text())["annotations"]
    }
    return [_decode(record, [of[a.annotation_id] for a in record.annotations]) for record in truth]


def _decode(record: ImageRecord, segmentations: list[Any]) -> list[npt.NDArray[np.bool_]]:
    return [
        decode_segmentation(segmentation, record.height, record.width).astype(bool)
        for segmentation in segmentations
    ]


def _mean_iou(found: list[Any], truth: list[Any]) -> float:
    return float(
        np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(found, truth, strict=True)])
    )


def _draw_boxes(image: npt.NDArray[np.uint8], record: ImageRecord) -> npt.NDArray[np.uint8]:
    drawn = image.copy()
    for item in record.annotations:
        x0, y0, x1, y1 = (round(float(side)) for side in item.box_xyxy)
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), _BOX_COLOUR, 2)
    return drawn


def _stack(pictures: list[npt.NDArray[np.uint8]], axis: int) -> npt.NDArray[np.uint8]:
    parts = []
    for index, picture in enumerate(pictures):
        if index:
            shape = list(picture.shape)
            shape[axis] = _GAP
            parts.append(np.full(shape, 255, np.uint8))
        parts.append(picture)
    return np.concatenate(parts, axis)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
