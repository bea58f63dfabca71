"""Each kind of bad data: `data check` names it, training takes a step or says why not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.cli import invoke
from segtrain.errors import DatasetError, MissingDepthError, SegtrainError
from segtrain.run.trainer import train_model

Change = Callable[[dict[str, Any]], None]
ONE_STEP = {
    "train.max_iter": 1,
    "train.distill_from": None,
    "data.keep_images_without_boxes": True,
    "dataloader.train.num_workers": 0,
}


def _first_image_has(*boxes: list[Any], **fields: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        image, category = document["images"][0]["id"], document["categories"][0]["id"]
        document["annotations"] += [
            {"id": 9000 + i, "image_id": image, "category_id": category, "bbox": box} | fields
            for i, box in enumerate(boxes)
        ]

    return change


def _remove_all_boxes(document: dict[str, Any]) -> None:
    document["annotations"] = []


def _spread_category_ids(document: dict[str, Any]) -> None:
    for entry in document["categories"]:
        entry["id"] = 7 * entry["id"] + 2
    for entry in document["annotations"]:
        entry["category_id"] = 7 * entry["category_id"] + 2


def _keep_one_class(document: dict[str, Any]) -> None:
    document["categories"] = document["categories"][:1]
    for entry in document["annotations"]:
        entry["category_id"] = document["categories"][0]["id"]


def _swap_sizes(document: dict[str, Any]) -> None:
    for entry in document["images"]:
        entry["width"], entry["height"] = 64, 96


def _forget_width(document: dict[str, Any]) -> None:
    del document["images"][2]["width"]


def _use_an_unknown_class(document: dict[str, Any]) -> None:
    document["annotations"][0]["category_id"] = 777


def _repeat_an_image(document: dict[str, Any]) -> None:
    document["images"].append(document["images"][0])


FIVE_HUNDRED = [[i % 25, i // 25, 30, 40] for i in range(500)]


@pytest.fixture
def check(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, int]]]:
    """Exit code and counts of `pipeline data check`."""

    def run(annotations: Path, images: Path | None = None) -> tuple[int, dict[str, int]]:
        words = ["--images", str(images or scenes / "images"), "--cache", str(scenes / "cache")]
        code = invoke(["data", "check", str(annotations), *words, "--json"])
        counts: dict[str, int] = json.loads(capsys.readouterr().out)["counts"]
        return code, counts

    return run


@pytest.mark.parametrize(
    ("change", "settings", "kind", "count", "exit_code", "num_boxes"),
    [
        pytest.param(_remove_all_boxes, {}, "image_without_boxes", 8, 3, 0, id="batch-empty"),
        pytest.param(_first_image_has([5, 5, 9, 9], iscrowd=1), {}, "crowd_box", 1, 0, None),
        pytest.param(_first_image_has([5, 5, 0, 9]), {}, "box_zero_size", 1, 3, None),
        pytest.param(_first_image_has([5, 5, -4, 9]), {}, "box_inverted", 1, 3, None),
        pytest.param(_first_image_has([97, 5, 4, 9]), {}, "box_outside_image", 1, 3, None),
        pytest.param(
            _first_image_has([5, 5, math.nan, 9], [math.inf, 5, 4, 9]),
            {},
            *("box_not_finite", 2, 3, None),
        ),
        pytest.param(_first_image_has([1, 2, 3], None), {}, "box_malformed", 2, 3, None),
        pytest.param(_first_image_has([-50, 5, 80, 300]), {}, "box_partly_outside", 1, 0, 1),
        pytest.param(_first_image_has(*FIVE_HUNDRED), {}, "many_boxes", 1, 0, 500),
        pytest.param(
            _keep_one_class, {"data.num_classes": 1}, "single_category", 1, 0, 0, id="one-class"
        ),
        pytest.param(_spread_category_ids, {}, "category_id_gap", 1, 0, 0, id="id-gaps"),
    ],
)
def test_bad_boxes_are_counted_and_the_rest_trains(
    tmp_path: Path,
    scenes: Path,
    load_tiny: Callable[..., Any],
    change_annotations: Callable[..., Path],
    check: Callable[..., tuple[int, dict[str, int]]],
    change: Change,
    settings: dict[str, Any],
    kind: str,
    count: int,
    exit_code: int,
    num_boxes: int | None,
) -> None:
    """`num_boxes` is how many boxes more the run uses; None: the change's are all left out."""
    annotations = change_annotations(change)
    code, counts = check(annotations)
    assert (code, counts[kind]) == (exit_code, count)
    changes = ONE_STEP | settings | {"data.train_json": str(annotations)}
    summary = train_model(load_tiny(changes), tmp_path / "run", resume=False)
    assert math.isfinite(summary.last_metrics["total_loss"])
    num_given = len(json.loads((scenes / "annotations.json").read_text())["annotations"])
    if kind == "image_without_boxes":
        assert summary.num_boxes == 0
    else:
        assert summary.num_boxes == num_given + (num_boxes or 0)
    assert sum(summary.dropped.values()) == (count if num_boxes is None else 0)


@pytest.mark.parametrize(
    ("change", "kind", "count", "message"),
    [
        (_swap_sizes, "wrong_image_size", 8, "is 96x96 pixels, but the annotation file states"),
        (_forget_width, "entry_malformed", 1, "width=None, expected int"),
        (_use_an_unknown_class, "unknown_category", 1, "has category 777"),
        (_repeat_an_image, "duplicate_image_id", 1, "two images share an id"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(
    tmp_path: Path,
    load_tiny: Callable[..., Any],
    change_annotations: Callable[..., Path],
    check: Callable[..., tuple[int, dict[str, int]]],
    change: Change,
    kind: str,
    count: int,
    message: str,
) -> None:
    annotations = change_annotations(change)
    code, counts = check(annotations)
    assert (code, counts[kind]) == (3, count)
    changes = ONE_STEP | {"data.train_json": str(annotations)}
    with pytest.raises(DatasetError, match=message):
        train_model(load_tiny(changes), tmp_path / "run", resume=False)


def test_bad_boxes_are_refused_when_the_config_says_so(
    tmp_path: Path, load_tiny: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    annotations = change_annotations(_first_image_has([5, 5, -4, 9]))
    changes = ONE_STEP | {"data.train_json": str(annotations), "data.bad_boxes": "refuse"}
    with pytest.raises(DatasetError, match=r"annotation 9000.*inverted.*data\.bad_boxes=drop"):
        train_model(load_tiny(changes), tmp_path / "run", resume=False)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("missing_depth", MissingDepthError, r"\.png.*pipeline depth --coco"),
        ("missing_file", DatasetError, "cannot be read"),
        ("unreadable_file", DatasetError, "cannot be decoded"),
    ],
)
def test_images_without_depth_and_broken_images_stop_training(
    tmp_path: Path,
    scenes: Path,
    load_tiny: Callable[..., Any],
    check: Callable[..., tuple[int, dict[str, int]]],
    kind: str,
    error: type[SegtrainError],
    message: str,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted((scenes / "images").iterdir())):
        if kind == "missing_depth":
            Image.new("RGB", (96, 96), (number, 0, 0)).save(images / path.name)
        elif kind == "unreadable_file":
            (images / path.name).write_bytes(path.read_bytes()[:200])
    code, counts = check(scenes / "annotations.json", images)
    assert (code, counts[kind]) == (3, 8)
    with pytest.raises(error, match=message):
        train_model(
            load_tiny(ONE_STEP | {"data.train_images": str(images)}), tmp_path / "run", resume=False
        )
