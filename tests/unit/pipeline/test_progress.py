"""Progress as log lines and as the file that `pipeline status` reads."""

from __future__ import annotations

import contextlib
import logging
import types
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.progress import ProgressReporter, format_progress_line, read_progress


def test_the_file_holds_the_last_count_with_rate_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 0.0, 1.0, 2.0, 5.0))
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(progress, "time", clock)
    file = tmp_path / "progress.json"
    reporter = ProgressReporter("adapt", "iterations", on_terminal=False, kept_in=file)
    assert read_progress(file) is None
    with reporter:
        reporter.update(100, 300)  # resumed: these do not count for the rate
        reporter.update(102, 300, 1.5)
        kept = read_progress(file)
        assert kept is not None
        assert (kept["num_done"], kept["seconds_left"]) == (100, None), "two seconds are not over"
        reporter.update(104, 300, 1.25)
    assert read_progress(file) == {
        "doing": "adapt", "unit": "iterations", "num_done": 104, "num_total": 300, "num_failed": 0,
        "loss": 1.25, "units_per_second": 1.0, "seconds_left": 196.0,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_what_ends_early_keeps_its_last_count(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    with (
        contextlib.suppress(KeyboardInterrupt),
        ProgressReporter("label", "photos", on_terminal=False, kept_in=file) as reporter,
    ):
        for num_done in (1, 2, 3):
            reporter.update(num_done, 400)
        raise KeyboardInterrupt
    kept = read_progress(file)
    assert kept is not None
    assert (kept["num_done"], kept["num_total"]) == (3, 400)


def test_another_count_starts_anew_in_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0))
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(progress, "time", clock)
    file = tmp_path / "progress.json"
    with ProgressReporter("reading", "images", on_terminal=False, kept_in=file) as reporter:
        reporter.update(1, 9)
        reporter.update(8, 9)
        reporter.turn_to("depth")
        reporter.update(2, 5)
        kept = read_progress(file)
        assert kept is not None
        assert (kept["doing"], kept["num_done"], kept["units_per_second"]) == ("depth", 2, 0.0)
        reporter.update(3, 5)
        reporter.turn_to("depth")
        reporter.update(4, 5)
    kept = read_progress(file)
    assert kept is not None
    assert (kept["num_done"], kept["units_per_second"]) == (4, 1.0), "the same count goes on"


def test_a_bar_goes_on_with_another_count(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter("reading", "images", on_terminal=True) as reporter:
        reporter.update(9, 9)
        reporter.turn_to("depth")
        reporter.update(2, 5)
    assert "2/5" in capsys.readouterr().err


def test_what_ends_before_its_first_count_keeps_none(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    with (
        pytest.raises(ValueError, match="no photo"),
        ProgressReporter("label", "photos", on_terminal=False, kept_in=file),
    ):
        raise ValueError("no photo")
    assert read_progress(file) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "2/8 images"),
        ({"units_per_second": 2.0, "seconds_left": 3.0}, "2/8 images, 2.0 images/s, 3 s left"),
        ({"units_per_second": 0.05, "seconds_left": 120.0},
         "2/8 images, 0.05 images/s, 2 min 00 s left"),
        ({"loss": 0.5}, "2/8 images, loss 0.500"),
        ({"num_failed": 1}, "2/8 images, 1 failed"),
        ({"num_done": 8, "units_per_second": 2.0, "seconds_left": 0.0}, "8/8 images, 2.0 images/s"),
    ],
)  # fmt: skip
def test_a_line_says_what_is_known(changes: dict[str, float], line: str) -> None:
    known = {"doing": "depth", "unit": "images", "num_done": 2, "num_total": 8, "num_failed": 0,
             "loss": None, "units_per_second": 0.0, "seconds_left": None}  # fmt: skip
    assert format_progress_line(known | changes) == f"depth: {line}"


def test_without_a_terminal_lines_are_logged_and_nothing_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        caplog.at_level(logging.INFO, logger="pipeline.progress"),
        ProgressReporter("eval", "images", on_terminal=False) as reporter,
    ):
        reporter.update(1, 1)
    assert caplog.messages == ["eval: 1/1 images"]
    assert not list(tmp_path.iterdir())
