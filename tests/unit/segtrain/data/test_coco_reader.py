"""What the one reader makes of ids, encodings, flags, names and whole files in another form."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtrain.data.coco_boxes import read_coco_boxes, require_image_files
from segtrain.data.coco_document import load_coco_document
from segtrain.data.coco_findings import FINDING_KINDS, require_usable
from segtrain.data.coco_reader import read_coco
from segtrain.data.image_files import find_image_file, read_image_bytes
from segtrain.errors import DatasetError

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 120, "height": 90},
        {"id": 2, "file_name": "b.png", "width": 120, "height": 90},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [60, 40, 30, 40]},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [20, 20, 50, 50]},
        {"id": 4, "image_id": 2, "category_id": 2, "bbox": [5, 5, 30, 20]},
    ],
    "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
}
# Other boxes for those above, as x1, y1, x2, y2.
CORNERS = {
    (10, 10, 40, 30): [50, 40, 100, 80],
    (60, 40, 30, 40): [60, 40, 90, 80],
    (20, 20, 50, 50): [70, 20, 110, 70],
    (5, 5, 30, 20): [20, 10, 90, 60],
}


def _changed(part: str, **fields: Any) -> dict[str, Any]:
    """The document with fields of all entries of a part changed; a callable gets the old value."""
    document = copy.deepcopy(DOCUMENT)
    for entry in document[part]:
        for name, value in fields.items():
            entry[name] = value(entry.get(name)) if callable(value) else value
    return document


def _kinds(document: dict[str, Any], *, masks: bool = False) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in read_coco(document, masks=masks).findings))


def test_a_filled_box_teaches_as_a_box() -> None:
    """A labeller that found nothing says so in `mask_source`; a rectangle is to teach no mask."""
    rectangle = [[10, 10, 50, 10, 50, 40, 10, 40]]
    document = _changed("annotations", segmentation=rectangle, mask_source="labeller")
    document["annotations"][0]["mask_source"] = "filled_box"
    reading = read_coco(document, masks=True)
    first, *others = [a for record in reading.records for a in record.annotations]
    assert first.segmentation is None
    assert all(annotation.segmentation == rectangle for annotation in others)
    assert _kinds(document, masks=True)["filled_box"] == 1
    assert "filled_box" not in _kinds(document)
    require_usable(reading.findings, "masks.json")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(DOCUMENT, id="clean"),
        pytest.param(_changed("annotations", image_id=str, category_id=str), id="text-references"),
        pytest.param(_changed("images", id=str), id="text-image-ids"),
        pytest.param(_changed("categories", id=float), id="float-category-ids"),
        pytest.param(_changed("images", width=float, height=float), id="float-sizes"),
        pytest.param(_changed("annotations", id=lambda i: i - 1), id="from-0"),
        pytest.param(_changed("annotations", id=lambda i: f"3f2c-{i:02}"), id="uuids"),
        pytest.param(_changed("annotations", id=lambda i: 10**18 + i), id="large"),
        pytest.param(_changed("annotations", iscrowd="0"), id="flag-as-text"),
        pytest.param(_changed("annotations", iscrowd=False), id="flag-as-bool"),
        pytest.param(_changed("annotations", area="broken"), id="no-area"),
    ],
)
def test_files_that_differ_in_form_only_read_alike(document: dict[str, Any]) -> None:
    reading = read_coco(document)
    assert reading.findings == []
    assert [[a.box_xyxy for a in record.annotations] for record in reading.records] == [
        [(10, 10, 50, 40), (60, 40, 90, 80)],
        [(20, 20, 70, 70), (5, 5, 35, 25)],
    ]
    assert [a.category for record in reading.records for a in record.annotations] == [0, 1, 0, 1]
    assert [a.position for record in reading.records for a in record.annotations] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("document", "kinds", "words"),
    [
        (_changed("images", id=1), {"duplicate_image_id"}, r"images\[0\] \(a.png\), images\[1\]"),
        (_changed("images", id=lambda i: "1" if i == 2 else i), {"duplicate_image_id"}, "b.png"),
        (_changed("annotations", id=5), {"duplicate_annotation_id"}, r"annotations\[0\], .*id 5"),
        (_changed("annotations", id=[1]), {"entry_malformed"}, r"annotations\[0\] has id=\[1\]"),
        (_changed("annotations", image_id=[1]), {"entry_malformed"}, r"image_id=\[1\]"),
        (_changed("annotations", image_id=None), {"entry_malformed"}, "image_id=None"),
        (_changed("annotations", iscrowd="perhaps"), {"entry_malformed"}, "iscrowd='perhaps'"),
        (_changed("annotations", category_id=77), {"unknown_category"}, "category 77"),
        (_changed("annotations", image_id="x"), {"unknown_image"}, "image x"),
        (_changed("images", file_name=None), {"entry_malformed"}, "file_name=None, expected str"),
        (_changed("images", width=0), {"entry_malformed"}, "width=0, expected int, 1 to"),
        (_changed("images", width=10**9), {"entry_malformed"}, "width=1000000000"),
        (_changed("images", width=10**6, height=10**6), {"entry_malformed"}, "pixels"),
        (DOCUMENT | {"categories": []}, {"no_categories"}, "no categories"),
        (DOCUMENT | {"images": []}, {"no_images"}, "no images"),
        (DOCUMENT | {"images": [5]}, {"entry_malformed"}, r"images\[0\] is 5"),
        (
            _changed("annotations", bbox=lambda b: [b[0] / 120, b[1] / 90, b[2] / 120, b[3] / 90]),
            {"boxes_as_shares"},
            "multiply x and width",
        ),
        (
            _changed("annotations", bbox=lambda b: CORNERS[tuple(b)]),
            {"boxes_as_corners"},
            "4 of 4 boxes fit as x1, y1, x2, y2; .*subtract",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_entry_and_the_remedy(
    document: dict[str, Any], kinds: set[str], words: str
) -> None:
    findings = read_coco(document).findings
    assert {f.kind for f in findings if f.treatment == "refused"} >= kinds
    with pytest.raises(DatasetError, match=words):
        require_usable(findings, "boxes.json")


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        (["10", "10", "40", "30"], "box_of_text"),
        ([], "box_malformed"),
        ([True, 1, 2, 3], "box_malformed"),
        ([10**400, 1, 2, 3], "box_not_finite"),
        ([1e308, 1, 1e308, 3], "box_not_finite"),
    ],
)
def test_boxes_of_other_types_are_left_out_alike(bbox: Any, kind: str) -> None:
    reading = read_coco(_changed("annotations", bbox=bbox))
    assert reading.left_out == dict.fromkeys(range(4), kind)
    assert FINDING_KINDS[kind].treatment == "left out"
    assert [record.annotations for record in reading.records] == [(), ()]


def test_boxes_below_a_pixel_are_named_one_by_one_when_others_are_not() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][0]["bbox"] = [0.1, 0.2, 0.5, 0.5]
    assert _kinds(document) == {"box_below_pixel": 1}


def test_few_boxes_that_may_be_corners_are_only_named() -> None:
    corners = [[10, 10, 50, 40], [60, 40, 90, 80], [20, 20, 70, 70], [5, 5, 35, 25]]
    document = copy.deepcopy(DOCUMENT)
    for entry, box in zip(document["annotations"], corners, strict=True):
        entry["bbox"] = box
    assert _kinds(document)["boxes_maybe_corners"] == 1


def test_ids_of_any_size_take_no_memory() -> None:
    document = _changed("categories", id=lambda i: 1 if i == 1 else 2**31 - 1)
    for entry in document["annotations"]:
        entry["category_id"] = 1 if entry["category_id"] == 1 else 2**31 - 1
    (gap,) = read_coco(document).findings
    assert (gap.kind, gap.detail) == ("category_id_gap", "ids 2…2147483646 are not used")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_files_are_read_in_any_encoding_of_json(tmp_path: Path, encoding: str) -> None:
    document = _changed("categories", name="Schraube größer")
    path = tmp_path / "ann.json"
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
    assert load_coco_document(path) == document


def test_no_nesting_is_too_deep_for_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        load_coco_document(path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("./b.png", "b.png"),
        ("sub/../b.png", "b.png"),
        ("B.PNG", "b.png"),
        ("sub\\c.png", "sub/c.png"),
        ("SUB/c.png", "sub/c.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("twice.png", None),
        ("data:image/png;base64," + "iVBOR" * 999, None),
        ("a\0b.png", None),
        ("gone.png", None),
    ],
)
def test_names_find_their_files(tmp_path: Path, name: str, file: str | None) -> None:
    (tmp_path / "sub").mkdir()
    for each in ("b.png", "sub/c.png", "\u00e9.png", "Twice.png", "tWICE.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / each)
    document = copy.deepcopy(DOCUMENT)
    for entry in document["images"]:
        entry["file_name"] = name
    records = read_coco(document, tmp_path).records
    if file is None:
        with pytest.raises(DatasetError, match=r"no such file.*\(and 1 more"):
            require_image_files(records, "ann.json")
        with pytest.raises(DatasetError, match="cannot be read"):
            read_image_bytes(records[0].path)
        return
    require_image_files(records, "ann.json")
    assert read_image_bytes(records[0].path) == (tmp_path / file).read_bytes()
    assert find_image_file(tmp_path / file) == tmp_path / file
    assert find_image_file(str(tmp_path / file)).samefile(find_image_file(records[0].path))


def test_training_counts_what_is_left_out_by_its_reason(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][0]["bbox"] = ["1", "2", "3", "4"]
    document["annotations"][1]["iscrowd"] = "1"
    path = tmp_path / "ann.json"
    path.write_text(json.dumps(document))
    dataset = read_coco_boxes(path, tmp_path)
    assert [record.image_id for record in dataset.records] == [2]
    assert dataset.dropped == {
        "box is not four numbers but their text": 1,
        "crowd annotation": 1,
        "image without usable boxes": 1,
    }
