"""A start that cannot end well is refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import invoke
from pipeline.config import load_experiment
from pipeline.errors import ExitCode, UsageError
from pipeline.runs.demo_data import find_absent_demo_splits
from pipeline.runs.manifest import open_manifest
from pipeline.runs.start_checks import refuse_unusable_files
from tests.unit.pipeline.runs.conftest import CONFIG, Load


@pytest.mark.parametrize("setting", ["data.test_images=absent", "data.test_json=absent.json"])
def test_run_refuses_absent_test_data_at_once_in_the_words_of_eval(
    setting: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", *files, setting]
    run = tmp_path / "run"
    assert invoke(["run", CONFIG, "--output", str(run), *settings]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert f"{setting.replace('=', ' is ')}, and there is no such" in said
    assert [path.name for path in run.iterdir()] == [".lock"], "no scene, no record"
    assert invoke(["eval", CONFIG, "--weights", "absent.pth", *settings]) == ExitCode.USAGE
    assert capsys.readouterr().err == said


def test_run_refuses_test_data_of_other_classes_at_once(
    load: Load, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(Path(load().data.test_json).read_text())
    document["categories"][0]["name"] = "zebra"
    (tmp_path / "other.json").write_text(json.dumps(document))
    settings = ["--set", *files, f"data.test_json={tmp_path / 'other.json'}"]
    run = tmp_path / "run"
    assert invoke(["run", CONFIG, "--output", str(run), *settings]) == ExitCode.USAGE
    assert "the test file names zebra" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_what_only_finished_stages_read_may_be_gone(tmp_path: Path, load: Load) -> None:
    experiment = load("data.train_images=gone", "data.test_images=gone")
    manifest = open_manifest(tmp_path, command=[], config={}, stages=["train", "eval"])
    for stage, named in (("train", "train_images is gone"), ("eval", "test_images is gone")):
        with pytest.raises(UsageError, match=named):
            refuse_unusable_files(tmp_path, experiment, ["train", "test"])
        with manifest.running(stage, {}):
            pass
    refuse_unusable_files(tmp_path, experiment, ["train", "test"])


@pytest.mark.parametrize(
    ("settings", "splits"),
    [
        ([], ["train", "test"]),
        (["train.max_iter=2"], ["train", "test"]),
        (["data.test_json=absent.json"], ["train"]),
        (["data.train_images=absent"], ["test"]),
    ],
)
def test_scenes_never_stand_in_for_files_that_the_user_named(
    settings: list[str], splits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(CONFIG, settings)
    assert find_absent_demo_splits(CONFIG, settings, experiment) == splits
