"""A killed run that is started again ends with the same bits as one that was never killed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig

from depthcache.exchange.interchange import import_maps
from segtrain.distillation.box_teacher import BoxTeacherSettings
from segtrain.distillation.disco_box import DiscoBoxSettings
from segtrain.errors import CheckpointError
from segtrain.run.checkpoints import list_checkpoints, load_state
from segtrain.run.metrics_log import read_metrics
from segtrain.run.trainer import train_model


def _assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            # Times differ between runs; nothing else may.
            if "seconds" not in str(key):
                _assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def _assert_same_runs(one: Path, other: Path) -> None:
    (_, expected), (_, actual) = list_checkpoints(one)[-1], list_checkpoints(other)[-1]
    _assert_same(load_state(expected), load_state(actual))
    _assert_same(load_state(one / "model_final.pth"), load_state(other / "model_final.pth"))
    _assert_same(read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl"))


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, two_threads: None
) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    train_model(LazyConfig.load(str(tiny_config)), run_dir, resume=True)
    return run_dir


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("two_threads")
def test_killed_run_ends_as_the_uninterrupted_one(
    tmp_path: Path,
    train_and_die: Callable[..., None],
    uninterrupted: Path,
    load_tiny: Callable[..., Any],
) -> None:
    # Killed past the last checkpoint, while the teacher exists.
    train_and_die(tmp_path, kill_after=5)
    assert [iteration for iteration, _ in list_checkpoints(tmp_path)] == [2, 4]
    # What a kill in the middle of a write leaves behind goes at the next start.
    leftover = tmp_path / "checkpoints" / "iteration_00000006.pth.tmp-77"
    leftover.write_bytes(b"half")
    assert train_model(load_tiny(), tmp_path, resume=True).num_resumed == 4
    assert not leftover.exists()
    state = load_state(list_checkpoints(tmp_path)[-1][1])
    assert state["teacher"] is not None
    assert state["sample_position"] == 12
    _assert_same_runs(uninterrupted, tmp_path)


class _Interrupted(Exception):
    pass


@pytest.mark.usefixtures("two_threads")
def test_run_interrupted_at_every_iteration_ends_as_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: Path, load_tiny: Callable[..., Any]
) -> None:
    stops = iter(range(1, 6))

    def stop_when_due(iteration: int, max_iter: int, metrics: dict[str, float]) -> None:
        if iteration == due:
            raise _Interrupted

    # With a checkpoint per iteration each start gets one iteration further.
    changes = {"train.checkpoint_period": 1}
    for due in stops:
        with pytest.raises(_Interrupted):
            train_model(load_tiny(changes), tmp_path, resume=True, on_progress=stop_when_due)
        # What the random generators hold between two processes must not matter.
        torch.manual_seed(due)
        random.seed(due)
    assert train_model(load_tiny(changes), tmp_path, resume=True).num_resumed == 4
    _assert_same_runs(uninterrupted, tmp_path)


# What keeps the masks of an untrained teacher, so that it teaches from the first step.
_TEACHES = {"train.distill_from": 0.0, "model.score_threshold": 0.001}
TEACHERS = {
    "box_teacher": {
        "model.distillation": LazyCall(BoxTeacherSettings)(min_iou=0.0, warmup_iterations=1),
        "dataloader.train.augmentation.photometric": {
            "jitter_probability": 0.8,
            "grayscale_probability": 0.2,
            "blur_probability": 0.5,
        },
    },
    "disco_box": {
        "model.distillation": LazyCall(DiscoBoxSettings)(
            reads_depth=True, warmup_iterations=1, memory_entries=2
        ),
        "model.color": False,
        "train.teacher_short_side": None,
    },
}


@pytest.mark.parametrize("method", TEACHERS)
@pytest.mark.usefixtures("two_threads")
def test_other_teachers_resume_as_if_never_interrupted(
    tmp_path: Path, load_tiny: Callable[..., Any], method: str
) -> None:
    changes = TEACHERS[method] | _TEACHES | {"train.max_iter": 3, "train.checkpoint_period": 1}

    def stop(iteration: int, max_iter: int, metrics: dict[str, float]) -> None:
        if iteration == 2:
            raise _Interrupted

    whole = train_model(load_tiny(changes), tmp_path / "whole", resume=False)
    assert whole.last_metrics["loss_pseudo"] > 0
    with pytest.raises(_Interrupted):
        train_model(load_tiny(changes), tmp_path / "parts", resume=False, on_progress=stop)
    assert train_model(load_tiny(changes), tmp_path / "parts", resume=True).num_resumed == 1
    _assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_another_length_or_a_fresh_start_is_refused(
    tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    short = {
        "train.max_iter": 1,
        "dataloader.train.num_workers": 0,
        "train.distill_from": None,
        "model.distillation": None,
    }
    summary = train_model(load_tiny(short), tmp_path, resume=False)
    assert summary.num_iterations == 1
    assert train_model(load_tiny(short), tmp_path, resume=True).num_resumed == 1
    with pytest.raises(CheckpointError, match="already holds checkpoints"):
        train_model(load_tiny(short), tmp_path, resume=False)
    with pytest.raises(CheckpointError, match=r"train\.max_iter: 1 → 4.*shares of the whole run"):
        train_model(load_tiny(short | {"train.max_iter": 4}), tmp_path, resume=True)


@pytest.fixture(scope="module")
def half_done(
    tmp_path_factory: pytest.TempPathFactory, load_tiny: Callable[..., Any], two_threads: None
) -> Path:
    run_dir = tmp_path_factory.mktemp("half")

    def stop(iteration: int, max_iter: int, metrics: dict[str, float]) -> None:
        if iteration == 2:
            raise _Interrupted

    changes = {"train.checkpoint_period": 1}
    with pytest.raises(_Interrupted):
        train_model(load_tiny(changes), run_dir, resume=True, on_progress=stop)
    return run_dir


def test_half_done_run_does_not_go_on_with_other_depth(
    half_done: Path, scenes: Path, tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    import_maps(
        scenes / "depth",
        tmp_path / "cache",
        images=scenes / "images",
        format="npy",
        convention="metric",
        model="another-sensor",
    )
    other_maps = load_tiny({"depth.cache": str(tmp_path / "cache")})
    with pytest.raises(CheckpointError, match=r"depth\.fingerprint: .* → .*another-sensor"):
        train_model(other_maps, half_done, resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {
                "depth.enabled": False,
                "model.depth_layer": False,
                "model.consistency": False,
                "model.distillation.depth_matching": False,
            },
            r"depth\.enabled: True → False",
        ),
        ({"model.color_threshold": 0.2}, r"model\.color_threshold: 0\.3 → 0\.2"),
    ],
)
def test_half_done_run_does_not_go_on_as_another_method(
    half_done: Path, changes: dict[str, Any], named: str, load_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(CheckpointError, match=named):
        train_model(load_tiny(changes), half_done, resume=True)
