"""COCO and Cityscapes preparation on small generated trees."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.datasets.cityscapes_preparation import paint_objects, prepare_cityscapes
from pipeline.datasets.coco_preparation import prepare_coco, strip_masks
from pipeline.errors import UsageError


def _square(x, y, side):
    # Painting includes the last row and column, as the official scripts do.
    last = side - 1
    return [[x, y], [x + last, y], [x + last, y + last], [x, y + last]]


@pytest.fixture
def cityscapes(tmp_path):
    objects = [
        {"label": "road", "polygon": _square(0, 0, 60)},
        {"label": "car", "polygon": _square(10, 10, 20)},
        {"label": "license plate", "polygon": _square(12, 20, 4)},
        {"label": "person", "polygon": _square(20, 10, 20)},  # hides the right half of the car
        {"label": "persongroup", "polygon": _square(45, 45, 10)},
        {"label": "bicycle", "polygon": _square(2, 2, 3)},
        {"label": "pole", "polygon": _square(0, 0, 8)},  # hides the bicycle wholly
    ]
    name = "aachen/aachen_000000_000019"
    polygons = tmp_path / "gtFine/train" / f"{name}_gtFine_polygons.json"
    image = tmp_path / "leftImg8bit/train" / f"{name}_leftImg8bit.png"
    for path in (polygons, image):
        path.parent.mkdir(parents=True)
    polygons.write_text(json.dumps({"imgHeight": 64, "imgWidth": 80, "objects": objects}))
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(image)
    return tmp_path


def test_cityscapes_boxes_are_those_of_visible_pixels(cityscapes, tmp_path):
    (split,) = prepare_cityscapes(cityscapes, tmp_path / "out")
    assert split.missing == []
    document = json.loads(split.masks.read_text())
    found = {
        (item["category_id"], item["iscrowd"]): (item["bbox"], item["area"])
        for item in document["annotations"]
    }
    assert found == {
        (26, 0): ([10, 10, 10, 20], 200),
        (24, 0): ([20, 10, 20, 20], 400),
        (24, 1): ([45, 45, 10, 10], 100),
    }
    for item in document["annotations"]:
        assert coco_mask.area(item["segmentation"]) == item["area"]
    assert document["images"][0]["file_name"] == "aachen/aachen_000000_000019_leftImg8bit.png"
    assert (split.images / document["images"][0]["file_name"]).is_file()


def test_cityscapes_boxes_file_tells_nothing_about_masks(cityscapes, tmp_path):
    (split,) = prepare_cityscapes(cityscapes, tmp_path / "out")
    boxes = json.loads(split.boxes.read_text())
    assert all("segmentation" not in item for item in boxes["annotations"])
    assert [item["area"] for item in boxes["annotations"]] == [200, 400, 100]
    COCO(str(split.boxes))


def test_later_objects_hide_earlier_ones():
    owners = paint_objects(
        [
            {"label": "a", "polygon": _square(0, 0, 4)},
            {"label": "b", "polygon": _square(2, 2, 4)},
            {"label": "c", "polygon": _square(0, 0, 2), "deleted": 1},
        ],
        8,
        8,
    )
    assert (owners == 1).sum() == 12
    assert (owners == 2).sum() == 16
    assert owners[0, 0] == 1


def test_missing_images_are_named(cityscapes, tmp_path):
    image = next((cityscapes / "leftImg8bit").rglob("*.png"))
    image.unlink()
    (split,) = prepare_cityscapes(cityscapes, tmp_path / "out")
    assert split.missing == [f"aachen/{image.name}"]


def test_coco_masks_are_stripped_and_missing_files_named(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/1.jpg").write_bytes(b"x")
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in (1, 2)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 4, 3],
                "area": 5.5,
                "segmentation": [[1, 1, 5, 1, 5, 4]],
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(document))
    (split,) = prepare_coco(tmp_path, tmp_path / "out")
    assert (split.num_images, split.num_boxes, split.missing) == (2, 1, ["2.jpg"])
    (annotation,) = json.loads(split.boxes.read_text())["annotations"]
    assert "segmentation" not in annotation
    assert annotation["area"] == 12


def test_incomplete_trees_are_refused_with_the_expected_tree(tmp_path):
    with pytest.raises(UsageError, match="train2017"):
        prepare_coco(tmp_path, tmp_path / "out")
    (tmp_path / "train2017").mkdir()
    with pytest.raises(UsageError, match=r"instances_train2017\.json is missing"):
        prepare_coco(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="gtFine"):
        prepare_cityscapes(tmp_path, tmp_path / "out")


def test_cityscapes_object_without_polygon_is_named(cityscapes, tmp_path):
    (file,) = cityscapes.glob("gtFine/train/*/*.json")
    document = json.loads(file.read_text())
    del document["objects"][1]["polygon"]
    file.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"objects\[1\] .*car.*lacks label or polygon"):
        prepare_cityscapes(cityscapes, tmp_path / "out")


def test_boxes_that_cannot_be_used_keep_no_area():
    document = {"annotations": [{"id": 1, "area": 5, "bbox": [1, 2]}, {"id": 2, "area": 5}]}
    assert strip_masks(document)["annotations"] == [{"id": 1, "bbox": [1, 2]}, {"id": 2}]
