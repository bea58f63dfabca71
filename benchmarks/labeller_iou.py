"""How well the labeller's masks fit true ones, given the boxes of a COCO folder.

    python -m benchmarks.labeller_iou FOLDER --adapt train,val --minutes 10

FOLDER holds `annotations/instances_<split>.json` and the photos in `<split>/`. Masks are read to
measure only: the labeller sees photos and boxes. IoU is in pixels of the photo, crowds left out.
`off_outline` leaves out the pixels within one of the true outline as well: how much is a matter of
where the annotator drew it.
`--grabcut` measures the filled box and OpenCV's GrabCut beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api
from scipy.stats import spearmanr

from depthcache import decode_image
from pipeline.resources import labeller_path
from segtrain.labeller import (
    BoxedPhoto,
    adapt_labeller,
    choose_settings,
    label_boxes,
    load_labeller,
)

SMALL, LARGE = 32**2, 96**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapt", default="train,val", help="splits whose boxes are adapted to")
    parser.add_argument("--measure", default="train,val", help="splits whose masks measure")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--iterations", type=int, help="instead of minutes")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=Path("output/labeller-iou"))
    parser.add_argument("--every", type=int, default=1, help="measure every n-th box only")
    parser.add_argument("--set", nargs="*", default=[], help="settings, name=value")
    parser.add_argument("--grabcut", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    weights = arguments.weights or labeller_path()
    explicit = dict(_parse(item) for item in arguments.set)
    splits = {
        split: read_split(arguments.folder, split)
        for split in {*arguments.adapt.split(","), *arguments.measure.split(",")}
    }
    began = time.monotonic()
    if arguments.iterations:
        explicit["max_iterations"] = arguments.iterations
    if arguments.minutes or arguments.iterations:
        photos = [photo for split in arguments.adapt.split(",") for photo, _ in splits[split]]
        num_boxes = sum(len(photo.boxes) for photo in photos)
        weights = adapt_labeller(
            photos,
            choose_settings(num_boxes, weights, **explicit),
            arguments.output,
            start=weights,
            minutes=None if arguments.iterations else arguments.minutes,
            on_progress=_show,
        )
    adapted = time.monotonic() - began
    for split in arguments.measure.split(","):
        began = time.monotonic()
        result = measure(splits[split], weights, arguments.every)
        result |= {
            "split": split,
            "adapt_seconds": adapted,
            "label_seconds": time.monotonic() - began,
        }
        print(json.dumps(result))
        if arguments.grabcut:
            print(json.dumps({"split": split} | measure_rivals(splits[split], arguments.every)))


def read_split(folder: Path, split: str) -> list[tuple[BoxedPhoto, list[dict[str, Any]]]]:
    """Photos with boxes, and their annotations for measuring."""
    document = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    by_image = defaultdict(list)
    for annotation in document["annotations"]:
        if not annotation["iscrowd"] and min(annotation["bbox"][2:]) > 0:
            by_image[annotation["image_id"]].append(annotation)
    result = []
    for image in document["images"]:
        objects = by_image.get(image["id"])
        if objects:
            xywh = np.array([item["bbox"] for item in objects], np.float32)
            boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1)
            load = functools.partial(_load, folder / split / image["file_name"])
            result.append(
                (BoxedPhoto(name=image["file_name"], boxes=boxes, load_image=load), objects)
            )
    return result


def measure(
    photos: list[tuple[BoxedPhoto, list[dict[str, Any]]]], weights: Path, every: int
) -> dict[str, Any]:
    labeller = load_labeller(weights)
    ious, inner, areas, scores, filled = [], [], [], [], []
    seen = 0
    for photo, objects in photos:
        keep = [k for k in range(len(objects)) if (seen + k) % every == 0]
        seen += len(objects)
        if not keep:
            continue
        image = photo.load_image()
        classes = [item["category_id"] for item in objects]
        masks = label_boxes(labeller, image, photo.boxes, classes=classes)
        for k in keep:
            mask = masks[k]
            found, truth = mask.whole(), true_mask(objects[k], image.shape[:2])
            ious.append(iou(found, truth))
            inner.append(iou_off_outline(found, truth))
            areas.append(objects[k]["area"])
            scores.append(mask.score)
            filled.append(mask.source == "filled_box")
    return summarise(np.array(ious), np.array(areas)) | {
        "filled_boxes": round(float(np.mean(filled)), 4),
        "rank_correlation": round(float(spearmanr(scores, ious).statistic), 4),
        "mean_score": round(float(np.mean(scores)), 4),
        "mean_score_error": round(float(np.abs(np.subtract(scores, ious)).mean()), 4),
        "off_outline": summarise(np.array(inner), np.array(areas)),
    }


def measure_rivals(
    photos: list[tuple[BoxedPhoto, list[dict[str, Any]]]], every: int, *, with_grabcut: bool = True
) -> dict[str, Any]:
    """The filled box, and OpenCV's GrabCut started from it."""
    box_ious, cut_ious, areas = [], [], []
    seen = 0
    for photo, objects in photos:
        image = photo.load_image()
        height, width = image.shape[:2]
        for annotation, (x1, y1, x2, y2) in zip(objects, photo.boxes, strict=True):
            seen += 1
            if (seen - 1) % every:
                continue
            truth = true_mask(annotation, (height, width))
            c0, r0 = max(int(x1), 0), max(int(y1), 0)
            c1, r1 = min(int(np.ceil(x2)), width), min(int(np.ceil(y2)), height)
            box = np.zeros((height, width), np.bool_)
            box[r0:r1, c0:c1] = True
            box_ious.append(iou(box, truth))
            areas.append(annotation["area"])
            if with_grabcut:
                cut_ious.append(iou(_cut_out(image, box, (c0, r0, c1 - c0, r1 - r0)), truth))
    result = {"filled_box": summarise(np.array(box_ious), np.array(areas))}
    if with_grabcut:
        result["grabcut"] = summarise(np.array(cut_ious), np.array(areas))
    return result


def _cut_out(
    image: np.ndarray, box: np.ndarray, rectangle: tuple[int, int, int, int]
) -> np.ndarray:
    """GrabCut, five iterations; the box where it finds nothing or has no background to learn."""
    if box.all():
        return box
    labels = np.zeros(box.shape, np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, labels, rectangle, *models, 5, cv2.GC_INIT_WITH_RECT)
    found = (labels & 1).astype(np.bool_)
    return found if found.any() else box


def true_mask(annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_api.frPyObjects(segmentation, *size)
    return mask_api.decode(segmentation).astype(np.bool_)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def iou_off_outline(found: np.ndarray, truth: np.ndarray) -> float:
    """IoU of what is further than one pixel from the true outline; the IoU where nothing is."""
    padded, kernel = np.pad(truth, 1).astype(np.uint8), np.ones((3, 3), np.uint8)
    counted = cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, kernel)[1:-1, 1:-1] == 0
    a, b = found & counted, truth & counted
    return iou(a, b) if (a | b).any() else iou(found, truth)


def summarise(ious: np.ndarray, areas: np.ndarray) -> dict[str, float]:
    groups = {
        "mean_iou": ious,
        "small": ious[areas < SMALL],
        "medium": ious[(areas >= SMALL) & (areas < LARGE)],
        "large": ious[areas >= LARGE],
    }
    shown = {name: round(float(values.mean()), 4) for name, values in groups.items() if len(values)}
    return {"objects": len(ious)} | shown | {"at_least_75": round(float((ious >= 0.75).mean()), 4)}


def _load(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes())


def _parse(item: str) -> tuple[str, Any]:
    name, _, value = item.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _show(done: int, total: int, losses: Any) -> None:
    if done % 50 == 0:
        print(done, total, {name: round(value, 3) for name, value in losses.items()}, flush=True)


if __name__ == "__main__":
    main()
