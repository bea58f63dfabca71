"""What the command line says of itself, and how fast it refuses."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli import app, invoke
from pipeline.commands.examples import EXAMPLES
from pipeline.config import split_assignments
from pipeline.errors import ExitCode, describe_error
from pipeline.runs.manifest import open_manifest


def commands(group: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{words}{name} ")
        else:
            yield f"{words}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_example_belongs_to_a_command_and_parses() -> None:
    assert EXAMPLES.keys() - COMMANDS.keys() == set()
    for words, example in EXAMPLES.items():
        given = split_assignments(shlex.split(example))
        lead = ["pipeline", *words.split()]
        assert given[: len(lead)] == lead
        COMMANDS[words].make_context(words, given[len(lead) :])


@pytest.mark.parametrize("words", sorted(EXAMPLES))
def test_help_ends_with_the_example(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*words.split(), "--help"]) == ExitCode.DONE
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith(f"Example: {EXAMPLES[words]}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--version"]) == ExitCode.DONE
    assert capsys.readouterr().out == f"boxdepth {metadata.version('boxdepth')}\n"


def test_configs_are_listed_with_one_line_each(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["configs", "--json"]) == ExitCode.DONE
    listed = json.loads(capsys.readouterr().out)["configs"]
    files = [
        path.relative_to(repository).as_posix() for path in (repository / "configs").rglob("*.py")
    ]
    assert sorted(listed) == sorted(name for name in files if "configs/common/" not in name)
    assert all(line.endswith(".") and "\n" not in line for line in listed.values())
    assert invoke(["configs"]) == ExitCode.DONE
    assert len(capsys.readouterr().out.splitlines()) == len(listed)


def test_shell_completion_knows_the_commands() -> None:
    environment = {
        "_PIPELINE_COMPLETE": "complete_bash",
        "COMP_WORDS": "pipeline conf",
        "COMP_CWORD": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["configs"], result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "configs/demo/full.py", "--set", "data.train_json=absent.json"],
        ["train", "configs/no/such.py"],
        ["eval", "configs/demo/full.py", "--weights", "absent.pth"],
        ["depth", "--images", "docs", "--model", "./no-such-folder", "--cache", "x"],
        ["depth", "configs/demo/full.py", "--set", "data.test_images=absent"],
        ["status", "absent"],
        ["cache", "ls", "absent"],
        ["resume", "docs"],
    ],
)
def test_a_refusal_needs_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom pipeline.cli import invoke\n"
        f"code = invoke({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'detectron2'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == ExitCode.USAGE, result.stderr


@pytest.mark.parametrize(
    ("assignment", "word"),
    [("train.max_itre=3", "train.max_iter"), ("train.precision=fp8", "fp8"), ("", "data/coco")],
)
def test_a_config_is_checked_without_what_builds_its_model(assignment: str, word: str) -> None:
    arguments = [
        "train",
        "configs/coco/full_r50_1x.py",
        *(["--set", assignment] * bool(assignment)),
    ]
    program = (
        "import sys\nfrom pipeline.cli import invoke\n"
        f"code = invoke({arguments!r})\n"
        "heavy = {'torchvision', 'timm', 'scipy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == ExitCode.USAGE, result.stderr
    assert word in result.stderr


def test_a_hub_that_does_not_answer_is_told_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "a.png").write_bytes(b"")
    command = ["depth", "--images", str(tmp_path), "--cache", str(tmp_path / "cache"), "--model"]
    assert invoke([*command, "Intel/no-such-dpt"]) == ExitCode.UNREACHABLE
    message = capsys.readouterr().err
    assert "Intel/no-such-dpt is not on this machine, and http://127.0.0.1:9" in message
    assert "local folder in HuggingFace format" in message


def test_status_says_how_far_training_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = {"train": {"max_iter": 150}}
    manifest = open_manifest(
        tmp_path, command=[], config={"path": "x.py", "resolved": resolved}, stages=["train"]
    )
    rows = [{"iteration": i, "total_loss": 9.0 - i, "seconds": 2.0} for i in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert invoke(["status", str(tmp_path)]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "iteration 2/150, loss 7.000, 2.00 s/iteration, 4 min 56 s left" in shown
    assert f"next: pipeline resume {tmp_path}" in shown
    with manifest.running("train", {"a": 1}) as record:
        record.outputs = {"weights": "w.pth"}
    assert invoke(["status", str(tmp_path)]) == ExitCode.DONE
    assert "next: done; pipeline eval x.py --weights w.pth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "/out"), "/out: permission denied; name another"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b: not a directory; a part of this"),
        (OSError(28, "No space left on device", "x"), "x: no space left on device"),
        (ValueError("plain"), "plain"),
    ],
)
def test_a_path_that_cannot_be_written_is_named_with_the_remedy(
    error: Exception, text: str
) -> None:
    assert describe_error(error).startswith(text)


def test_output_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "run"
    assert invoke(["demo", "--output", str(output)]) == ExitCode.USAGE
    assert str(output) in capsys.readouterr().err
