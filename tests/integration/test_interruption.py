"""Ctrl-C at the real command: it says what is kept and how to go on, and ends with 130.

Where a moment within an import is meant, the interpreter lists every import on stderr, into a pipe
of one page: the command stands still soon after the line that is waited for, until it is read on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ExitCode
from pipeline.runs.manifest import load_manifest
from pipeline.synth import generate_dataset

_SECONDS = 240  # on a busy machine; seconds else


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return Path(generate_dataset(tmp_path / "scenes", num_images=3, size=(64, 64), seed=1))


def _interrupt(arguments: list[str], wait_for: str, number: signal.Signals) -> tuple[int, str]:
    """Run the command until stderr has a line with these words, send the signal, read the rest."""
    # Tests that run in a shell's background ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stderr is not None
        lines = []
        try:
            for line in process.stderr:
                lines.append(line)
                if wait_for in line:
                    process.send_signal(number)
                    break
            lines += process.stderr.readlines()
            return process.wait(_SECONDS), "".join(lines)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_names_the_command_that_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    command = ["data", "synth", "--output", str(tmp_path / "a b"), "--num-images", "100000",
               "--size", "32x32"]  # fmt: skip
    code, said = _interrupt(command, "data synth: ", number)
    assert code == ExitCode.INTERRUPTED, said
    (last,) = [line for line in said.splitlines() if "interrupted" in line]
    again = last.partition("what is done is kept; to go on: ")[2]
    assert shlex.split(again) == ["pipeline", *command]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("pipeline.process_settings", "interrupted before the work began; nothing was done"),
        ("typer._click.core", "interrupted before the work began; nothing was done"),
        ("torch._utils", "interrupted; what is done is kept; to go on: pipeline masks"),
        ("torch._subclasses.fake_tensor", "interrupted; what is done is kept; to go on: "),
    ],
)
def test_ctrl_c_during_the_imports_says_so_and_nothing_else(
    scenes: Path, tmp_path: Path, module: str, sentence: str
) -> None:
    command = ["masks", "--coco", str(scenes / "annotations.json"), "--images",
               str(scenes / "images"), "--out", str(tmp_path / "m.json"), "--output",
               str(tmp_path / "run")]  # fmt: skip
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "pipeline", *command],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        signal.signal(signal.SIGINT, before)
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        try:
            for line in process.stderr:
                if line.split("|")[-1].strip() == module:
                    break
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert process.wait(_SECONDS) == ExitCode.INTERRUPTED, rest
        finally:
            process.kill()
    said = [line for line in rest.splitlines() if "import time:" not in line]
    assert sentence in said[-1]
    assert [line for line in said[:-1] if "stopped during" not in line] == []  # a verb's own


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_held_back_over_a_restart_is_answered_at_the_first_line(
    number: signal.Signals,
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor"],
        capture_output=True, text=True, check=False, timeout=_SECONDS,
        preexec_fn=lambda: _hold_back(number),
    )  # fmt: skip
    assert process.returncode == ExitCode.INTERRUPTED
    assert process.stderr == "pipeline: interrupted before the work began; nothing was done\n"
    assert process.stdout == ""


def _hold_back(number: signal.Signals) -> None:
    """What a process has that was signalled while it replaced itself."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    os.kill(os.getpid(), number)


def test_ctrl_c_after_the_work_does_not_claim_that_anything_is_lost() -> None:
    wait = "print('leaving', file=sys.stderr, flush=True), time.sleep(60)"
    program = (
        f"import atexit, sys, time; atexit.register(lambda: ({wait})); sys.argv[1:] = ['configs']\n"
        "from pipeline.cli import main; main()"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        signal.signal(signal.SIGINT, before)
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == "leaving\n"
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert process.wait(_SECONDS) == ExitCode.INTERRUPTED
        finally:
            process.kill()
    assert said == "pipeline: interrupted after the work had ended; what was written is kept\n"


def test_ctrl_c_while_adapting_says_how_far_it_came_and_how_to_go_on(
    scenes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["masks", "--coco", str(scenes / "annotations.json"), "--minutes", "60",
               "--images", str(scenes / "images"), "--out", str(tmp_path / "masks.json"),
               "--output", str(run)]  # fmt: skip
    code, said = _interrupt(command, "progress: adapt: ", signal.SIGINT)
    assert code == ExitCode.INTERRUPTED, said
    assert "WARNING" in said
    assert "stopped during the adaptation, " in said
    assert f"which are kept; `pipeline resume {run}` goes on from there" in said
    assert f"to go on: {shlex.join(['pipeline', *command])}" in said
    assert "Traceback" not in said
    assert load_manifest(run).stages["adapt"].state == "interrupted"
    status = subprocess.run(
        [sys.executable, "-m", "pipeline", "status", str(run), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (found,) = json.loads(status.stdout)["runs"]
    assert found["stages"]["adapt"]["state"] == "interrupted"
    progress = found["progress"]
    assert progress["doing"] == "adapt"
    assert 0 < progress["num_done"] < progress["num_total"]
    assert progress["loss"] > 0
