"""AP of the truth against itself is 100, whatever form the annotation file has."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.category_matching import match_categories
from segtrain.data.segmentations import encode_mask
from segtrain.errors import DatasetError
from segtrain.use.evaluation import measure_average_precision

BOXES = [[10, 10, 40, 30], [60, 40, 30, 40], [20, 20, 50, 50], [5, 5, 30, 20]]


def _truth(**fields: Any) -> dict[str, Any]:
    """Four objects in two images; a callable gets the number of the annotation."""
    annotations = []
    for number, (x, y, w, h) in enumerate(BOXES):
        entry: dict[str, Any] = {
            "id": number,
            "image_id": 1 + number // 2,
            "category_id": 1 + number % 2,
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
        }
        for name, value in fields.items():
            entry[name] = value(number) if callable(value) else value
        annotations.append(entry)
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 90} for i in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }


def _results() -> list[dict[str, Any]]:
    results = []
    for number, (x, y, w, h) in enumerate(BOXES):
        mask = np.zeros((90, 120), dtype=bool)
        mask[y : y + h, x : x + w] = True
        results.append(
            {
                "image_id": 1 + number // 2,
                "category_id": 1 + number % 2,
                "bbox": [x, y, w, h],
                "score": 0.9,
                "segmentation": encode_mask(mask),
            }
        )
    return results


def _measure(tmp_path: Path, truth: dict[str, Any], results: Any = None) -> dict[str, Any]:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return measure_average_precision(path, _results() if results is None else results)


@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(_truth(), id="annotation-id-0"),
        pytest.param(_truth(id=lambda n: f"9ab1-{n}"), id="uuids"),
        pytest.param(_truth(id=None), id="no-ids"),
        pytest.param(_truth(image_id=lambda n: str(1 + n // 2)), id="text-references"),
        pytest.param(_truth(area=None), id="no-area"),
        pytest.param(_truth(area=1e300), id="impossible-area"),
        pytest.param(_truth(iscrowd="0"), id="flag-as-text"),
        pytest.param(
            _truth(
                segmentation=lambda n: [] if n == 2 else _truth()["annotations"][n]["segmentation"]
            ),
            id="one-without-mask",
        ),
        pytest.param(_truth(segmentation=None), id="no-masks"),
    ],
)
def test_truth_against_itself_is_100(tmp_path: Path, truth: dict[str, Any]) -> None:
    metrics = _measure(tmp_path, truth)
    assert set(metrics) == (
        {"bbox", "segm"} if truth["annotations"][0]["segmentation"] else {"bbox"}
    )
    for measured in metrics.values():
        assert measured["AP"] == pytest.approx(100)


def test_boxes_that_training_leaves_out_are_no_objects(tmp_path: Path) -> None:
    truth = _truth()
    truth["annotations"][1]["bbox"] = [90, 80, -30, -40]
    results = _results()
    del results[1]
    assert _measure(tmp_path, truth, results)["bbox"]["AP"] == pytest.approx(100)


def test_boxes_are_clipped_on_both_sides(tmp_path: Path) -> None:
    truth = _truth()
    truth["annotations"][3]["bbox"] = [-20, 5, 55, 20]
    results = _results()
    results[3]["bbox"] = [0, 5, 35, 20]
    assert _measure(tmp_path, truth, results)["bbox"]["AP"] == pytest.approx(100)
    results[3]["bbox"] = [-20, 5, 55, 20]
    assert _measure(tmp_path, truth, results)["bbox"]["AP"] == pytest.approx(100)


def test_an_object_without_mask_counts_neither_way_for_masks(tmp_path: Path) -> None:
    truth = _truth()
    truth["annotations"][2]["segmentation"] = []
    without = [result for number, result in enumerate(_results()) if number != 2]
    found, missed = _measure(tmp_path, truth), _measure(tmp_path, truth, without)
    assert found["segm"]["AP"] == missed["segm"]["AP"] == pytest.approx(100)
    assert missed["bbox"]["AP"] < 80


@pytest.mark.parametrize(
    "segmentation",
    [[[1e9, 40, 90, 40, 90, 80, 60, 80]], [[1, 2, 3, 4]], {"size": [90, 120], "counts": [0, 9]}],
)
def test_a_mask_that_cannot_be_used_is_refused_by_its_annotation(
    tmp_path: Path, segmentation: Any
) -> None:
    truth = _truth()
    truth["annotations"][2]["segmentation"] = segmentation
    with pytest.raises(DatasetError, match="annotation 2, image 2"):
        _measure(tmp_path, truth)


def test_results_of_another_file_are_refused(tmp_path: Path) -> None:
    for key in ("image_id", "category_id"):
        results = copy.deepcopy(_results())
        results[1][key] = 99
        with pytest.raises(DatasetError, match=r"results\[1\].*99"):
            _measure(tmp_path, _truth(), results)


def test_a_class_never_stands_for_another() -> None:
    known = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    with pytest.raises(DatasetError, match="washer"):
        match_categories(known, [{"id": 1, "name": "washer"}, {"id": 2, "name": "bolt"}])
