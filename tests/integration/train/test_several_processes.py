"""Several processes act as one: in their statistics, in an error, and in a resumed run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import launch

from segtrain.distillation.object_memory import ObjectMemory
from segtrain.run.checkpoints import list_checkpoints, load_state
from segtrain.run.metrics_log import read_metrics

TWO_STEPS: dict[str, Any] = {
    "train.max_iter": 2,
    "train.distill_from": 0.0,
    "train.num_processes": 2,
    "schedule.warmup": 0.0,
    "dataloader.train.num_workers": 0,
    "dataloader.train.augmentation.short_sides": [64],
}


# Five batches of two of eight images, so that a pass ends on the way.
FIVE_STEPS: dict[str, Any] = TWO_STEPS | {
    "train.max_iter": 5,
    "train.checkpoint_period": 1,
    # A batch norm would see other batches.
    "model.norm": "GN",
}


@pytest.fixture(scope="module")
def folder_of_two(
    tmp_path_factory: pytest.TempPathFactory, load_tiny: Callable[..., Any], joint_work: Any
) -> Path:
    """What two processes left of all their works: starting them takes longer than these."""
    folder = tmp_path_factory.mktemp("two")
    by_one = load_tiny(FIVE_STEPS | {"train.num_processes": 1})
    joint_work.train_and_record_images(by_one, folder / "one-two", stop_at=3)
    works = [
        (
            joint_work.train_and_fail,
            load_tiny(TWO_STEPS | {"train.teacher_momentum": 0.5}),
            folder / "sound",
            folder / "failed",
        ),
        (
            joint_work.resume_one_and_stop_one,
            load_tiny(FIVE_STEPS),
            folder / "one-two",
            folder / "two-one",
            3,
        ),
        (joint_work.remember, folder),
    ]
    # A process that waits for one that has stopped must fail the test, not stall it.
    patience = timedelta(seconds=90)
    launch(joint_work.do_all, 2, dist_url="auto", args=(works,), timeout=patience)
    return folder


@pytest.fixture(scope="module")
def records_of_two(folder_of_two: Path, joint_work: Any) -> dict[str, Any]:
    """What two processes saw of two sound steps, and of a step that fails in the second of them."""
    return {f"{name}_dir": folder_of_two / name for name in ("sound", "failed")} | {
        name: [torch.load(joint_work.rank_file(folder_of_two / name, rank)) for rank in (0, 1)]
        for name in ("sound", "failed")
    }


@pytest.mark.slow
def test_two_processes_share_the_mean_of_their_batch_statistics(
    records_of_two: dict[str, Any],
) -> None:
    one, other = records_of_two["sound"]
    assert len(one) == len(other) == 2
    for step, other_step in zip(one, other, strict=True):
        own, other_own = step["own"], other_step["own"]
        assert own
        for name, value in own.items():
            assert not torch.equal(value, other_own[name]), name
            mean = (value + other_own[name]) / 2
            torch.testing.assert_close(step["student"][name], mean, msg=name)
        for model in ("student", "teacher"):
            for name, value in step[model].items():
                assert torch.equal(value, other_step[model][name]), f"{model} {name}"
    # The teacher follows these statistics, each step a share of the way.
    for name in one[0]["own"]:
        before, after = one[0]["teacher"][name], one[1]["teacher"][name]
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, 0.5 * (before + one[1]["student"][name]), msg=name)


@pytest.mark.slow
def test_log_has_the_mean_over_processes(records_of_two: dict[str, Any]) -> None:
    (row,) = read_metrics(records_of_two["sound_dir"] / "metrics.jsonl")
    parts = [step["metrics"] for steps in records_of_two["sound"] for step in steps]
    assert len(parts) == 4  # two steps of two processes
    for name in ("loss_proj", "loss_fcos_cls", "total_loss", "mask_box_fill_ratio"):
        values = [part[name] for part in parts]
        assert row[name] == pytest.approx(sum(values) / 4)
    assert len({part["loss_proj"] for part in parts}) == 4


@pytest.mark.slow
def test_two_processes_stop_together_before_a_step_that_is_not_finite_in_one(
    records_of_two: dict[str, Any],
) -> None:
    one, other = records_of_two["failed"]
    for broken in ("loss", "gradient"):
        assert one[broken]["message"] == other[broken]["message"]
        assert one[broken]["is_unchanged"]
        assert other[broken]["is_unchanged"]
        assert not list_checkpoints(records_of_two["failed_dir"] / broken)
    # A loss is one process's own, so its images are named; a gradient is everybody's.
    (sound,), (guilty,) = one["loss"]["images"], other["loss"]["images"]
    assert "iteration 0: loss_proj = nan" in one["loss"]["message"]
    assert guilty in one["loss"]["message"]
    assert sound not in one["loss"]["message"]
    assert "iteration 0: gradient norm = inf" in one["gradient"]["message"]
    assert f"images: {sound}, {guilty}." in one["gradient"]["message"]


@pytest.mark.slow
def test_run_goes_on_with_another_number_of_processes(
    tmp_path: Path,
    folder_of_two: Path,
    load_tiny: Callable[..., Any],
    joint_work: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    by_one = load_tiny(FIVE_STEPS | {"train.num_processes": 1})
    whole = joint_work.train_and_record_images(by_one, tmp_path / "whole")
    records = {
        run: [torch.load(joint_work.rank_file(folder_of_two / run, rank)) for rank in (0, 1)]
        for run in ("one-two", "two-one")
    }
    caplog.clear()
    last = joint_work.train_and_record_images(by_one, folder_of_two / "two-one")

    # Cut off after the third iteration, before its checkpoint, so it is done again.
    def joined(run: str) -> dict[int, list[str]]:
        one, other = (record["images"] for record in records[run])
        assert one.keys() == other.keys()
        return {iteration: one[iteration] + other[iteration] for iteration in one}

    assert joined("one-two") == {n: whole[n] for n in (3, 4, 5)}
    assert joined("two-one") == {n: whole[n] for n in (1, 2, 3)}
    assert last == {n: whole[n] for n in (3, 4, 5)}
    warning = "the run had {} processes and has {} now"
    for record in records["one-two"]:
        assert any(warning.format(1, 2) in text for text in record["warnings"])
    assert warning.format(2, 1) in caplog.text

    expected = load_state(tmp_path / "whole" / "model_final.pth")
    for run in ("one-two", "two-one"):
        final = load_state(folder_of_two / run / "model_final.pth")
        assert final["iteration"] == 5
        for name, value in final["model"].items():
            torch.testing.assert_close(value, expected["model"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_remember_the_objects_of_both(folder_of_two: Path, joint_work: Any) -> None:
    one, other = (torch.load(joint_work.rank_file(folder_of_two, rank)) for rank in (0, 1))
    alone = ObjectMemory(num_classes=2, num_entries=3, temperature=0.1)
    first, second = joint_work.make_objects(0), joint_work.make_objects(1)
    alone.add(*(torch.cat(parts) for parts in zip(first, second, strict=True)))
    alone.add(*(values[:1] for values in first))
    assert one["counts"].tolist() == [4, 2]
    for name, value in alone.state_dict().items():
        assert torch.equal(one[name], value), name
        assert torch.equal(other[name], value), name
