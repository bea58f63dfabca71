"""Boxes in, masks out: give every annotated box of a COCO file a mask and a score."""

from __future__ import annotations

import copy
import json
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_api

from segtrain.data.coco_boxes import ImageRecord, clip_xywh_box
from segtrain.data.mapper import read_image
from segtrain.errors import DatasetError
from segtrain.use.inference import TrainedModel, encode_mask, list_segmentations, load_trained_model

logger = logging.getLogger(__name__)


def label_dataset(
    cfg: Any,
    weights: Path,
    coco_json: Path,
    image_dir: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict a mask for every box that is not a crowd.

    Args:
        cfg: the loaded config file.
        weights: checkpoint.
        coco_json: COCO file with boxes; masks in it are not read.
        image_dir: folder of its images.
        on_progress: called with images done and images in all.

    Returns:
        The COCO document with `segmentation` (RLE of the whole image), `area` (of the mask) and
        `score` (0..1) in every non-crowd annotation; order and ids are kept, crowd annotations
        are unchanged. A box without a usable area gets an empty mask of score 0.

    Raises:
        DatasetError: the file is no COCO file, names classes that the weights do not know, or an
            image cannot be used.
    """
    document = _read_document(coco_json)
    model = load_trained_model(cfg, weights, categories=document["categories"])
    class_of = _match_categories(document["categories"], model.categories, coco_json)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd", 0):
            by_image[annotation["image_id"]].append(annotation)
    num_empty = 0
    for done, image in enumerate(document["images"], start=1):
        annotations = by_image.get(image["id"], [])
        if annotations:
            record = ImageRecord(
                image_id=image["id"],
                path=str(image_dir / image["file_name"]),
                file_name=image["file_name"],
                height=int(image["height"]),
                width=int(image["width"]),
                annotations=(),
            )
            num_empty += _label_image(model, record, annotations, class_of)
        if on_progress is not None:
            on_progress(done, len(document["images"]))
    if num_empty:
        logger.warning("%d boxes have no usable area; their masks are empty", num_empty)
    return document


def _label_image(
    model: TrainedModel,
    record: ImageRecord,
    annotations: list[dict[str, Any]],
    class_of: dict[int, int],
) -> int:
    """Write mask, area and score into the annotations of one image.

    Returns:
        Number of boxes without a usable area.
    """
    image_rgb, _ = read_image(record)
    usable: list[tuple[dict[str, Any], tuple[float, float, float, float]]] = []
    num_empty = 0
    for annotation in annotations:
        box, _ = clip_xywh_box(annotation.get("bbox"), record.width, record.height)
        if box is None:
            num_empty += 1
            empty = np.zeros((record.height, record.width), dtype=np.bool_)
            annotation |= {"segmentation": encode_mask(empty), "area": 0, "score": 0.0}
        else:
            usable.append((annotation, box))
    if not usable:
        return num_empty

    sample = model.make_input(image_rgb)
    height, width = sample["image"].shape[1:]
    boxes = Boxes(torch.tensor([box for _, box in usable], dtype=torch.float32))
    boxes.scale(width / record.width, height / record.height)
    instances = Instances((height, width))
    instances.gt_boxes = boxes
    instances.gt_classes = torch.tensor([class_of[a["category_id"]] for a, _ in usable])
    sample["instances"] = instances
    with torch.inference_mode(), model.autocast():
        predicted = model.network.predict_masks_for_boxes([sample])[0].to("cpu")
    assert len(predicted) == len(usable)
    segmentations = list_segmentations(predicted)
    for index, (annotation, _) in enumerate(usable):
        encoded = segmentations[index]
        annotation["segmentation"] = encoded
        annotation["area"] = int(mask_api.area(encoded))
        annotation["score"] = float(predicted.scores[index])
    return num_empty


def _read_document(coco_json: Path) -> dict[str, Any]:
    try:
        document = json.loads(coco_json.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{coco_json} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= set(
        document
    ):
        raise DatasetError(f"{coco_json} lacks images, annotations or categories")
    return copy.deepcopy(document)


def _match_categories(
    wanted: list[dict[str, Any]], known: list[dict[str, Any]], source: Path
) -> dict[int, int]:
    """Contiguous class index by category id of the file: by name, else by id."""
    by_name = {str(item["name"]): index for index, item in enumerate(known)}
    by_id = {item["id"]: index for index, item in enumerate(known)}
    matched: dict[int, int] = {}
    for item in wanted:
        index = by_name.get(str(item["name"]), by_id.get(item["id"]))
        if index is None:
            raise DatasetError(
                f"{source}: category {item['name']!r} (id {item['id']}) is unknown to the weights; "
                f"they know {', '.join(by_name)}"
            )
        matched[item["id"]] = index
    return matched
