"""`doctor` names what the environment changes, with a remedy for each fault."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.cli import invoke
from pipeline.doctor import Finding, diagnose
from pipeline.errors import ExitCode
from pipeline.process_settings import MALLOC_SETTINGS, THREAD_CHOICES, THREAD_SETTINGS

_ON_GLIBC = pytest.mark.skipif(
    os.confstr("CS_GNU_LIBC_VERSION") is None if hasattr(os, "confstr") else True,
    reason="the allocator's settings are glibc's",
)


def _look(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> dict[str, Finding]:
    for name in (*MALLOC_SETTINGS, *THREAD_CHOICES, "LD_PRELOAD", "PIPELINE_NO_REEXEC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return {finding.name: finding for finding in diagnose(Path(), asks_hub=False)}


def test_this_installation_is_fit_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", "--offline", "--json"]) == ExitCode.DONE
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"python", "torchvision", "detectron2", "demo depth model", "disk"} <= {
        finding["name"] for finding in findings
    }
    for finding in findings:
        assert bool(finding["remedy"]) == (finding["status"] != "ok"), finding


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({}, "ok", "soon sleep"),
        ({"OMP_WAIT_POLICY": "active"}, "warning", "ACTIVE"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "ok", "as the environment says"),
        ({"GOMP_SPINCOUNT": "7"}, "ok", "'GOMP_SPINCOUNT': '7'"),
        ({"PIPELINE_NO_REEXEC": "1"}, "warning", "PIPELINE_NO_REEXEC"),
        ({"PIPELINE_NO_REEXEC": "1", **THREAD_SETTINGS}, "ok", "as the environment says"),
    ],
)
def test_threads_are_told_as_the_command_leaves_them(
    environment: dict[str, str], status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _look(monkeypatch, environment)["threads"]
    assert found.status == status
    assert words in found.value


@_ON_GLIBC
@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({}, "ok", "set by the commands"),
        ({"MALLOC_TOP_PAD_": "1"}, "warning", "MALLOC_TOP_PAD_"),
        ({"LD_PRELOAD": "libjemalloc.so"}, "ok", "libjemalloc.so"),
        ({"PIPELINE_NO_REEXEC": "1"}, "warning", "stays at its defaults"),
        ({"PIPELINE_NO_REEXEC": "1", **MALLOC_SETTINGS}, "ok", "set by the commands"),
    ],
)
def test_the_allocator_is_told_as_the_command_leaves_it(
    environment: dict[str, str], status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _look(monkeypatch, environment)["malloc"]
    assert found.status == status
    assert words in found.value


def test_a_disk_that_is_nearly_full_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage)
    found = next(f for f in diagnose(tmp_path / "new", asks_hub=False) if f.name == "disk")
    assert found.status == "warning"
    assert "free some space" in found.remedy
    assert str(tmp_path) in found.value
