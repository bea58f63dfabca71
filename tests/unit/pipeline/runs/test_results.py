"""Runs are read from their folders, each under a name of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import invoke
from pipeline.errors import ExitCode, UsageError
from pipeline.runs.manifest import open_manifest
from pipeline.runs.results import name_runs


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a"], ["a"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["mon/full", "tue/full", "tue/half"], ["mon/full", "tue/full", "half"]),
        (["x/mon/full", "y/mon/full", "tue/full"], ["x/mon/full", "y/mon/full", "tue/full"]),
    ],
)
def test_names_have_the_parents_that_tell_them_apart(folders: list[str], names: list[str]) -> None:
    assert name_runs([Path(folder) for folder in folders]) == names


def test_the_folder_one_is_in_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_runs([Path()]) == [tmp_path.name]
    with pytest.raises(UsageError, match="named twice"):
        name_runs([Path("a"), tmp_path / "a"])


def test_runs_of_one_folder_name_have_a_row_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / day / "full" for day in ("mon", "tue")]
    config = {"path": "configs/coco/full_r50_1x.py", "assignments": []}
    for ap, folder in enumerate(folders):
        (folder / "eval").mkdir(parents=True)
        open_manifest(folder, command=[], config=config, stages=["eval"]).save()
        metrics = {"bbox": {"AP": float(ap)}, "segm": {"AP": None}}
        (folder / "eval" / "metrics.json").write_text(json.dumps(metrics))
    assert invoke(["report", *map(str, folders), "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: metrics["bbox"]["AP"] for name, metrics in found.items()} == {
        "mon/full": 0.0,
        "tue/full": 1.0,
    }
    page = (folders[0] / "report.html").read_text()
    assert all(f"<th scope=row>{name}</th>" in page for name in found)
