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

from segtrain.data.coco_boxes import read_coco_boxes
from segtrain.data.mapper import read_image
from segtrain.run.experiment import read_experiment
from segtrain.run.train_settings import require_num_classes
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
    data = read_experiment(cfg).data
    dataset = read_coco_boxes(
        data.test_json,
        data.test_images,
        keep_images_without_boxes=True,
        # COCO's test-dev lists images and categories only.
        needs_annotations=False,
    )
    require_num_classes(dataset, data.num_classes, data.test_json)
    model = load_trained_model(cfg, weights, categories=dataset.categories)
    categories = match_categories(model.categories, dataset.categories)

    results: list[dict[str, Any]] = []
    seconds = 0.0
    for done, record in enumerate(dataset.records, start=1):
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
            on_progress(done, len(dataset.records))

    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "results.json").write_text(json.dumps(results))
    metrics: dict[str, Any] = {
        "num_images": len(dataset.records),
        "num_results": len(results),
        "seconds_per_image": seconds / len(dataset.records),
    }
    if dataset.num_boxes:
        metrics |= measure_average_precision(Path(data.test_json), results)
        if data.test_cityscapes_truth is not None:
            metrics["cityscapes"] = measure_cityscapes_precision(
                dataset.records,
                results,
                Path(data.test_cityscapes_truth),
                out_dir / "cityscapes",
            )
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2))
    return metrics


def match_categories(
    known: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The test file's category of each class that the weights know.

    Args:
        known: `{"id", "name"}` by class index, as the weights name them.
        wanted: the test file's categories, in the order of their ids.

    Returns:
        `wanted` in the order of `known` when both name the same classes, whatever ids each file
        uses; else as it is, class by class, which the log tells.
    """
    by_name = {item["name"]: item for item in wanted}
    if len(by_name) == len(wanted) and {item["name"] for item in known} == set(by_name):
        return [by_name[item["name"]] for item in known]
    logger.warning(
        "the weights know the classes %s, the test file names %s; they are taken in this order",
        ", ".join(str(item["name"]) for item in known[:10]),
        ", ".join(str(item["name"]) for item in wanted[:10]),
    )
    return wanted


def measure_average_precision(
    annotation_file: Path, results: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """COCO's AP of boxes and masks.

    Args:
        annotation_file: COCO file with boxes and masks; without masks only boxes are measured.
        results: COCO result list.

    Returns:
        `{"bbox": {...}, "segm": {...}}` in percent.
    """
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
    has_masks = any(item.get("segmentation") for item in truth.dataset["annotations"])
    kinds = ["bbox", "segm"] if has_masks else ["bbox"]
    return {kind: _measure_kind(truth, results, kind) for kind in kinds}


def _measure_kind(truth: Any, results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(_NAMES, 0.0) | {"per_category": {}}
    # For masks COCO sizes objects by mask area, which loadRes takes from the box if there is one.
    rows = [{k: v for k, v in r.items() if not (kind == "segm" and k == "bbox")} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = {
        name: _percent(value) for name, value in zip(_NAMES, evaluation.stats[:6], strict=True)
    }
    # precision: IoU thresholds, recalls, categories, areas, detections per image
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    metrics["per_category"] = {
        truth.cats[category]["name"]: _percent(
            float(values[values > -1].mean()) if (values > -1).any() else -1.0
        )
        for category, values in zip(
            evaluation.params.catIds, np.moveaxis(precision, 2, 0), strict=True
        )
    }
    return metrics


def _percent(value: float) -> float | None:
    return None if value < 0 else 100.0 * float(value)
