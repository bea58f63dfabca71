"""Reading a COCO file: bad boxes, gaps in ids, and masks that must not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtrain.data.box_coordinates import clip_box
from segtrain.data.coco_boxes import read_coco_boxes
from segtrain.errors import DatasetError


def _document() -> dict[str, Any]:
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 90, "name": "cup"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 90, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [30, 20, 100, 100]},
        ],
    }


def _write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return path


def test_ids_with_gaps_become_contiguous_and_boxes_are_clipped(tmp_path: Path) -> None:
    dataset = read_coco_boxes(_write(tmp_path, _document()), tmp_path)
    assert [c["id"] for c in dataset.categories] == [3, 90]
    assert [r.image_id for r in dataset.records] == [4]
    first, second = dataset.records[0].annotations
    assert (first.category, first.box_xyxy) == (1, (1, 2, 11, 22))
    assert (second.category, second.box_xyxy) == (0, (30, 20, 40, 30))
    assert dataset.dropped == {"image without usable boxes": 1}


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([float("nan"), 0, 3, 3], "not finite"),
        ([0, 0, float("inf"), 3], "not finite"),
        ([5, 5, 0, 3], "no area"),
        ([5, 5, -2, 3], "inverted"),
        ([50, 5, 2, 3], "outside"),
        ([0, -9, 2, 3], "outside"),
        ([1, 2, 3], "four numbers"),
        (None, "four numbers"),
        (["a", 1, 2, 3], "four numbers"),
    ],
)
def test_bad_boxes_are_counted_or_refused(tmp_path: Path, bbox: Any, problem: str) -> None:
    document = _document()
    document["annotations"][1]["bbox"] = bbox
    path = _write(tmp_path, document)
    dataset = read_coco_boxes(path, tmp_path)
    assert dataset.num_boxes == 1
    assert any(problem in reason for reason in dataset.dropped)
    with pytest.raises(DatasetError, match=problem):
        read_coco_boxes(path, tmp_path, bad_boxes="refuse")


def test_clipped_box_has_area() -> None:
    assert clip_box([-5, -5, 6, 7], 40, 30) == ((0, 0, 1, 2), "box_partly_outside")


def test_masks_are_never_read_unless_asked_for(tmp_path: Path) -> None:
    plain = read_coco_boxes(_write(tmp_path, _document()), tmp_path)
    corrupted = _document()
    for annotation in corrupted["annotations"]:
        annotation["segmentation"] = {"size": "nonsense", "counts": [-1, "x"]}
        annotation["area"] = "broken"
    path = _write(tmp_path, corrupted)
    assert read_coco_boxes(path, tmp_path) == plain
    with pytest.raises(DatasetError, match=r"annotation 1.*mask has another size.*'nonsense'"):
        read_coco_boxes(path, tmp_path, keep_masks=True)


def test_crowds_are_left_out(tmp_path: Path) -> None:
    document = _document()
    document["annotations"][1]["iscrowd"] = 1
    dataset = read_coco_boxes(_write(tmp_path, document), tmp_path)
    assert dataset.num_boxes == 1
    assert dataset.dropped["crowd annotation"] == 1


def test_images_without_boxes_may_stay(tmp_path: Path) -> None:
    dataset = read_coco_boxes(
        _write(tmp_path, _document()), tmp_path, keep_images_without_boxes=True
    )
    assert [len(r.annotations) for r in dataset.records] == [2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": []}, "lists no categories"),
        ({"images": "x"}, "no list 'images'"),
        ({"annotations": []}, "no image is left"),
        ({"annotations": [{"id": 1, "image_id": 77, "category_id": 3, "bbox": []}]}, "77"),
        ({"annotations": [{"id": 1, "image_id": 4, "category_id": 8, "bbox": []}]}, "category 8"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "share an id"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_coco_boxes(_write(tmp_path, _document() | change), tmp_path)


def test_absent_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no annotation file"):
        read_coco_boxes(tmp_path / "none.json", tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        read_coco_boxes(tmp_path / "bad.json", tmp_path)
