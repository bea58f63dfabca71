"""Commands that find everything done leave every file of the run as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cli import invoke
from pipeline.errors import ExitCode


def test_run_resume_and_train_leave_a_finished_run_as_it_is(
    tmp_path: Path,
    tiny_config: Path,
    model: Path,
    one_thread: None,
    file_states: Callable[[Path], dict[str, Any]],
) -> None:
    run = tmp_path / "run"
    settings = [f"depth.cache={tmp_path / 'cache'}", f"depth.model={model}", "train.max_iter=2"]
    words = [str(tiny_config), "--output", str(run), "--set", *settings]
    assert invoke(["run", *words]) == ExitCode.DONE
    before = file_states(tmp_path)
    assert before.keys() >= {"run/manifest.json", "run/model_final.pth", "run/report.html"}
    for again in (["run", *words], ["resume", str(run)], ["train", *words]):
        assert invoke(again) == ExitCode.DONE
        assert file_states(tmp_path) == before
