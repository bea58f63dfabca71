"""Masks in the tools' own forms: read back by other code than that which wrote them."""

from __future__ import annotations

import base64
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from pipeline.datasets.box_formats import read_boxes
from pipeline.datasets.label_studio_brush import decode_brush, encode_brush
from pipeline.datasets.mask_formats import MASK_FORMATS, write_masks
from pipeline.datasets.mask_polygons import flatten_polygons, mask_polygons
from pipeline.errors import UsageError
from segtrain.errors import DatasetError

HEIGHT, WIDTH = 40, 60


def _ring_and_dot():
    """A ring with a hole, and a separate part."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(ys - 18, xs - 20)
    mask = (distance < 14) & (distance > 6)
    mask[30:36, 45:50] = True
    return mask


def _rle(mask):
    encoded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def _document():
    """Three objects and a crowd: one mask, one filled box, one without a mask."""
    mask = _ring_and_dot()
    common = {"image_id": 7, "iscrowd": 0}
    return {
        "images": [
            {"id": 7, "file_name": "sub/a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 8, "file_name": "b.png", "width": 10, "height": 10},
        ],
        "annotations": [
            {"id": 3, "category_id": 9, "bbox": [6, 4, 44, 32], "segmentation": _rle(mask),
             "score": 0.8, "mask_source": "labeller", **common},
            {"id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.0,
             "segmentation": _rle(np.zeros((HEIGHT, WIDTH), bool)),
             "mask_source": "filled_box", **common},
            {"id": 5, "category_id": 2, "bbox": [5, 5, 4, 4], **common},
            {"id": 6, "category_id": 2, "bbox": [0, 0, 9, 9], "image_id": 7, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "ring"}, {"id": 2, "name": "dot"}],
    }  # fmt: skip


def _refuse_links(self, target, target_is_directory=False):
    raise OSError("no links here")


def _write(tmp_path, mask_format, *, polygons=False):
    suffix = MASK_FORMATS[mask_format][0]
    out = tmp_path / f"out{suffix}"
    written = write_masks(
        _document(), out, mask_format, polygons=polygons, images=tmp_path / "images"
    )
    assert written.num_masks == 1
    assert written.num_boxes + written.num_left_out == 2
    return out


def _iou(first, second):
    return (first & second).sum() / (first | second).sum()


def _fill(points):
    """Even-odd fill at sixteen samples a pixel, independent of pycocotools."""
    scale = 4
    canvas = np.zeros((HEIGHT * scale, WIDTH * scale), np.uint8)
    scaled = np.round(np.asarray(points) * scale - 0.5).astype(np.int32)
    cv2.fillPoly(canvas, [scaled], 1)
    return canvas.reshape(HEIGHT, scale, WIDTH, scale).mean(axis=(1, 3)) > 0.5


class TestPolygons:
    @given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
    def test_exact_outlines_give_the_mask_back(self, mask):
        polygons = flatten_polygons(mask_polygons(mask, tolerance=0))
        back = np.zeros_like(mask)
        if polygons:
            encoded = mask_api.merge(mask_api.frPyObjects(polygons, *mask.shape))
            back = mask_api.decode(encoded).astype(bool)
        np.testing.assert_array_equal(back, mask)

    def test_simplified_outlines_keep_hole_and_parts_with_few_points(self):
        mask = _ring_and_dot()
        polygons = mask_polygons(mask)
        assert len(polygons) == 2
        assert sum(map(len, polygons)) < 60
        encoded = mask_api.merge(mask_api.frPyObjects(flatten_polygons(polygons), HEIGHT, WIDTH))
        assert _iou(mask_api.decode(encoded).astype(bool), mask) > 0.95


class TestBrush:
    @given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
    def test_bytes_give_the_mask_back(self, mask):
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape), mask)

    def test_a_run_longer_than_the_longest_code(self):
        mask = np.ones((300, 200), bool)
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape), mask)

    def test_bytes_that_label_studio_wrote(self):
        # label_studio_sdk 2.1.2, encode_rle of a 3×4 mask with pixels (1, 1) and (1, 2).
        data = [0, 0, 0, 48, 57, 27, 254, 19, 0, 159, 255, 9, 128, 0]
        expected = np.zeros((3, 4), bool)
        expected[1, 1:3] = True
        np.testing.assert_array_equal(decode_brush(data, (3, 4)), expected)
        with pytest.raises(ValueError, match="expected 4×4×4"):
            decode_brush(data, (4, 4))


class TestWriters:
    def test_coco_run_lengths_load_in_pycocotools_with_ids_order_and_crowd(self, tmp_path):
        coco = COCO(_write(tmp_path, "coco"))
        assert [item["id"] for item in coco.dataset["annotations"]] == [3, 4, 5, 6]
        np.testing.assert_array_equal(coco.annToMask(coco.anns[3]).astype(bool), _ring_and_dot())
        assert "segmentation" not in coco.anns[6]

    def test_coco_polygons_load_in_pycocotools(self, tmp_path):
        coco = COCO(_write(tmp_path, "coco", polygons=True))
        assert isinstance(coco.anns[3]["segmentation"], list)
        assert _iou(coco.annToMask(coco.anns[3]).astype(bool), _ring_and_dot()) > 0.95

    def test_yolo_joins_parts_and_leaves_out_what_is_no_mask(self, tmp_path):
        out = _write(tmp_path, "yolo-seg")
        assert yaml.safe_load((out / "data.yaml").read_text())["names"] == {0: "ring", 1: "dot"}
        (line,) = (out / "labels" / "sub" / "a.txt").read_text().splitlines()
        index, *values = line.split()
        points = np.array(values, float).reshape(-1, 2) * [WIDTH, HEIGHT]
        assert index == "0"
        assert _iou(_fill(points), _ring_and_dot()) > 0.93
        assert (out / "labels" / "b.txt").read_text() == ""

    @pytest.mark.parametrize("has_links", [True, False])
    def test_ultralytics_finds_the_labels_beside_the_photos(self, tmp_path, monkeypatch, has_links):
        """Its rule (`img2label_paths` of 8.4.190): the last `images` of a photo's path."""
        if not has_links:
            monkeypatch.setattr(Path, "symlink_to", _refuse_links)
        (tmp_path / "images" / "sub").mkdir(parents=True)
        for name in ("sub/a.jpg", "b.png"):
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
        for _ in range(2):  # written again, the photos are still there
            out = _write(tmp_path, "yolo-seg")
        settings = yaml.safe_load((out / "data.yaml").read_text())
        folder = (Path(settings["path"]) / settings["train"]).resolve()
        photos = sorted(path for path in folder.rglob("*.*") if path.is_file())
        assert [path.relative_to(folder).as_posix() for path in photos] == ["b.png", "sub/a.jpg"]
        for photo in photos:
            taken_from = tmp_path / "images" / photo.relative_to(folder)
            assert photo.read_bytes() == taken_from.read_bytes()
            labels = "/labels/".join(str(photo).rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"
            assert Path(labels).is_file()
        assert sorted(Path(tmp_path / "images").rglob("*.txt")) == []

    def test_labels_of_a_photo_in_a_folder_named_images_lie_where_ultralytics_looks(self, tmp_path):
        document = _document()
        document["images"] = [{**document["images"][0], "file_name": "images/a.jpg"}]
        out = tmp_path / "out"
        write_masks(document, out, "yolo-seg", polygons=False, images=tmp_path)
        assert len((out / "images" / "labels" / "a.txt").read_text().splitlines()) == 1

    def test_photos_that_lie_in_the_folder_are_left_as_they_are(self, tmp_path):
        photo = tmp_path / "out" / "images" / "b.png"
        photo.parent.mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(photo)
        before = photo.read_bytes()
        document = _document()
        document["images"] = document["images"][1:]
        document["annotations"] = []
        write_masks(document, tmp_path / "out", "yolo-seg", polygons=False, images=photo.parent)
        assert not photo.is_symlink()
        assert photo.read_bytes() == before

    def test_labelme_masks_lie_at_their_corner(self, tmp_path):
        document = json.loads((_write(tmp_path, "labelme") / "sub" / "a.json").read_text())
        assert document["imagePath"] == "../../images/sub/a.jpg"
        first, second, third = document["shapes"]
        assert [s["shape_type"] for s in (first, second, third)] == ["mask", *["rectangle"] * 2]
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(first["mask"])))).astype(bool)
        (left, top), (right, bottom) = first["points"]
        whole = np.zeros((HEIGHT, WIDTH), bool)
        whole[top : bottom + 1, left : right + 1] = picture
        np.testing.assert_array_equal(whole, _ring_and_dot())

    def test_labelme_polygons_of_one_object_share_a_group(self, tmp_path):
        out = _write(tmp_path, "labelme", polygons=True)
        shapes = json.loads((out / "sub" / "a.json").read_text())["shapes"]
        groups = [s["group_id"] for s in shapes if s["shape_type"] == "polygon"]
        assert groups == [3, 3]

    def test_cvat_masks_are_row_run_lengths_of_their_extent(self, tmp_path):
        root = ET.parse(_write(tmp_path, "cvat")).getroot()
        assert [item.findtext("name") for item in root.iter("label")] == ["ring", "dot"]
        assert [image.get("name") for image in root.findall("image")] == ["sub/a.jpg", "b.png"]
        (mask,) = root.iter("mask")
        left, top, width, height = (int(mask.get(k)) for k in ("left", "top", "width", "height"))
        values, value = [], False
        for run in mask.get("rle").split(","):
            values += [value] * int(run)
            value = not value
        whole = np.zeros((HEIGHT, WIDTH), bool)
        whole[top : top + height, left : left + width] = np.reshape(values, (height, width))
        np.testing.assert_array_equal(whole, _ring_and_dot())
        assert len(list(root.iter("box"))) == 2

    def test_label_studio_predictions_are_brushes_with_scores(self, tmp_path):
        tasks = json.loads(_write(tmp_path, "label-studio").read_text())
        assert tasks[0]["data"] == {"image": "sub/a.jpg"}
        prediction = tasks[0]["predictions"][0]
        brush, *boxes = prediction["result"]
        assert brush["type"] == "brushlabels"
        assert brush["value"]["brushlabels"] == ["ring"]
        assert (brush["original_width"], brush["original_height"]) == (WIDTH, HEIGHT)
        assert brush["score"] == 0.8
        mask = decode_brush(brush["value"]["rle"], (HEIGHT, WIDTH))
        np.testing.assert_array_equal(mask, _ring_and_dot())
        assert [item["type"] for item in boxes] == ["rectanglelabels"] * 2

    def test_a_task_of_label_studio_keeps_its_id_and_image(self, tmp_path):
        document = _document()
        source = {"id": 11, "data": {"image": "/data/upload/2/1f2e3d4c-a.jpg"}}
        document["images"][0]["label_studio"] = source
        out = tmp_path / "p.json"
        write_masks(document, out, "label-studio", polygons=True, images=tmp_path)
        task = json.loads(out.read_text())[0]
        assert {"id": task["id"], "data": task["data"]} == source
        points = np.array(task["predictions"][0]["result"][0]["value"]["points"])
        ring = _fill(points * [WIDTH / 100, HEIGHT / 100])
        assert _iou(ring, _ring_and_dot() & (np.arange(WIDTH) < 40)) > 0.93

    def test_png_numbers_are_explained_beside_them(self, tmp_path):
        out = _write(tmp_path, "png")
        numbers = np.array(Image.open(out / "sub" / "a.png"))
        np.testing.assert_array_equal(numbers == 1, _ring_and_dot())
        (entry,) = json.loads((out / "instances.json").read_text())["sub/a.png"]
        assert entry == {"number": 1, "annotation_id": 3, "label": "ring", "category_id": 9}


# What a box may lose: nothing, the digits that are written, or half a pixel's diagonal where
# outlines are simplified.
@pytest.mark.parametrize(
    ("mask_format", "polygons", "loses"),
    [
        ("labelme", False, 0),
        ("labelme", True, 0.71),
        ("cvat", False, 0.005),
        ("cvat", True, 0.71),
        ("label-studio", False, 0.001),
        ("label-studio", True, 0.71),
        ("yolo-seg", False, 0.71),
    ],
)
def test_what_a_tool_gets_reads_back_as_the_same_boxes(tmp_path, mask_format, polygons, loses):
    document = _document()
    images = document["images"]
    for image in images:
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (image["width"], image["height"])).save(path)
    neighbour = np.zeros((HEIGHT, WIDTH), bool)  # in two parts, of one class with the ring
    neighbour[1:4, 52:58] = neighbour[8:10, 52:54] = True
    document["annotations"] += [
        {"id": 10, "image_id": 7, "category_id": 9, "iscrowd": 0, "bbox": [52, 1, 6, 9],
         "segmentation": _rle(neighbour)},
        {"id": 11, "image_id": 8, "category_id": 2, "iscrowd": 0, "bbox": [1, 2, 7, 6],
         "segmentation": _rle(np.pad(np.ones((6, 7), bool), ((2, 2), (1, 2))))},
    ]  # fmt: skip
    document["annotations"][1]["bbox"] = [1.25, 2.5, 3.125, 4]
    out = tmp_path / f"out{MASK_FORMATS[mask_format][0]}"
    write_masks(document, out, mask_format, polygons=polygons, images=tmp_path / "images")
    boxes = read_boxes(out, tmp_path / "images")
    assert boxes.box_format == {"yolo-seg": "yolo"}.get(mask_format, mask_format)
    assert boxes.skipped == []
    expected = _named_boxes(document)
    if mask_format == "yolo-seg":  # has no form for an object without a mask
        expected = [
            item for item in expected if item[2] not in ([1.25, 2.5, 3.125, 4], [5, 5, 4, 4])
        ]
    found = _named_boxes(boxes.document())
    assert [item[:2] for item in found] == [item[:2] for item in expected]
    corners, wanted = (np.array([box for *_, box in items]) for items in (found, expected))
    for values in (corners, wanted):
        values[:, 2:] += values[:, :2]
    np.testing.assert_allclose(corners, wanted, rtol=0, atol=loses + 1e-9)


def _named_boxes(document):
    """(file, class, box) of every object, in a fixed order."""
    files = {image["id"]: image["file_name"] for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    return sorted(
        (files[item["image_id"]], names[item["category_id"]], item["bbox"])
        for item in document["annotations"]
        if not item["iscrowd"]
    )


class TestRefusals:
    def test_a_file_name_that_leads_elsewhere(self, tmp_path):
        document = _document()
        document["images"][0]["file_name"] = "../a.jpg"
        with pytest.raises(UsageError, match="leads out of the folder"):
            write_masks(document, tmp_path / "o", "labelme", polygons=False, images=tmp_path)
        assert not (tmp_path / "a.json").exists()

    def test_two_images_that_would_share_a_file(self, tmp_path):
        document = _document()
        document["images"][1]["file_name"] = "sub/a.png"
        with pytest.raises(UsageError, match="would both be written to"):
            write_masks(document, tmp_path / "o", "yolo-seg", polygons=False, images=tmp_path)

    def test_a_mask_of_another_size(self, tmp_path):
        document = _document()
        document["images"][0]["width"] = 61
        with pytest.raises(DatasetError, match=r"annotation 3: .*\[40, 60\], expected"):
            write_masks(document, tmp_path / "o.json", "coco", polygons=False, images=tmp_path)
