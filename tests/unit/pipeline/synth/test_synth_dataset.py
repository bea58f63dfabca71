"""The COCO data set of scenes, read back with pycocotools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from pipeline.commands.app import app
from pipeline.errors import UsageError
from pipeline.synth import PRESETS, SHAPES, generate_dataset, read_depth, render_scene

SIZE = (64, 96)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_dataset(
        tmp_path_factory.mktemp("scenes"), num_images=5, size=SIZE, seed=9, workers=1
    )


def test_pycocotools_reads_images_boxes_and_masks(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = COCO(dataset / "annotations.json")
    capsys.readouterr()
    assert len(coco.imgs) == 5
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    for image_id, image in coco.imgs.items():
        scene = render_scene(9, SIZE, index=image_id - 1)
        with Image.open(dataset / "images" / image["file_name"]) as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels, scene.image)
        assert (image["height"], image["width"]) == SIZE
        assert np.array_equal(read_depth(dataset, image["file_name"]), scene.depth_metres)
        annotations = coco.imgToAnns[image_id]
        assert [a["category_id"] for a in annotations] == [int(c) + 1 for c in scene.classes]
        assert [a["appearance"] for a in annotations] == list(scene.appearances)
        for annotation, mask in zip(annotations, scene.masks, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0


def test_ids_are_unique_and_the_sheet_is_there(dataset: Path) -> None:
    document = json.loads((dataset / "annotations.json").read_text())
    ids = [a["id"] for a in document["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    with Image.open(dataset / "contact_sheet.png") as sheet:
        assert sheet.size == (2 * 3 * SIZE[1], 3 * SIZE[0])


def test_workers_and_length_do_not_change_a_picture(dataset: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    other = generate_dataset(
        tmp_path / "other",
        num_images=3,
        size=SIZE,
        seed=9,
        workers=2,
        with_depth=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    for name in ("000000.png", "000002.png"):
        ours, theirs = dataset / "images" / name, other / "images" / name
        assert ours.read_bytes() == theirs.read_bytes()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert not (other / "depth").exists()
    with pytest.raises(FileNotFoundError):
        read_depth(other, "000000.png")


def test_the_same_request_again_writes_nothing_and_another_one_does(tmp_path: Path) -> None:
    request = {"num_images": 1, "size": (40, 40), "seed": 1, "workers": 1}
    generate_dataset(tmp_path, **request)
    picture = tmp_path / "images" / "000000.png"
    before = picture.stat().st_mtime_ns
    generate_dataset(tmp_path, **request)
    assert picture.stat().st_mtime_ns == before
    picture.unlink()
    generate_dataset(tmp_path, **request)
    assert picture.is_file()
    old = picture.read_bytes()
    generate_dataset(tmp_path, **{**request, "seed": 2})
    assert picture.read_bytes() != old


def test_zero_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_images"):
        generate_dataset(tmp_path, num_images=0, seed=0)


def test_the_miniature_has_one_class_and_is_asked_for_by_name(tmp_path: Path) -> None:
    request = ["data", "synth", "--output", str(tmp_path), "--num-images", "2", "--json"]
    options = ["--preset", "miniature", "--size", "96x96", "--num-objects", "1-2"]
    result = CliRunner().invoke(app, [*request, *options])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "annotations.json").read_text())
    assert [category["name"] for category in document["categories"]] == ["object"]
    assert {annotation["category_id"] for annotation in document["annotations"]} == {1}
    assert document["info"]["settings"]["num_objects_max"] == 2
    assert document["info"]["settings"]["shapes"] == list(PRESETS["miniature"].shapes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--preset", "moon"], "rooms, miniature"),
        (["--num-objects", "3"], "MIN-MAX"),
        (["--camouflaged-share", "0.9", "--easy-share", "0.4"], "add up"),
    ],
)
def test_impossible_scenes_are_a_usage_error(
    options: list[str], named: str, tmp_path: Path
) -> None:
    arguments = ["data", "synth", "--output", str(tmp_path), *options]
    with pytest.raises(UsageError, match=named):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
