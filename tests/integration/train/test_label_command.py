"""`pipeline label` and `predict` as typed: exit codes, summary, and paths tried before the work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import invoke
from segtrain.run.trainer import train_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    cfg = LazyConfig.load(str(tiny_config))
    OmegaConf.update(cfg, "train.max_iter", 1)
    OmegaConf.update(cfg, "dataloader.train.num_workers", 0)
    return Path(train_model(cfg, tmp_path_factory.mktemp("run"), resume=False).final_weights)


@pytest.fixture
def label(
    tiny_config: Path, trained: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Exit code and document of `pipeline label … --json`."""

    def run(
        coco: Path, out: Path, verb: str = "label", *options: str
    ) -> tuple[int, dict[str, Any]]:
        words = ["--weights", trained, "--coco", coco, "--images", scenes / "images", "--out", out]
        code = invoke([verb, str(tiny_config), *map(str, words), *options, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_boxes_without_masks_are_counted_and_told_by_the_exit_code(
    tmp_path: Path, label: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    def ruin_one_photo_and_one_box(document: dict[str, Any]) -> None:
        document["images"][0]["file_name"] = "gone.png"
        first = document["images"][0]["id"]
        other = next(a for a in document["annotations"] if a["image_id"] != first)
        other["bbox"] = ["1", "2", "3", "4"]

    source = change_annotations(ruin_one_photo_and_one_box)
    code, document = label(source, tmp_path / "new" / "masks.json")
    annotations = json.loads((tmp_path / "new" / "masks.json").read_text())["annotations"]
    sources = [annotation["mask_source"] for annotation in annotations]
    assert code == 3
    assert document["ok"] is False
    assert [failure["file"] for failure in document["failures"]] == ["gone.png"]
    assert document["num_masks"] == sources.count("detector")
    assert document["num_filled_boxes"] == sources.count("filled_box")
    assert document["num_without_mask"] == sources.count("none") > 1
    code, document = label(source, tmp_path / "results.json", verb="predict")
    assert (code, len(document["failures"])) == (3, 1)


def test_filled_boxes_below_the_least_score_stay_boxes(
    tmp_path: Path, label: Callable[..., Any], scenes: Path
) -> None:
    source = scenes / "annotations.json"
    _, document = label(source, tmp_path / "all.json")
    whole = json.loads((tmp_path / "all.json").read_text())["annotations"]
    assert document["num_filled_boxes"] > 0
    assert all("segmentation" in item for item in whole)
    code, document = label(source, tmp_path / "good.json", "label", "--min-score", "0.05")
    good = json.loads((tmp_path / "good.json").read_text())["annotations"]
    for item in whole:
        if item["score"] < 0.05:
            del item["segmentation"]
    assert good == whole
    filled = [item for item in good if item["mask_source"] == "filled_box"]
    assert not any("segmentation" in item for item in filled)
    assert (code, document["num_filled_boxes"]) == (3, len(filled))
    assert document["num_masks"] == sum("segmentation" in item for item in good)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, label: Callable[..., Any], scenes: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "masks.json"):
        for verb in ("label", "predict"):
            code, document = label(scenes / "annotations.json", out, verb)
            assert code == 2
            assert "cannot be written" in document["error"]["message"]


def test_a_class_that_the_weights_do_not_know_is_refused(
    tmp_path: Path, label: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    def rename(document: dict[str, Any]) -> None:
        used = document["annotations"][0]["category_id"]
        for category in document["categories"]:
            if category["id"] == used:
                category["name"] = "washer"

    code, document = label(change_annotations(rename), tmp_path / "masks.json")
    assert code == 2
    assert "'washer'" in document["error"]["message"]
    assert not (tmp_path / "masks.json").exists()
