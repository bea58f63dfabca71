"""Mask AP as Cityscapes defines it, by the data set's own tool.

COCO's AP and Cityscapes' differ: the latter ignores instances below 100 pixels and predictions on
void or group regions, and averages over classes that occur.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from segtrain.data.coco_boxes import ImageRecord
from segtrain.errors import DatasetError

_IMAGE_SUFFIX = "_leftImg8bit"
_TRUTH_SUFFIX = "_gtFine_instanceIds.png"


def measure_cityscapes_precision(
    records: Sequence[ImageRecord],
    results: Sequence[dict[str, Any]],
    truth_folder: Path,
    out_dir: Path,
) -> dict[str, Any]:
    """AP and AP50 over classes and per class.

    Args:
        records: images of the split, named `<city>/<name>_leftImg8bit.png`.
        results: COCO results with RLE masks; category ids are Cityscapes' label ids.
        truth_folder: `gtFine/<split>` with `<city>/<name>_gtFine_instanceIds.png`.
        out_dir: gets one text file an image and one PNG a mask, as the test server takes them.

    Returns:
        `AP`, `AP50` in percent (None when no instance counts) and `per_category`.

    Raises:
        DatasetError: a ground-truth picture is missing.
    """
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling
    from cityscapesscripts.evaluation.instances2dict import instances2dict

    truths = [str(_truth_picture(record, truth_folder)) for record in records]
    predictions = write_cityscapes_results(records, results, out_dir)
    tool: Any = evalInstanceLevelSemanticLabeling
    settings = SimpleNamespace(**vars(tool.args))
    settings.quiet = True
    settings.predictionPath = os.path.abspath(out_dir)  # noqa: PTH100 - the tool compares it so
    tool.setInstanceLabels(settings)
    # The tool's own entry point does the same, but writes files into its package and the cwd.
    with _numpy_with_in1d(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        matches = tool.matchGtWithPreds(
            [str(path) for path in predictions], truths, instances2dict(truths), settings
        )
        averages = tool.computeAverages(tool.evaluateMatches(matches, settings), settings)
    return {
        "AP": _percent(averages["allAp"]),
        "AP50": _percent(averages["allAp50%"]),
        "per_category": {
            name: _percent(values["ap"]) for name, values in averages["classes"].items()
        },
    }


def write_cityscapes_results(
    records: Sequence[ImageRecord], results: Sequence[dict[str, Any]], out_dir: Path
) -> list[Path]:
    """Write results in the form that the Cityscapes tool and test server take.

    Args:
        records: images; one without results gets an empty text file.
        results: COCO results with RLE masks; category ids are Cityscapes' label ids.
        out_dir: made anew.

    Returns:
        The text file of each image.
    """
    shutil.rmtree(out_dir, ignore_errors=True)
    out_dir.mkdir(parents=True)
    by_image: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    files = []
    for record in records:
        name = Path(record.file_name).stem
        lines = []
        for index, result in enumerate(by_image[record.image_id]):
            picture = f"{name}_{index}.png"
            mask = np.asarray(mask_api.decode(result["segmentation"]), dtype=np.uint8)
            Image.fromarray(mask * 255).save(out_dir / picture)
            lines.append(f"{picture} {result['category_id']} {result['score']:.6f}\n")
        path = out_dir / f"{name}.txt"
        path.write_text("".join(lines), encoding="utf-8")
        files.append(path)
    return files


def _truth_picture(record: ImageRecord, truth_folder: Path) -> Path:
    name = record.file_name.removesuffix(Path(record.file_name).suffix)
    path = truth_folder / f"{name.removesuffix(_IMAGE_SUFFIX)}{_TRUTH_SUFFIX}"
    if not path.is_file():
        raise DatasetError(
            f"there is no {path} for image {record.file_name}; it comes with Cityscapes' "
            "gtFine_trainvaltest.zip. Set data.test_cityscapes_truth to gtFine/<split>, or to null "
            "for COCO's AP alone"
        )
    return path


@contextlib.contextmanager
def _numpy_with_in1d() -> Iterator[None]:
    """Lend the tool `in1d`: version 2.3 calls it, numpy 2.4 has dropped it."""
    names = vars(np)
    if "in1d" in names:
        yield
        return
    names["in1d"] = lambda values, wanted: np.isin(values, wanted).ravel()
    try:
        yield
    finally:
        del names["in1d"]


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else 100.0 * float(value)
