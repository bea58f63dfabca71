"""Whatever stands in a COCO file: the check, training, labels and evaluation say the same of it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets.dataset_check import check_dataset
from pipeline.datasets.image_lists import list_coco_images, read_coco_images
from segtrain.data.coco_boxes import read_coco_boxes, require_image_files
from segtrain.data.coco_findings import FINDING_KINDS, MASK_KINDS, Finding, require_usable
from segtrain.data.coco_reader import CocoReading, read_coco_file
from segtrain.data.mapper import read_image
from segtrain.data.segmentations import decode_segmentation, encode_mask
from segtrain.errors import DatasetError
from segtrain.use.evaluation import compare_with_truth
from segtrain.use.labelling import write_empty_masks

SIZES = {"a.png": (40, 30), "b.png": (24, 36), "sub/c.png": (1, 20)}
# What labels record as failed images, and go on.
FILE_KINDS = {"missing_file", "unreadable_file", "wrong_image_size"}
NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 3.0, 1e9, 1e308, -1e308, 10**30, 2**31),
    *(float("nan"), float("inf"), "", "0", "1", "x", "ä" * 300, "\ud800", "a\0b", "../a.png"),
    *("data:image/png;base64,iVBOR", "/a.png", "A.PNG", ".\\a.png", "./b.png", [], [1], [[]], {}),
    *([[1, 2, 3, 4]], [1, 2, 3, 4], ["1", "2", "3", "4"], [[[1, 2], [3, 4], [5, 6]]]),
    *([0.1, 0.1, 0.5, 0.5], [9, 9, -4, 5], [[1e9, 1, 5, 5, 1, 5]], [[float("nan")] * 6]),
    *({"size": [30, 40], "counts": [0, 180]}, {"size": [30, 40], "counts": ""}, {"counts": "a"}),
    *({"size": [60, 80], "counts": [4800]}, {"size": [30, 40], "counts": "o" * 40}),
]


def make_images(folder: Path) -> Path:
    """The images that the documents below name."""
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (9 * number, 0, 0)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def clean_document(rng: random.Random) -> dict[str, Any]:
    """A file without a fault, of the kinds that exporters write."""
    as_text = rng.random() < 0.3
    spell: Callable[[int], Any] = str if as_text else int
    first = rng.choice((0, 1, 2**31))
    document: dict[str, Any] = {
        "images": [
            {"id": spell(first + i), "file_name": name, "width": width, "height": height}
            for i, (name, (width, height)) in enumerate(SIZES.items())
        ],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 7, "name": "nut"}],
        "annotations": [],
    }
    for number in range(rng.randrange(1, 7)):
        image = rng.randrange(2)
        width, height = SIZES["ab"[image] + ".png"]
        x, y = rng.randrange(width - 4), rng.randrange(height - 4)
        w, h = rng.randrange(2, width - x), rng.randrange(2, height - y)
        entry: dict[str, Any] = {
            "id": number if rng.random() < 0.8 else f"id-{number}",
            "image_id": rng.choice((int, str))(first + image),
            "category_id": rng.choice((1, 7)),
            "bbox": [x, y, w, h],
        }
        if rng.random() < 0.5:
            entry["iscrowd"] = rng.choice((0, "0", False, 1))
        mask = rng.choice(("none", "polygon", "code"))
        if mask == "polygon":
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        elif mask == "code":
            pixels = np.zeros((height, width), dtype=bool)
            pixels[y : y + h, x : x + w] = True
            entry["segmentation"] = encode_mask(pixels)
        if rng.random() < 0.3:
            entry["area"] = w * h
        document["annotations"].append(entry)
    return document


def mutate(document: dict[str, Any], rng: random.Random) -> None:
    """Change one thing: a value, a key, an entry, a list."""
    name = rng.choice(("images", "annotations", "annotations", "annotations", "categories"))
    entries = document.get(name)
    if not isinstance(entries, list) or not entries or rng.random() < 0.03:
        document[name] = copy.deepcopy(rng.choice(NASTY))
        return
    position = rng.randrange(len(entries))
    entry = entries[position]
    action = rng.random()
    if action < 0.05 or not isinstance(entry, dict) or not entry:
        entries[position] = copy.deepcopy(rng.choice(NASTY))
    elif action < 0.12:
        entries.append(copy.deepcopy(entry))
    elif action < 0.2:
        del entry[rng.choice(list(entry))]
    elif action < 0.35 and isinstance(entry.get("bbox"), list) and entry["bbox"]:
        entry["bbox"][rng.randrange(len(entry["bbox"]))] = copy.deepcopy(rng.choice(NASTY))
    else:
        keys = [*entry, "segmentation", "iscrowd", "area"] if name == "annotations" else [*entry]
        entry[rng.choice(keys)] = copy.deepcopy(rng.choice(NASTY))


def _refusal(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except DatasetError as error:
        return str(error)
    return None


def _train(path: Path, images: Path, *, masks: bool = False, background: bool = True) -> None:
    dataset = read_coco_boxes(path, images, keep_masks=masks, keep_images_without_boxes=background)
    require_image_files(dataset.records, path)
    for record in dataset.records:
        read_image(record)
        for item in record.annotations:
            decode_segmentation(item.segmentation, record.height, record.width)


def _read_to_label(path: Path, images: Path) -> CocoReading:
    reading = read_coco_file(path, images)
    require_usable(reading.findings, path)
    return reading


def _truth_as_results(reading: CocoReading) -> list[dict[str, Any]]:
    results = []
    for record in reading.records:
        for item in record.annotations:
            x1, y1, x2, y2 = item.box_xyxy
            mask = decode_segmentation(
                item.segmentation or [[x1, y1, x2, y1, x2, y2, x1, y2]], record.height, record.width
            )
            results.append(
                {
                    "image_id": record.image_id,
                    "category_id": reading.categories[item.category]["id"],
                    "bbox": reading.document["annotations"][item.position]["bbox"],
                    "score": 0.9,
                    "segmentation": encode_mask(mask),
                }
            )
    return results


def require_agreement(document: dict[str, Any], path: Path, images: Path) -> str:
    """Fail unless all readers say the same; returns what they say."""
    path.write_text(json.dumps(document))
    findings: list[Finding] = []

    def check() -> None:
        findings.extend(check_dataset(path, images).findings)

    unreadable = _refusal(check)
    trained = _refusal(lambda: _train(path, images))
    if unreadable is not None:
        assert trained == unreadable
        assert _refusal(lambda: _read_to_label(path, images)) == unreadable
        return "no COCO file"
    refused = {finding.kind for finding in findings if finding.treatment == "refused"}
    bad_masks = {finding.kind for finding in findings} & MASK_KINDS
    if refused == {"no_boxes"}:  # images may still be trained on as background
        assert "no image is left" in str(_refusal(lambda: _train(path, images, background=False)))
    refused -= {"no_boxes"}
    assert (trained is not None) == bool(refused), (trained, refused)
    assert (_refusal(lambda: _train(path, images, masks=True)) is not None) == bool(
        refused | bad_masks
    )
    labelled = _refusal(lambda: _read_to_label(path, images))
    assert (labelled is not None) == bool(refused - FILE_KINDS), (labelled, refused)
    if labelled is None:
        reading = _read_to_label(path, images)
        annotations = copy.deepcopy(document["annotations"])
        write_empty_masks(annotations, reading)
        positions = [a.position for r in reading.records for a in (*r.annotations, *r.crowds)]
        assert len(positions) == len(set(positions))
        assert [a.get("id") for a in annotations] == [a.get("id") for a in document["annotations"]]
    for command in (list_coco_images, read_coco_images):
        _refusal(lambda command=command: command(path, images))
    if refused | bad_masks:
        return "refused"
    reading = read_coco_file(path, images, masks=True)
    num_boxes = sum(len(record.annotations) for record in reading.records)
    assert num_boxes == read_coco_boxes(path, images, keep_images_without_boxes=True).num_boxes
    for metrics in compare_with_truth(reading, _truth_as_results(reading)).values():
        assert metrics["AP"] is None or metrics["AP"] > 99.9 or not num_boxes
    return "used"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_clean_files_are_used_by_all(seed: int, images: Path, tmp_path: Path) -> None:
    document = clean_document(random.Random(seed))
    assert require_agreement(document, tmp_path / "ann.json", images) == "used"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 3))
def test_mutated_files_are_judged_alike(
    seed: int, num_changes: int, images: Path, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    document = clean_document(rng)
    for _ in range(num_changes):
        mutate(document, rng)
    require_agreement(document, tmp_path / "ann.json", images)


def test_every_kind_has_a_treatment_and_words() -> None:
    for kind in FINDING_KINDS.values():
        assert kind.treatment in ("handled", "left out", "refused")
        assert kind.meaning
        assert kind.remedy or kind.treatment == "handled"
