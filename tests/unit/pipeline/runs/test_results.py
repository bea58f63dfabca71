"""Runs are read from their folders, each under a name of its own."""

from __future__ import annotations

import json
import re
import shlex
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


def test_a_report_on_runs_of_a_demo_links_to_its_review_page(tmp_path: Path) -> None:
    demo, run = tmp_path / "demo", tmp_path / "demo" / "full"
    page = demo / "labeller" / "review.html"
    (run / "eval").mkdir(parents=True)
    manifest = open_manifest(demo, command=[], config={}, stages=["labeller"])
    with manifest.running("labeller", {}) as record:
        record.outputs = {"review": str(page)}
    config = {"path": "configs/coco/full_r50_1x.py", "assignments": []}
    open_manifest(run, command=[], config=config, stages=["eval"], home=demo).save()
    metrics = {"bbox": {"AP": 1.0}, "segm": {"AP": None}}
    (run / "eval" / "metrics.json").write_text(json.dumps(metrics))

    def links(out: Path) -> list[str]:
        assert invoke(["report", str(run), "--out", str(out)]) == ExitCode.DONE
        return re.findall(r'href="?([^ ">]*review.html)', out.read_text())

    assert links(demo / "report.html") == [], "a page that is not there is not linked to"
    page.parent.mkdir()
    page.write_text("")
    assert links(demo / "report.html") == ["labeller/review.html"]
    assert links(run / "report.html") == ["../labeller/review.html"]
    assert links(tmp_path / "x" / "report.html") == ["../demo/labeller/review.html"]


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


def test_a_demo_s_folder_is_refused_with_its_report_and_the_runs_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"path": "configs/coco/full_r50_1x.py", "assignments": []}
    demo = tmp_path / "the demo"
    for name in ("boxinst", "control"):
        open_manifest(demo / name, command=[], config=config, stages=["eval"], home=demo).save()
        (demo / name / "eval").mkdir()
        metrics = {"bbox": {"AP": 1.0}, "segm": {"AP": None}}
        (demo / name / "eval" / "metrics.json").write_text(json.dumps(metrics))

    def refusal() -> str:
        assert invoke(["report", str(demo)]) == ExitCode.USAGE
        return capsys.readouterr().err

    said = refusal()  # as of any folder of runs
    assert "holds 2 evaluated ones" in said
    assert "report.html" not in said
    open_manifest(demo, command=["demo"], config={}, stages=["report"]).save()
    (demo / "report.html").write_text("")
    said = refusal()
    assert f"The report on all of them is {demo / 'report.html'}." in said
    command = shlex.split(re.search(r"compare them: (.*?)\. The", said)[1])
    assert invoke([*command[1:], "--out", str(tmp_path / "report.html")]) == ExitCode.DONE
