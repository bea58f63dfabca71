"""`data check` finds and names each kind of bad thing."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import invoke
from pipeline.datasets.dataset_check import check_dataset
from segtrain.data.box_coordinates import clip_box
from segtrain.data.coco_document import load_coco_document
from segtrain.data.coco_findings import FINDING_KINDS
from segtrain.data.coco_reader import read_coco
from segtrain.errors import DatasetError

IMAGE = {"id": 1, "file_name": "a.png", "width": 40, "height": 30}


def _document(annotations, images=(IMAGE,), categories=({"id": 1, "name": "x"},)):
    return {
        "images": list(images),
        "annotations": [
            {"id": index, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], **changes}
            for index, changes in enumerate(annotations, start=1)
        ],
        "categories": list(categories),
    }


def _kinds(document):
    kinds = collections.Counter(problem.kind for problem in read_coco(document).findings)
    # Most of the documents below have one category, which is told each time.
    assert kinds.pop("single_category", 0) == (len(document["categories"]) == 1)
    return kinds


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 40, 30], None),
        ([0, 0, 40.4, 30], None),
        ([-9, 0, 20, 10], "box_partly_outside"),
        ([40, 0, 5, 5], "box_outside_image"),
        ([-10, 0, 5, 5], "box_outside_image"),
        ([float("nan"), 0, 5, 5], "box_not_finite"),
        ([0, 0, float("inf"), 5], "box_not_finite"),
        ([9, 9, -4, 5], "box_inverted"),
        ([9, 9, 0, 5], "box_zero_size"),
        ([1, 2, 3], "box_malformed"),
        ("1,2,3,4", "box_malformed"),
        ([1, 2, None, 4], "box_malformed"),
        (None, "box_malformed"),
    ],
)
def test_boxes(box, kind):
    assert clip_box(box, IMAGE["width"], IMAGE["height"])[1] == kind


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (_document([{}]), {}),
        (
            _document([{"bbox": [1, 1, 1 + i % 20, 1 + i // 20]} for i in range(500)]),
            {"many_boxes": 1},
        ),
        (_document([{"bbox": [9, 9, 0, 5]}]), {"box_zero_size": 1, "image_without_boxes": 1}),
        (_document([{"iscrowd": 1}]), {"crowd_box": 1, "image_without_boxes": 1}),
        (_document([]), {"image_without_boxes": 1, "unused_category": 1}),
        (_document([{}, {}]), {"duplicate_box": 1}),
        (_document([{}, {"id": 1, "bbox": [2, 2, 3, 3]}]), {"duplicate_annotation_id": 1}),
        (_document([{}], [IMAGE, IMAGE]), {"duplicate_image_id": 1, "duplicate_file_name": 1}),
        (_document([{}, {"category_id": 7}]), {"unknown_category": 1}),
        (_document([{}, {"image_id": 7}]), {"unknown_image": 1}),
        (
            _document([{}, {"category_id": 4}], (IMAGE,), [{"id": i, "name": "x"} for i in (1, 4)]),
            {"category_id_gap": 1},
        ),
        (_document([{}], [{"id": 1, "file_name": "a.png"}]), {"entry_malformed": 1}),
    ],
)
def test_documents(document, expected):
    assert _kinds(document) == expected


def test_files(tmp_path):
    rng = np.random.default_rng(0)

    def save(name, size, **options):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name, **options)

    save("good.png", (40, 30))
    save("size.png", (30, 40))
    save("whole.jpg", (40, 30))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (tmp_path / "copy.png").write_bytes((tmp_path / "good.png").read_bytes())
    turned = Image.Exif()
    turned[0x0112] = 6
    save("turned.jpg", (30, 40), exif=turned)  # shown, it is 40 wide and 30 high
    names = ["good.png", "size.png", "cut.jpg", "copy.png", "turned.jpg", "absent.png"]
    images = [{**IMAGE, "id": index, "file_name": name} for index, name in enumerate(names)]
    document = _document([{"image_id": index} for index in range(len(names))], images)
    (tmp_path / "ann.json").write_text(json.dumps(document))
    report = check_dataset(tmp_path / "ann.json", tmp_path)
    assert {(problem.kind, problem.file_name) for problem in report.findings} == {
        ("single_category", None),
        ("wrong_image_size", "size.png"),
        ("unreadable_file", "cut.jpg"),
        ("duplicate_image_bytes", "copy.png"),
        ("missing_file", "absent.png"),
    }
    assert (report.num_refused, report.num_left_out) == (3, 0)
    assert set(report.count_kinds()) <= set(FINDING_KINDS)


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', "\x00"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "ann.json").write_text(text)
    with pytest.raises(DatasetError):
        load_coco_document(tmp_path / "ann.json")


def test_command_takes_the_file_either_way_and_tells_by_its_exit_code(tmp_path, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(_document([{}])))
    bad.write_text(json.dumps(_document([{}, {"bbox": [float("nan"), 0, 5, 5]}])))
    assert invoke(["data", "check", str(good)]) == 0
    assert invoke(["data", "check", "--coco", str(bad)]) == 3
    assert "left out      1 × box_not_finite" in capsys.readouterr().out
    assert invoke(["data", "check"]) == 2
    assert invoke(["data", "check", str(good), "--coco", str(bad)]) == 2
    assert invoke(["data", "check", str(good), "--cache", str(tmp_path)]) == 2
    assert "--cache needs --images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ([], "none of 0 annotations is a box that can be used"),
        (
            [{"bbox": [9, 9, 0, 5]}, {"bbox": [9, 9, -4, 5]}, {"iscrowd": 1}],
            "none of 3 annotations is a box that can be used: "
            "1 × box_zero_size, 1 × box_inverted, 1 × crowd_box",
        ),
    ],
)
def test_a_file_without_a_usable_box_is_refused_as_masks_refuses_it(
    tmp_path, capsys, annotations, why
):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(_document(annotations)))
    assert invoke(["data", "check", str(path)]) == 3
    text = capsys.readouterr().out
    assert "refused       1 × no_boxes" in text
    assert why in text
    assert "→ name a file with boxes" in text
    assert "nothing to correct" not in text
    masks = ["masks", "--coco", str(path), "--images", str(tmp_path)]
    masks += ["--out", str(tmp_path / "masks.json"), "--output", str(tmp_path / "run")]
    for options in ([], ["--dry-run"]):
        assert invoke([*masks, *options]) == 2
        assert why in capsys.readouterr().err
