"""A start that failed before its first iteration spoils no folder, and status says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.cli import invoke
from pipeline.errors import ExitCode, UsageError
from pipeline.runs.manifest import locked_run, open_manifest
from pipeline.runs.stages import refuse_other_experiment, run_train_stage, train_inputs
from segtrain.errors import CheckpointError
from tests.unit.pipeline.runs.conftest import CONFIG, Load


@pytest.mark.parametrize("verb", ["train", "run"])
def test_absent_weights_are_refused_without_a_record(
    verb: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", *files, "train.init_checkpoint=absent.pth"]
    assert invoke([verb, CONFIG, "--output", str(tmp_path), *settings]) == ExitCode.USAGE
    assert "absent.pth: there is no such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_training_that_failed_before_its_first_iteration_takes_other_settings(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, run = tmp_path / "foreign.pth", tmp_path / "run"
    torch.save({"model": {"of another": torch.zeros(1)}}, foreign)
    manifest = open_manifest(run, command=["train", "x.py"], config={}, stages=["train"])
    with pytest.raises(CheckpointError, match="none of its 1 entries fits"):
        run_train_stage(manifest, load(f"train.init_checkpoint={foreign}"))
    assert invoke(["status", str(run)]) == ExitCode.DONE
    assert "next: correct what train was refused for" in capsys.readouterr().out
    others = train_inputs(load("train.seed=5"))
    refuse_other_experiment(manifest, others)
    (run / "metrics.jsonl").write_text('{"iteration": 1}\n')
    with pytest.raises(UsageError, match=r"train\.seed: 0 → 5"):
        refuse_other_experiment(manifest, others)


def test_status_of_a_run_at_work_says_to_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = open_manifest(tmp_path, command=["train"], config={}, stages=["train"])
    with locked_run(tmp_path), manifest.running("train", {}):
        assert invoke(["status", str(tmp_path)]) == ExitCode.DONE
    assert "next: wait; process " in capsys.readouterr().out
