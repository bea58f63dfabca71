"""`pipeline demo` at a tiny size: every method trains from one start, and the report compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.masks import masks_demo
from pipeline.report.tables import describe_outcome
from pipeline.runs import demo, demo_data
from segtrain.run.experiment import read_experiment


def _load_tiny(path: str) -> Any:
    cfg = load_config(path)
    cfg.model.backbone.update(name="test_efficientnet_gn", pretrained=False)
    cfg.train.update(max_iter=2, batch_size=2, teacher_short_side=96, tensorboard=False)
    cfg.optimizer.reference_batch_size = 2
    cfg.dataloader.train.update(num_workers=0)
    cfg.dataloader.train.augmentation.update(short_sides=[64], max_size=64)
    cfg.dataloader.test.update(short_side=64, max_size=64)
    return read_experiment(cfg)


def test_methods_are_compared_and_a_second_call_finds_all_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
    file_states: Callable[[Path], dict[str, Any]],
) -> None:
    monkeypatch.setattr(demo, "load_experiment", _load_tiny)
    monkeypatch.setattr(demo_data, "NUM_DEMO_IMAGES", {"train": 4, "test": 3})
    monkeypatch.setattr(masks_demo, "NUM_SCENES", 2)
    monkeypatch.setattr(masks_demo, "MINUTES", 0.0)
    result = demo.run_demo(tmp_path, seed=0)
    assert list(result.metrics) == ["BoxInst", "control", "ours"] == list(result.weights)
    for metrics in result.metrics.values():
        assert 0 < metrics["given_boxes"]["IoU"] < 100
        assert metrics["spread"].keys() == {"bbox", "segm", "given_boxes"}
    assert result.metrics["ours"]["differences"].keys() == {"BoxInst", "control"}
    page = result.report.read_text()
    assert "IoU given the box" in page
    assert result.labelled.describe_held_out() in page
    assert describe_outcome(result.metrics).split(" ± ")[0] in page
    before = file_states(tmp_path)
    again = demo.run_demo(tmp_path, seed=0)
    assert dataclasses.replace(again, seconds=result.seconds) == result
    assert file_states(tmp_path) == before
