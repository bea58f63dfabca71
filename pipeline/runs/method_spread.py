"""How far runs are apart, beside what other test images would change."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.report.run_result import RunResult
from segtrain.run.resume_rules import describe_file

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)

MAX_IMAGES = 1000

Draws = dict[str, npt.NDArray[np.float64]]
"""`bbox` and `segm` AP and `given_boxes` IoU, in percent, of every draw of test images."""


def compare_results(results: Sequence[RunResult]) -> list[RunResult]:
    """The results with what the masks for given boxes are, and all spreads.

    They stay as they are without annotated masks, where runs have different test files, and where
    the test images are many: another pass over COCO's 5,000 is not what a report is for.
    """
    if any("segm" not in r.metrics or r.metrics["segm"]["AP"] is None for r in results):
        return list(results)
    if len({result.experiment.data.test_json for result in results}) > 1 or any(
        result.weights is None or not result.weights.is_file() for result in results
    ):
        return list(results)
    num_images = max(int(result.metrics.get("num_images", 0)) for result in results)
    if num_images > MAX_IMAGES:
        logger.info(
            "report: IoU given the box and spreads are measured on at most %d images, not on %d",
            MAX_IMAGES, num_images,
        )  # fmt: skip
        return list(results)
    ious, draws = {}, {}
    for result in results:
        assert result.weights is not None
        folder = result.folder / "eval"
        file = folder / f"given_boxes-{describe_file(str(result.weights))[-12:]}.json"
        ious[result.name] = measure_given_boxes(result.experiment, result.weights, file)
        draws[result.name] = draw_metrics(result.experiment, folder, ious[result.name])
    metrics = {result.name: dict(result.metrics) for result in results}
    add_spreads(metrics, ious, draws)
    return [dataclasses.replace(result, metrics=metrics[result.name]) for result in results]


def measure_given_boxes(experiment: Experiment, weights: Path, file: Path) -> list[list[float]]:
    """IoU of the masks for the test split's boxes, by image; measured once, kept in `file`."""
    if not file.is_file():
        from segtrain.use import given_boxes

        data = experiment.data
        found = given_boxes.measure_given_boxes(
            experiment, weights, Path(data.test_json), Path(data.test_images)
        )
        file.write_text(json.dumps(found))
    ious: list[list[float]] = json.loads(file.read_text())
    return ious


def draw_metrics(experiment: Experiment, eval_folder: Path, ious: list[list[float]]) -> Draws:
    """The metrics of every draw of test images, the same draws for every model.

    Args:
        experiment: names the test split.
        eval_folder: of its evaluation, with results.json.
        ious: of `measure_given_boxes`.
    """
    from segtrain.data.coco_reader import read_coco_file
    from segtrain.use.spread import resampled_means, resampled_precision

    data = experiment.data
    reading = read_coco_file(data.test_json, data.test_images, masks=True)
    results = json.loads((eval_folder / "results.json").read_text())
    return {
        "bbox": resampled_precision(reading, results, "bbox"),
        "segm": resampled_precision(reading, results, "segm"),
        "given_boxes": 100 * resampled_means(ious),
    }


def add_spreads(
    metrics_by_run: Mapping[str, dict[str, Any]],
    ious_by_run: Mapping[str, list[list[float]]],
    draws_by_run: Mapping[str, Draws],
) -> None:
    """Write into the metrics: `given_boxes`, `spread` of each, and `differences` of the last run.

    Args:
        metrics_by_run: COCO metrics; changed.
        ious_by_run: of `measure_given_boxes`.
        draws_by_run: of `draw_metrics`.
    """
    for name, metrics in metrics_by_run.items():
        values = [value for image in ious_by_run[name] for value in image]
        metrics["given_boxes"] = {"IoU": 100 * float(np.mean(values))}
        metrics["spread"] = {
            kind: float(drawn.std(ddof=1)) for kind, drawn in draws_by_run[name].items()
        }
    *others, last = metrics_by_run
    if not others:
        return
    metrics_by_run[last]["differences"] = {
        other: {
            kind: {
                "mean": metrics_by_run[last][kind][key] - metrics_by_run[other][kind][key],
                "spread": float((draws_by_run[last][kind] - draws_by_run[other][kind]).std(ddof=1)),
            }
            for kind, key in (("segm", "AP"), ("given_boxes", "IoU"))
        }
        for other in others
    }
