"""Which class of the weights a file's class is, and what boxes get that cannot be used."""

from __future__ import annotations

import copy

import pytest
from pycocotools import mask as mask_api

from segtrain.data.coco_reader import read_coco
from segtrain.errors import DatasetError
from segtrain.use.labelling import match_classes, write_empty_masks

KNOWN = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]


def test_classes_are_matched_by_name_whatever_their_ids() -> None:
    wanted = [{"id": 1, "name": "nut"}, {"id": 2, "name": "washer"}, {"id": 9, "name": "bolt"}]
    assert match_classes(wanted, {0, 2}, KNOWN, "a.json") == {0: 1, 2: 0}
    with pytest.raises(DatasetError, match=r"'washer' \(id 2\) is unknown.*bolt, nut"):
        match_classes(wanted, {0, 1}, KNOWN, "a.json")


def test_two_classes_of_one_name_are_told_apart_by_their_ids() -> None:
    twins = [{"id": 1, "name": "x"}, {"id": 4, "name": "x"}]
    assert match_classes(twins, {0, 1}, twins, "a.json") == {0: 0, 1: 1}
    assert match_classes([{"id": "4", "name": "x"}], {0}, twins, "a.json") == {0: 1}
    with pytest.raises(DatasetError, match="unknown to the weights"):
        match_classes([{"id": 7, "name": "x"}], {0}, twins, "a.json")


def test_boxes_that_cannot_be_used_get_empty_masks_and_keep_their_ids() -> None:
    document = {
        "images": [{"id": "1", "file_name": "a.png", "width": 40, "height": 30}],
        "categories": KNOWN,
        "annotations": [
            {"id": "u-1", "image_id": 1, "category_id": 1, "bbox": [5, 5, 0, 0]},
            {"id": 0, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": None, "iscrowd": 1},
        ],
    }
    annotations = copy.deepcopy(document["annotations"])
    write_empty_masks(annotations, read_coco(document))
    assert [entry["id"] for entry in annotations] == ["u-1", 0, 2]
    assert annotations[1:] == document["annotations"][1:]
    empty = annotations[0]
    assert mask_api.decode(empty["segmentation"]).shape == (30, 40)
    assert (empty["area"], empty["score"], empty["mask_source"]) == (0, 0.0, "none")
