"""`pipeline report` of a cache: what each call of `pipeline depth` did, in words and as a page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import invoke
from pipeline.errors import ExitCode
from pipeline.runs.manifest import load_manifest, open_manifest
from tests.integration.conftest import depth_stopped_after_a_batch


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one of them twice, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (30, 24), (40 * index, 9, 9)).save(folder / f"{index}.png")
    shutil.copy(folder / "0.png", folder / "again.png")
    (folder / "<bad>.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def words(model: Path, images: Path, tmp_path: Path) -> list[str]:
    """The command whose calls are reported on."""
    root = tmp_path / "cache"
    return ["depth", "--images", str(images), "--model", str(model), "--cache", str(root)]


def test_a_call_is_told_in_a_sentence_with_its_failures_and_what_to_do(
    words: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cache"
    assert invoke(words) == ExitCode.FAILED_ITEMS
    capsys.readouterr()
    assert invoke(["report", str(root)]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert re.match(
        r"4 of 5 images \(4 different\) have depth from tiny-dpt: "
        r"3 maps computed in .+ s \([\d.]+ maps/s\), 1 image failed\.\n",
        shown,
    )
    assert re.search(rf"^{images}/<bad>.png  not an image", shown, re.MULTILINE)
    assert "convention: relative inverse depth, larger = nearer\n" in shown
    page = (root / ".runs" / "report.html").read_text()
    assert shown.splitlines()[0] in page
    assert f"<th scope=row>{images}/&lt;bad&gt;.png</th><td>not an image" in page
    assert not re.search(r"https?://|<script|@import|url\(", page)
    capsys.readouterr()
    assert invoke(["status", str(root)]) == ExitCode.DONE
    named = re.search(r"next: done; `pipeline (report .*)` lists", capsys.readouterr().out)
    assert named is not None
    assert invoke([*shlex.split(named[1]), "--json"]) == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)
    (call,) = document["depth_calls"]
    assert document["report"] == f"{call['run']}/report.html"
    assert call["facts"]["fingerprint"] == next(root.glob("*/fingerprint.json")).parent.name
    assert (call["state"], call["counts"]["failed"], len(call["failures"])) == ("done", 1, 1)

    (images / "<bad>.png").unlink()
    resume = re.search(r"then pipeline (resume .*)", call["next"])
    assert resume is not None
    assert invoke(shlex.split(resume[1])) == ExitCode.DONE
    capsys.readouterr()
    assert invoke(["report", str(root)]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert shown.startswith(
        "All 4 images (3 different) have depth from tiny-dpt: 3 maps there before.\n"
    )
    assert f"as --cache {root}," in shown
    assert "<bad>" not in (root / ".runs" / "report.html").read_text()

    shutil.rmtree(root / call["facts"]["fingerprint"])
    assert invoke(["report", str(root)]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert (
        f"next: the maps are no longer there; to compute them again: pipeline {resume[1]}" in shown
    )


def test_calls_that_did_not_end_well_are_told_with_the_command_that_goes_on(
    words: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with depth_stopped_after_a_batch():
        assert invoke([*words, "--batch-size", "1"]) == ExitCode.INTERRUPTED
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"cut")
    assert invoke([str(broken) if word == str(model) else word for word in words]) != 0
    capsys.readouterr()
    assert invoke(["report", str(tmp_path / "cache"), "--json"]) == ExitCode.DONE
    calls = {call["state"]: call for call in json.loads(capsys.readouterr().out)["depth_calls"]}
    assert calls.keys() == {"failed", "interrupted"}
    assert calls["interrupted"]["outcome"].startswith(
        "The call was stopped before its end: depth: 1/3 images, 1 failed"
    )
    failed = load_manifest(Path(calls["failed"]["run"])).stages["depth"]
    assert calls["failed"]["outcome"].startswith(f"The call failed: {failed.error}; the maps")
    for call in calls.values():
        assert call["next"] == f"pipeline resume {call['run']}"
    assert invoke(shlex.split(calls["interrupted"]["next"])[1:]) == ExitCode.FAILED_ITEMS


def test_what_has_no_record_of_a_call_is_refused_with_the_command_that_is_meant(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*places: Path | str) -> str:
        assert invoke(["report", *map(str, places)]) == ExitCode.USAGE
        return capsys.readouterr().err

    root, run = tmp_path / "cache", tmp_path / "run"
    assert invoke(words) == ExitCode.FAILED_ITEMS
    open_manifest(run, command=["train"], config={}, stages=["train"]).save()
    capsys.readouterr()
    said = refusal(root, run)
    assert f"pipeline report {root} and pipeline report {run}" in said
    (cache,) = (file.parent for file in root.glob("*/fingerprint.json"))
    assert f"`pipeline report {root}` says" in refusal(cache)
    shutil.rmtree(root / ".runs")
    assert f"`pipeline cache ls {root}` says what it holds" in refusal(root)
    assert "has no record of `pipeline depth`" in refusal("s3://no-such-bucket/depth")
    assert "is not a run" in refusal(tmp_path / "images")
