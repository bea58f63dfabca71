"""The demo of the labeller: scenes without masks in any file, and numbers that follow the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.masks import masks_demo
from pipeline.masks.masks_demo import compare_with_truth, run_masks_demo, write_scenes
from pipeline.synth import generate_dataset
from segtrain.data.segmentations import encode_mask


def test_scenes_hold_boxes_and_depth_and_no_masks(tmp_path: Path) -> None:
    truth = write_scenes(tmp_path, num_scenes=2, seed=1)
    document = json.loads((tmp_path / "boxes.json").read_text())
    assert {item["id"] for item in document["annotations"]} == set(truth)
    assert "segmentation" not in (tmp_path / "boxes.json").read_text()
    for item in document["annotations"]:
        ys, xs = np.nonzero(truth[item["id"]])
        x, y, width, height = item["bbox"]
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + width, y + height)
    before = (tmp_path / "images" / "001.png").stat().st_mtime_ns
    again = write_scenes(tmp_path, num_scenes=2, seed=1)
    assert (tmp_path / "images" / "001.png").stat().st_mtime_ns == before
    assert all((again[key] == truth[key]).all() for key in truth)


def test_iou_is_that_of_the_mask_and_of_the_box() -> None:
    true_mask = np.zeros((8, 8), bool)
    true_mask[0:4, 0:2] = True
    item = {"id": 1, "bbox": [0, 0, 4, 4], "segmentation": encode_mask(true_mask)}
    document = {"annotations": [item, {"id": 2, "bbox": [0, 0, 4, 4]}]}
    ious, filled = compare_with_truth(document, {1: true_mask, 2: true_mask})
    assert ious == [1.0, 0.5]
    assert filled == [0.5, 0.5]


def test_the_demo_labels_better_than_boxes_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(masks_demo, "NUM_SCENES", 2)
    monkeypatch.setattr(masks_demo, "MINUTES", 0.0)
    generate_dataset(tmp_path / "test", num_images=2, seed=5)
    demo = run_masks_demo(tmp_path / "demo", tmp_path / "test", seed=0)
    assert demo.held_out.keys() == {"from pictures alone", "with sensed depth"}
    pictures, sensed = demo.held_out.values()
    assert min(pictures, sensed) > 60
    assert pictures != sensed
    assert demo.mean_iou > demo.filled_box_iou + 0.1
    assert demo.review.is_file()
    assert f"{demo.num_boxes} boxes in 2 generated scenes" in demo.text()
    written = demo.masks.stat().st_mtime_ns
    assert run_masks_demo(tmp_path / "demo", tmp_path / "test", seed=0) == demo
    assert demo.masks.stat().st_mtime_ns == written
