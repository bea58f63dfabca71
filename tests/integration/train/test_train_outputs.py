"""Evaluation, prediction and labelling with weights that training wrote."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from pipeline.report.page import write_report
from pipeline.report.panels import NUM_PANELS
from pipeline.report.run_result import RunResult
from pipeline.report.tables import ap_header, ap_rows
from pipeline.runs.method_spread import MAX_IMAGES, compare_results
from segtrain.data.category_matching import match_categories
from segtrain.errors import CheckpointError, DatasetError
from segtrain.run.experiment import read_experiment
from segtrain.run.trainer import train_model
from segtrain.use import given_boxes
from segtrain.use.evaluation import (
    evaluate_model,
    measure_average_precision,
)
from segtrain.use.inference import load_trained_model
from segtrain.use.labelling import label_dataset
from segtrain.use.prediction import predict_images

SHORT = {
    "train.max_iter": 2,
    "dataloader.train.num_workers": 0,
    # Hardly trained weights must give detections, too.
    "model.score_threshold": 0.0001,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    cfg = LazyConfig.load(str(tiny_config))
    for key, value in SHORT.items():
        OmegaConf.update(cfg, key, value)
    run_dir = tmp_path_factory.mktemp("run")
    return Path(train_model(cfg, run_dir, resume=False).final_weights)


def test_evaluation_measures_boxes_and_masks(
    tmp_path: Path, load_tiny: Callable[..., Any], weights: Path
) -> None:
    metrics = evaluate_model(load_tiny(SHORT), weights, tmp_path)
    assert metrics["num_images"] == 8
    assert metrics["num_results"] > 0
    assert 0 <= metrics["bbox"]["AP"] <= 100
    assert 0 <= metrics["segm"]["AP50"] <= 100
    assert json.loads((tmp_path / "metrics.json").read_text())["segm"] == metrics["segm"]
    assert len(json.loads((tmp_path / "results.json").read_text())) == metrics["num_results"]


@pytest.mark.slow
def test_evaluation_of_a_large_photo_does_not_grow_with_its_masks(repository: Path) -> None:
    script = repository / "benchmarks/evaluation_memory.py"
    answer = subprocess.run(
        [sys.executable, script, "--masks", "10", "100"], capture_output=True, check=True, text=True
    )
    few, many = (json.loads(line) for line in answer.stdout.splitlines())
    assert (few["num_masks"], many["num_masks"]) == (10, 100)
    # A mask of 4000×3000 takes 11 MiB at a byte a pixel; 90 more of them, not even three.
    assert many["peak_mib"] - few["peak_mib"] < 32


def test_test_dev_file_without_annotations_gives_a_result_file(
    tmp_path: Path,
    load_tiny: Callable[..., Any],
    weights: Path,
    scenes: Path,
    change_annotations: Callable[..., Path],
) -> None:
    source = change_annotations(lambda document: document.pop("annotations"))
    metrics = evaluate_model(load_tiny(SHORT | {"data.test_json": str(source)}), weights, tmp_path)
    assert "segm" not in metrics
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == metrics["num_results"] > 0
    keys = {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert all(set(result) == keys for result in results)
    # The server reads it as pycocotools does.
    truth = COCO(str(scenes / "annotations.json"))
    assert len(truth.loadRes(str(tmp_path / "results.json")).anns) == len(results)


def test_classes_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    known = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    wanted = [{"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}]
    assert match_categories(known, wanted) == wanted[::-1]
    assert caplog.text == ""
    others = [{"id": 1, "name": "class 1"}, {"id": 2, "name": "class 2"}]
    assert match_categories(others, wanted) == wanted
    assert "taken in this order" in caplog.text


def test_true_objects_as_results_have_full_ap(scenes: Path) -> None:
    document = json.loads((scenes / "annotations.json").read_text())
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 1.0}
        for a in document["annotations"]
    ]
    metrics = measure_average_precision(scenes / "annotations.json", results)
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["segm"]["AP"] == pytest.approx(100)
    assert measure_average_precision(scenes / "annotations.json", [])["segm"]["AP"] == 0


def test_predictions_are_a_coco_result_list(
    load_tiny: Callable[..., Any], weights: Path, scenes: Path
) -> None:
    images = sorted((scenes / "images").iterdir())[:2]
    failures: list[Path] = []
    broken = scenes / "broken.png"
    broken.write_bytes(b"nothing")
    results = predict_images(
        load_tiny(SHORT),
        weights,
        [*images, broken],
        on_failure=lambda path, reason: failures.append(path),
    )
    broken.unlink()
    assert failures == [broken]
    assert {r["file_name"] for r in results} == {path.name for path in images}
    known = {c["id"] for c in json.loads((scenes / "annotations.json").read_text())["categories"]}
    for result in json.loads(json.dumps(results)):
        x, y, width, height = result["bbox"]
        assert -0.01 <= x <= x + width <= 96.01
        assert -0.01 <= y <= y + height <= 96.01
        assert 0 <= result["score"] <= 1
        assert result["category_id"] in known
        assert mask_api.decode(result["segmentation"]).shape == (96, 96)


def test_label_gives_every_box_a_mask_inside_it(
    tmp_path: Path,
    load_tiny: Callable[..., Any],
    weights: Path,
    scenes: Path,
    change_annotations: Callable[..., Path],
) -> None:
    def add_odd_boxes(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            del annotation["segmentation"]
        first = document["annotations"][0]
        document["annotations"] += [
            first | {"id": 9001, "bbox": [5, 5, 0, 0]},
            first | {"id": 9002, "iscrowd": 1},
        ]

    source = change_annotations(add_odd_boxes)
    document = label_dataset(load_tiny(SHORT), weights, source, scenes / "images")
    out = tmp_path / "labelled.json"
    out.write_text(json.dumps(document))
    labelled = COCO(str(out))
    given = json.loads(source.read_text())["annotations"]
    assert [a["id"] for a in document["annotations"]] == [a["id"] for a in given]
    for annotation in document["annotations"]:
        if annotation.get("iscrowd"):
            assert "score" not in annotation
            continue
        mask = labelled.annToMask(labelled.anns[annotation["id"]])
        assert mask.shape == (96, 96)
        assert annotation["area"] == mask.sum()
        assert 0 <= annotation["score"] <= 1
        if annotation["id"] == 9001:
            assert mask.sum() == 0
            continue
        assert mask.any()
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert columns.min() >= np.floor(x)
        assert columns.max() < np.ceil(x + width)
        assert rows.min() >= np.floor(y)
        assert rows.max() < np.ceil(y + height)


def test_labels_go_on_after_a_photo_that_cannot_be_used(
    tmp_path: Path,
    load_tiny: Callable[..., Any],
    weights: Path,
    scenes: Path,
    change_annotations: Callable[..., Path],
) -> None:
    def spell_ids_otherwise(document: dict[str, Any]) -> None:
        document["images"][0]["file_name"] = "gone.png"
        for number, annotation in enumerate(document["annotations"]):
            annotation["id"] = f"u-{number}"
            annotation["image_id"] = str(annotation["image_id"])
            annotation["iscrowd"] = "0"

    source = change_annotations(spell_ids_otherwise)
    failures: list[str] = []
    document = label_dataset(
        load_tiny(SHORT),
        weights,
        source,
        scenes / "images",
        on_failure=lambda name, reason: failures.append(f"{name}: {reason}"),
    )
    assert len(failures) == 1
    assert "gone.png" in failures[0]
    first = str(document["images"][0]["id"])
    for number, annotation in enumerate(document["annotations"]):
        assert annotation["id"] == f"u-{number}"
        if annotation["image_id"] == first:
            assert "segmentation" not in annotation
            assert annotation["mask_source"] == "none"
        else:
            assert annotation["mask_source"] in ("detector", "filled_box")
            assert mask_api.area(annotation["segmentation"]) == annotation["area"] > 0
    with pytest.raises(DatasetError, match=r"gone\.png cannot be read"):
        label_dataset(load_tiny(SHORT), weights, source, scenes / "images")


def test_a_photo_under_two_ids_is_predicted_under_both(
    load_tiny: Callable[..., Any], weights: Path, scenes: Path
) -> None:
    image = next((scenes / "images").iterdir())
    results = predict_images(
        load_tiny(SHORT), weights, [image, image], file_names=["x", "./x"], image_ids=[501, "b"]
    )
    found = {(result["image_id"], result["file_name"]) for result in results}
    assert found == {(501, "x"), ("b", "./x")}


def test_the_number_of_classes_comes_from_data_or_weights(
    tmp_path: Path, load_tiny: Callable[..., Any], weights: Path
) -> None:
    unset = load_tiny(SHORT | {"data.num_classes": None, "train.max_iter": 1})
    assert load_trained_model(unset, weights).network.num_classes == 6
    summary = train_model(unset, tmp_path / "run", resume=False)
    assert len(torch.load(summary.final_weights)["categories"]) == 6
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(weights)["model"], bare)
    assert [c["name"] for c in load_trained_model(unset, bare).categories][-1] == "class 6"


def test_a_model_of_fp16_is_used_without_a_gpu_in_fp32(
    load_tiny: Callable[..., Any], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for precision, expected in (("fp16", "fp32"), ("bf16", "bf16")):
        cfg = load_tiny(SHORT | {"train.precision": precision, "train.device": "auto"})
        assert load_trained_model(cfg, weights).precision == expected


def test_weights_of_another_model_are_refused(
    load_tiny: Callable[..., Any], weights: Path, scenes: Path
) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        predict_images(load_tiny(SHORT | {"model.mask_channels": 4}), weights, [])


def test_report_shows_depths_masks_and_truth(
    weights: Path, load_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    result = RunResult(
        name="tiny",
        folder=weights.parent,
        experiment=read_experiment(load_tiny(SHORT)),
        weights=weights,
        metrics={"segm": {"AP": 1.0}},
    )
    page = write_report(tmp_path / "report.html", [result], coverage={}, environment={})
    captions = re.findall(r"<figcaption>([^<]*)</figcaption></figure>", page.read_text())
    rows = ["image", "pseudo depth", "predicted depth", "tiny", "truth"]
    assert captions == rows * NUM_PANELS


def test_a_report_measures_the_masks_for_given_boxes_once(
    weights: Path, load_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = read_experiment(load_tiny(SHORT))
    metrics = evaluate_model(experiment, weights, tmp_path / "eval")
    result = RunResult(
        name="tiny", folder=tmp_path, experiment=experiment, weights=weights, metrics=metrics
    )
    (compared,) = compare_results([result])
    assert 0 <= compared.metrics["given_boxes"]["IoU"] <= 100
    assert set(compared.metrics["spread"]) == {"bbox", "segm", "given_boxes"}
    assert "differences" not in compared.metrics
    cells = dict(
        zip(ap_header({"a": compared.metrics}), ap_rows({"a": compared.metrics})[0], strict=True)
    )
    assert all("±" in cells[title] for title in ("IoU given the box", "box AP", "mask AP"))
    monkeypatch.setattr(given_boxes, "measure_given_boxes", None)
    assert compare_results([result]) == [compared]
    for changes in (
        {"num_images": MAX_IMAGES + 1},
        {"segm": {"AP": None}},
    ):
        other = dataclasses.replace(result, metrics={**metrics, **changes})
        assert compare_results([other]) == [other]
