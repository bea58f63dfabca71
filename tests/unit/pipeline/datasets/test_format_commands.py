"""`pipeline data import` and `data export` as a user calls them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.cli import invoke
from pipeline.errors import ExitCode


@pytest.fixture
def export(tmp_path):
    """A YOLO export of two images, with one line that is no box."""
    (tmp_path / "im").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (20, 10)).save(tmp_path / "im" / f"{name}.png")
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.4\n")
    with (tmp_path / "labels" / "b.txt").open("a") as file:
        file.write("0 0.5\n")
    (tmp_path / "classes.txt").write_text("car\n")
    return tmp_path


@pytest.fixture
def masks(export):
    invoke(["data", "import", str(export), "--images", f"{export}/im", "--out", f"{export}/b.json"])
    document = json.loads((export / "b.json").read_text())
    mask = np.zeros((10, 20), np.uint8, order="F")
    mask[4:6, 6:14] = 1
    for annotation in document["annotations"]:
        encoded = mask_api.encode(mask)
        annotation["segmentation"] = {"size": [10, 20], "counts": encoded["counts"].decode()}
    path = export / "masks.json"
    path.write_text(json.dumps(document))
    return path


def test_import_writes_coco_and_names_what_it_skipped(export, capsys):
    out = export / "coco" / "boxes.json"
    code = invoke(["data", "import", str(export), "--images", f"{export}/im", "--out", str(out)])
    assert code == ExitCode.FAILED_ITEMS
    text = capsys.readouterr().out
    assert "yolo: 2 images, 2 boxes, 1 classes" in text
    assert "b.txt:2: 2 values; expected `class cx cy width height` or a polygon" in text
    document = json.loads(out.read_text())
    assert [item["bbox"] for item in document["annotations"]] == [[5, 3, 10, 4]] * 2


def test_imported_boxes_pass_the_check(export, capsys):
    out = export / "boxes.json"
    (export / "labels" / "b.txt").write_text("0 0.5 0.5 0.5 0.4\n")
    arguments = ["data", "import", str(export), "--images", f"{export}/im", "--out", str(out)]
    assert invoke(arguments) == ExitCode.DONE
    assert invoke(["data", "check", str(out), "--images", f"{export}/im"]) == ExitCode.DONE


def test_export_of_reviewed_ids_writes_only_these_and_their_images(masks, tmp_path, capsys):
    ids = tmp_path / "ids.json"
    ids.write_text('{"annotation_ids": [2]}')
    common = ["data", "export", str(masks), "--images", str(tmp_path / "im")]
    out = tmp_path / "cvat.xml"
    assert invoke([*common, "--out", str(out), "--ids", str(ids)]) == ExitCode.DONE
    assert out.read_text().count("<mask") == 1
    assert "1 masks as cvat" in capsys.readouterr().out
    rest = tmp_path / "rest.json"
    assert invoke([*common, "--out", str(rest), "--without-ids", str(ids)]) == ExitCode.DONE
    assert [item["id"] for item in json.loads(rest.read_text())["annotations"]] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{0}/x"], "say --format"),
        (["--out", "{0}/x.bmp", "--format", "bmp"], "unknown mask format 'bmp'"),
        (["--out", "{0}/masks.json"], "would overwrite"),
        (["--out", "{0}/x.json", "--ids", "{0}/none.json"], "does not exist"),
        (["--out", "{0}/im", "--format", "cvat"], "is a folder"),
        (["--out", "{0}/classes.txt", "--format", "png"], "needs a folder"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(masks, tmp_path, capsys, arguments, message):
    filled = [argument.format(tmp_path) for argument in arguments]
    assert invoke(["data", "export", str(masks), *filled]) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_ids_that_the_file_lacks_are_named(masks, tmp_path, capsys):
    ids = tmp_path / "ids.json"
    ids.write_text("[1, 99]")
    code = invoke(
        ["data", "export", str(masks), "--out", str(tmp_path / "o.json"), "--ids", str(ids)]
    )
    assert code == ExitCode.USAGE
    assert "'99'" in capsys.readouterr().err
