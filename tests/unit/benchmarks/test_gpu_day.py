"""The prepared GPU run at tiny size on a CPU, so that it cannot rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
