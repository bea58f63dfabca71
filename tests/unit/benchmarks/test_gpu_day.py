"""The prepared GPU run at tiny size on a CPU, so that it cannot rot."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_day


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_part_runs_and_is_reported(tmp_path: Path, one_thread: None) -> None:
    code = gpu_day.main(["--tiny", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "gpu_day.json").read_text())
    assert document["problems"] == []
    assert code == 0
    rows = {part: [r for r in document["rows"] if r["part"] == part] for part in gpu_day.PARTS}
    assert all(rows.values())
    assert all(row["ratio"] > 0 and 0 < row["losses_share"] < 1 for row in rows["step"])
    assert 0 < rows["miniature"][0]["iou_given_the_box"] < 1
    assert rows["resume"][0]["same_bits"] is True
    assert rows["process group"][0]["relative_difference"] < 1e-6
    tables = (tmp_path / "gpu_day.md").read_text()
    assert "| short side 64, batch 2, fp32 |" in tables


def test_a_part_that_fails_or_has_no_time_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_day: gpu_day.Day) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu_day.PARTS, "resume", fail)
    words = ["--tiny", "--parts", "resume", "--out", str(tmp_path)]
    assert gpu_day.main(words) == 1
    assert gpu_day.main([*words, "--limit-seconds", "-1"]) == 1
    assert "not run: the time is up" in (tmp_path / "gpu_day.md").read_text()


def test_steps_for_which_no_time_is_left_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = replace(gpu_day.TINY, short_sides=(64, 96))
    day = gpu_day.Day(torch.device("cpu"), sizes, tmp_path, limit=60, cut=60)
    measured: list[Any] = []
    monkeypatch.setattr(gpu_day, "measure_step", lambda _day, *case: measured.append(case))
    monkeypatch.setattr(day, "seconds_left", lambda: 2.5 - len(measured))
    gpu_day.steps(day)
    assert measured == [(64, 2, "fp32"), (64, 2, "bf16"), (96, 2, "fp32")]
    assert day.problems == ["step: short side 96, batch 2, bf16: not run, the time is up"]


def test_a_part_that_runs_too_long_is_cut_and_what_was_measured_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(day: gpu_day.Day) -> None:
        day.add("resume", "done", seconds=1.0)

    def hang(_day: gpu_day.Day) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    def stop(_day: gpu_day.Day) -> None:
        raise KeyboardInterrupt

    for name, part in (("resume", measure), ("labeller", hang), ("step", stop)):
        monkeypatch.setitem(gpu_day.PARTS, name, part)
    words = ["--tiny", "--out", str(tmp_path), "--parts", "resume"]
    assert gpu_day.main([*words, "labeller", "--cut-seconds", "0.5"]) == 1
    document = json.loads((tmp_path / "gpu_day.json").read_text())
    assert [row["what"] for row in document["rows"]] == ["done", "cut: the time is up"]
    assert document["seconds"] < 5
    with pytest.raises(KeyboardInterrupt):
        gpu_day.main([*words, "step"])
    assert [r["what"] for r in json.loads((tmp_path / "gpu_day.json").read_text())["rows"]] == [
        "done"
    ]
