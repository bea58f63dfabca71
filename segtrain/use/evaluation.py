"""Box and mask AP of a trained model on a COCO file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from depthcache.storage.durable_files import write_durably
from segtrain.data.box_coordinates import is_number
from segtrain.data.category_matching import match_categories
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import CocoReading, id_text, read_coco_file
from segtrain.data.mapper import read_image
from segtrain.data.segmentations import encode_segmentation
from segtrain.errors import DatasetError
from segtrain.run.dataset_records import read_test_data
from segtrain.run.experiment import read_experiment
from segtrain.use.cityscapes_evaluation import measure_cityscapes_precision
from segtrain.use.inference import instances_to_results, load_trained_model

logger = logging.getLogger(__name__)

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate_model(
    cfg: Any,
    weights: Path,
    out_dir: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Detect on the config's test set and compare with its annotations.

    Memory does not grow with the masks: each image's masks are run-length encoded at once.

    Args:
        cfg: the loaded config file.
        weights: checkpoint.
        out_dir: gets results.json (a COCO result list, as the test-dev server takes it) and
            metrics.json.
        on_progress: called with images done and images in all.

    Returns:
        `bbox` and `segm`: AP, AP50, AP75, APs, APm, APl in percent (None where no object counts)
        and `per_category`; with `data.test_cityscapes_truth` also `cityscapes`; `num_images`,
        `num_results`, `seconds_per_image`. Without annotations in the file (test-dev), only the
        counts.
    """
    experiment = read_experiment(cfg)
    data, reading = experiment.data, read_test_data(experiment)
    model = load_trained_model(cfg, weights, categories=reading.categories)
    categories = match_categories(model.categories, reading.categories)

    results: list[dict[str, Any]] = []
    seconds = 0.0
    for done, record in enumerate(reading.records, start=1):
        image_rgb, _ = read_image(record)
        started = time.monotonic()
        instances = model.detect(image_rgb)
        seconds += time.monotonic() - started
        results += instances_to_results(
            instances,
            image_id=record.image_id,
            categories=categories,
        )
        if on_progress is not None:
            on_progress(done, len(reading.records))

    out_dir.mkdir(parents=True, exist_ok=True)
    write_durably(out_dir / "results.json", json.dumps(results).encode())
    metrics: dict[str, Any] = {
        "num_images": len(reading.records),
        "num_results": len(results),
        "seconds_per_image": seconds / len(reading.records),
    }
    if any(record.annotations for record in reading.records):
        metrics |= compare_with_truth(reading, results)
        if data.test_cityscapes_truth is not None:
            metrics["cityscapes"] = measure_cityscapes_precision(
                reading.records,
                results,
                Path(data.test_cityscapes_truth),
                out_dir / "cityscapes",
            )
    write_durably(out_dir / "metrics.json", json.dumps(metrics, indent=2).encode())
    return metrics


def measure_average_precision(
    annotation_file: Path, results: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """COCO's AP of boxes and masks.

    Args:
        annotation_file: COCO file with boxes and masks; without masks only boxes are measured.
        results: COCO result list.

    Returns:
        `{"bbox": {...}, "segm": {...}}` in percent.

    Raises:
        DatasetError: the file, or a mask in it, cannot be used; a result of another file.
    """
    reading = read_coco_file(annotation_file, "", masks=True)
    require_usable(reading.findings, annotation_file)
    return compare_with_truth(reading, results)


def compare_with_truth(
    reading: CocoReading, results: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """COCO's AP, over exactly the boxes that training counts.

    Boxes of both sides are clipped to their image. An object without a mask counts for boxes; for
    masks it is a region that counts neither way, like a crowd. pycocotools gets ids of its own: to
    it, annotation 0 means "no match", and text is no id. An `area` that is absent or impossible is
    computed from the mask, else from the box.

    Args:
        reading: of the annotation file, with masks.
        results: COCO result list with the file's ids.

    Returns:
        As `measure_average_precision`.
    """
    found = _number_results(reading, results)
    num_masks = sum(a.segmentation is not None for r in reading.records for a in r.annotations)
    metrics = {"bbox": _measure_kind(reading, found, "bbox")}
    if num_masks and (not found or any("segmentation" in row for row in found)):
        num_without = sum(len(r.annotations) for r in reading.records) - num_masks
        if num_without:
            logger.warning(
                "%d objects have no mask; for mask AP their boxes count neither way", num_without
            )
        metrics["segm"] = _measure_kind(reading, found, "segm")
    return metrics


def _number_results(reading: CocoReading, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results with the evaluator's ids and clipped boxes."""
    images = {id_text(record.image_id): i for i, record in enumerate(reading.records)}
    categories = {id_text(item["id"]): i for i, item in enumerate(reading.categories)}
    found = []
    for position, result in enumerate(results):
        image = images.get(id_text(result["image_id"]))
        category = categories.get(id_text(result["category_id"]))
        if image is None or category is None:
            raise DatasetError(
                f"results[{position}] has image {result['image_id']!r} and category "
                f"{result['category_id']!r}, of which the annotation file lacks one"
            )
        record = reading.records[image]
        row: dict[str, Any] = {
            key: result[key] for key in ("score", "segmentation") if key in result
        }
        x, y, width, height = result["bbox"]
        x1, y1 = max(x, 0.0), max(y, 0.0)
        x2, y2 = min(x + width, record.width), min(y + height, record.height)
        row["bbox"] = [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]
        found.append(row | {"image_id": image + 1, "category_id": category + 1})
    return found


def _number_truth(reading: CocoReading, kind: str) -> Any:
    """The annotation file as pycocotools' truth, with the evaluator's ids."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, record in enumerate(reading.records, start=1):
        size = (record.height, record.width)
        flagged = [*((a, 0) for a in record.annotations), *((a, 1) for a in record.crowds)]
        for item, is_crowd in flagged:
            x1, y1, x2, y2 = item.box_xyxy
            box = [x1, y1, x2 - x1, y2 - y1]
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": item.category + 1,
                "bbox": box,
                "iscrowd": is_crowd,
            }
            mask = item.segmentation and encode_segmentation(item.segmentation, *size)
            mask_area = int(mask_api.area(mask)) if mask else 0
            given = reading.document["annotations"][item.position].get("area")
            is_possible = is_number(given) and 0 < given <= record.height * record.width
            entry["area"] = given if is_possible else mask_area or box[2] * box[3]
            if kind == "segm":
                corners = [x1, y1, x2, y1, x2, y2, x1, y2]
                entry["segmentation"] = mask or encode_segmentation([corners], *size)
                entry["iscrowd"] |= int(mask_area == 0)
            annotations.append(entry)
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": i, "height": record.height, "width": record.width}
            for i, record in enumerate(reading.records, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": c["name"]} for i, c in enumerate(reading.categories)],
    }
    truth.createIndex()
    return truth


def run_coco_evaluation(reading: CocoReading, results: list[dict[str, Any]], kind: str) -> Any:
    """The evaluation of pycocotools, done but for its summary; None without a result of this kind.

    Args:
        reading: of the annotation file, with masks.
        results: COCO result list with the file's ids.
        kind: `bbox` or `segm`.
    """
    return _evaluate_kind(reading, _number_results(reading, results), kind)


def _evaluate_kind(reading: CocoReading, found: list[dict[str, Any]], kind: str) -> Any:
    from pycocotools.cocoeval import COCOeval

    # For masks COCO sizes objects by mask area, which loadRes takes from the box if there is one.
    rows = [
        {key: value for key, value in row.items() if not (kind == "segm" and key == "bbox")}
        for row in found
        if kind == "bbox" or "segmentation" in row
    ]
    if not rows:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _number_truth(reading, kind)
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _measure_kind(reading: CocoReading, found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    evaluation = _evaluate_kind(reading, found, kind)
    if evaluation is None:
        return dict.fromkeys(_NAMES, 0.0) | {"per_category": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    metrics: dict[str, Any] = {
        name: _percent(value) for name, value in zip(_NAMES, evaluation.stats[:6], strict=True)
    }
    # precision: IoU thresholds, recalls, categories, areas, detections per image
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    metrics["per_category"] = {
        evaluation.cocoGt.cats[category]["name"]: _percent(
            float(values[values > -1].mean()) if (values > -1).any() else -1.0
        )
        for category, values in zip(
            evaluation.params.catIds, np.moveaxis(precision, 2, 0), strict=True
        )
    }
    return metrics


def _percent(value: float) -> float | None:
    return None if value < 0 else 100.0 * float(value)
