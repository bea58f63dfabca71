"""How much a number over test images would change with other images: the bootstrap.

Images are drawn with replacement, as many as there are; the deviation of a metric over such draws
estimates its standard error (Efron, 1979). Every model gets the same draws, so that differences are
paired: what makes an image hard for both models cancels.

Shape legend: D draws, N images.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segtrain.data.coco_reader import CocoReading
from segtrain.use.evaluation import run_coco_evaluation

NUM_DRAWS = 200


def draw_images(num_images: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """(D, N) indices of images."""
    return np.random.default_rng(seed).integers(num_images, size=(NUM_DRAWS, num_images))


def resampled_precision(
    reading: CocoReading, results: list[dict[str, Any]], kind: str
) -> npt.NDArray[np.float64]:
    """COCO's AP of every draw, in percent, (D,).

    Args:
        reading: of the annotation file, with masks.
        results: COCO result list with the file's ids.
        kind: `bbox` or `segm`.
    """
    evaluation = run_coco_evaluation(reading, results, kind)
    if evaluation is None:
        return np.zeros(NUM_DRAWS)
    # Matches of an image do not depend on the other images: only their sums are made again.
    per_image = np.empty(len(evaluation.evalImgs), dtype=object)
    per_image[:] = evaluation.evalImgs
    categories, areas = len(evaluation.params.catIds), len(evaluation.params.areaRng)
    images = len(evaluation.params.imgIds)
    whole = per_image.reshape(categories, areas, images)[:, :1]
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    evaluation._paramsEval = copy.deepcopy(evaluation.params)
    found = []
    for chosen in draw_images(images):
        evaluation.evalImgs = whole[:, :, chosen].reshape(-1).tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        precision = evaluation.eval["precision"]
        found.append(float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0)
    return 100.0 * np.array(found)


def resampled_means(values_of_image: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Mean over the objects of the images of every draw, (D,).

    Args:
        values_of_image: of each image's objects; an image may have none.
    """
    sums = np.array([float(np.sum(values)) for values in values_of_image])
    counts = np.array([len(values) for values in values_of_image])
    drawn = draw_images(len(values_of_image))
    return np.asarray(sums[drawn].sum(1) / np.maximum(counts[drawn].sum(1), 1))
