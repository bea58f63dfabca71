"""Boxes in, masks out: give every annotated box of a COCO file a mask and a score."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_api

from segtrain.data.coco_reader import CocoReading, ImageRecord, id_text, read_usable_boxes
from segtrain.data.mapper import read_image
from segtrain.data.segmentations import encode_mask
from segtrain.errors import DatasetError
from segtrain.use.inference import TrainedModel, list_segmentations, load_trained_model

logger = logging.getLogger(__name__)


def label_dataset(
    cfg: Any,
    weights: Path,
    coco_json: Path,
    image_dir: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[str, str], None] | None = None,
) -> dict[str, Any]:
    """Predict a mask for every box that is not a crowd.

    Args:
        cfg: an experiment, or a loaded config file that is one.
        weights: checkpoint.
        coco_json: COCO file with boxes; masks in it are not read.
        image_dir: folder of its images.
        on_progress: called with images done and images in all.
        on_failure: called with the file name of an image that cannot be used, and the reason;
            its boxes get no mask. Without it, such an image raises.

    Returns:
        The COCO document with `segmentation` (RLE of the whole image), `area` (of the mask),
        `score` (0..1) and `mask_source` in every non-crowd annotation; order and ids are kept,
        crowd annotations are unchanged. The source is `detector`; `filled_box` where the detector
        found no mask in the box (score 0); `none` for a box without a usable area, whose mask is
        empty, and for a box of an image that cannot be used, which has no mask.

    Raises:
        DatasetError: the file cannot be used, has boxes of classes that the weights do not know,
            or an image cannot be used and `on_failure` is not given.
    """
    reading = read_usable_boxes(coco_json, image_dir)
    model = load_trained_model(cfg, weights, categories=reading.categories)
    used = {a.category for record in reading.records for a in record.annotations}
    class_of = match_classes(reading.categories, used, model.categories, coco_json)
    document: dict[str, Any] = copy.deepcopy(dict(reading.document))
    write_empty_masks(document["annotations"], reading)
    for done, record in enumerate(reading.records, start=1):
        objects = [document["annotations"][item.position] for item in record.annotations]
        try:
            if objects:
                _label_image(model, record, objects, class_of)
        except DatasetError as error:
            if on_failure is None:
                raise
            on_failure(record.file_name, str(error))
            for annotation in objects:
                annotation.pop("segmentation", None)
                annotation |= {"score": 0.0, "mask_source": "none"}
        if on_progress is not None:
            on_progress(done, len(reading.records))
    return document


def match_classes(
    wanted: Sequence[Mapping[str, Any]],
    used: set[int],
    known: Sequence[Mapping[str, Any]],
    source: str | Path,
) -> dict[int, int]:
    """The weights' class of each of a file's, by name; two of one name are told apart by id.

    Args:
        wanted: `{"id", "name"}` by class index of the file.
        used: class indices that have boxes; others need no class.
        known: `{"id", "name"}` by class index of the weights.
        source: the file, for messages.

    Raises:
        DatasetError: a class that the weights do not know; it never becomes another one.
    """
    matched = {}
    for index in sorted(used):
        item = wanted[index]
        alike = [i for i, other in enumerate(known) if other["name"] == item["name"]]
        if len(alike) > 1:
            alike = [i for i in alike if id_text(known[i]["id"]) == id_text(item["id"])]
        if len(alike) != 1:
            raise DatasetError(
                f"{source}: category {item['name']!r} (id {item['id']}) is unknown to the weights; "
                f"they know {', '.join(str(other['name']) for other in known)}; rename the "
                "category, or name weights that were trained on it"
            )
        matched[index] = alike[0]
    return matched


def write_empty_masks(annotations: Sequence[dict[str, Any]], reading: CocoReading) -> None:
    """Give boxes that cannot be used an empty mask of score 0; changes the annotations.

    Args:
        annotations: of the document that was read, or of a copy.
        reading: says which boxes cannot be used.
    """
    records = {id_text(record.image_id): record for record in reading.records}
    for position in reading.left_out:
        annotation = annotations[position]
        record = records[id_text(annotation["image_id"])]
        empty = encode_mask(np.zeros((record.height, record.width), dtype=np.bool_))
        annotation |= {"segmentation": empty, "area": 0, "score": 0.0, "mask_source": "none"}
    if reading.left_out:
        logger.warning("%d boxes cannot be used; their masks are empty", len(reading.left_out))


def _label_image(
    model: TrainedModel,
    record: ImageRecord,
    objects: Sequence[dict[str, Any]],
    class_of: Mapping[int, int],
) -> None:
    """Write mask, area, score and source into the annotations of one image."""
    image_rgb, _ = read_image(record)
    sample = model.make_input(image_rgb)
    height, width = sample["image"].shape[1:]
    boxes = Boxes(torch.tensor([a.box_xyxy for a in record.annotations], dtype=torch.float32))
    boxes.scale(width / record.width, height / record.height)
    instances = Instances((height, width))
    instances.gt_boxes = boxes
    instances.gt_classes = torch.tensor([class_of[a.category] for a in record.annotations])
    sample["instances"] = instances
    with torch.inference_mode(), model.autocast():
        predicted = model.network.predict_masks_for_boxes([sample])[0].to("cpu")
    for annotation, mask, score in zip(
        objects, list_segmentations(predicted), predicted.scores.tolist(), strict=True
    ):
        area = int(mask_api.area(mask))
        _, _, box_width, box_height = mask_api.toBbox(mask)
        is_filled = score == 0 and area == box_width * box_height
        annotation |= {
            "segmentation": mask,
            "area": area,
            "score": float(score),
            "mask_source": "filled_box" if is_filled else "detector",
        }
