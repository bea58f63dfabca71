"""The command line: exit codes, documents, allocator restart, start-up cost."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys

import pytest

from depthcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMissError,
    CacheUnreachableError,
    DepthCacheError,
    ImageDecodeError,
)
from pipeline import cli
from pipeline.cli import invoke
from pipeline.commands import app as verbs
from pipeline.commands.run import machine_folder
from pipeline.config import load_experiment
from pipeline.errors import (
    ExitCode,
    FailedItemsError,
    PipelineError,
    ServiceUnreachableError,
    UsageError,
    exit_code_of,
    exit_codes,
)
from pipeline.process_settings import MALLOC_SETTINGS, THREAD_SETTINGS, missing_settings
from pipeline.runs.manifest import open_manifest
from pipeline.runs.stages import run_train_stage, train_inputs
from segtrain.errors import CheckpointError, NonFiniteLossError, SegtrainError


class ShardCorruptError(CacheCorruptError):
    """A subclass that the table does not name."""


def every_class_of(base: type[Exception]) -> list[type[Exception]]:
    """The classes of the error tree in the module that defines its root."""
    tree = [base]
    for cls in tree:
        tree += [sub for sub in cls.__subclasses__() if sub.__module__ == base.__module__]
    return tree


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["label", "c.py", "--weights", "w.pth"], "nothing is kept; the same command starts over"),
        (["eval", "c.py"], "nothing is kept; the same command starts over"),
        (["data", "check", "a.json"], "nothing is kept; the same command starts over"),
        (["data", "synth", "--output", "a b"], "what is done is kept; to go on"),
        (["masks", "--out", "m.json"], "what is done is kept; to go on"),
        (["depth", "photos"], "what is done is kept; to go on"),
    ],
)
def test_ctrl_c_says_what_is_kept(words, said, caplog, monkeypatch):
    monkeypatch.setattr(verbs, "app", lambda *_, **__: ExitCode.INTERRUPTED)
    assert invoke(words) == ExitCode.INTERRUPTED
    assert f"{said}: {shlex.join(['pipeline', *words])}" in caplog.text


def test_every_verb_that_starts_over_is_one():
    for verb in cli._VERBS_WITHOUT_STATE:
        assert invoke([*verb.split(), "--help"]) == ExitCode.DONE


@pytest.mark.parametrize("base", [DepthCacheError, SegtrainError])
def test_every_error_of_the_packages_below_has_a_code(base):
    classes = every_class_of(base)
    assert len(classes) >= 7
    assert {cls.__name__ for cls in classes if cls not in exit_codes()} == set()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PipelineError("x"), 1),
        (UsageError("x"), 2),
        (FailedItemsError("x"), 3),
        (ServiceUnreachableError("x"), 5),
        (ShardCorruptError("x"), 4),
        (CacheMissError("x"), 1),
        (CacheIncompleteError("x"), 3),
        (CacheUnreachableError("x"), 5),
        (ImageDecodeError("x"), 2),
        (CheckpointError("x"), 2),
        (NonFiniteLossError("x"), 1),
        (PermissionError("x"), 2),
        (FileNotFoundError("x"), 2),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1),
        (RuntimeError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code):
    assert exit_code_of(error) == code


@pytest.mark.parametrize(
    "arguments", [["no-such-verb"], ["depth", "--no-such-option"], ["data", "check", "absent.json"]]
)
def test_usage_errors_end_with_2_and_say_why(arguments, capsys):
    assert invoke(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.err.startswith("pipeline: error: ")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["train.precision=fp8"], ["fp8", "bf16"]),  # before any file is looked at
        (["data.train_json=absent.json"], ["absent.json", "--set data.train_json="]),
        (["data.train_json=README.md", "data.train_images=absent"], ["data.train_images="]),
    ],
)
def test_training_names_the_wrong_setting_and_the_remedy(assignments, words, capsys, tmp_path):
    settings = [word for item in assignments for word in ("--set", item)]
    output = str(tmp_path / "run")
    assert invoke(["train", "configs/demo/full.py", "--output", output, *settings]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert [word for word in words if word not in message] == []


def test_evaluation_without_data_says_how_to_name_it_and_nothing_else(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.touch()
    command = ["eval", "configs/demo/full.py", "--weights", str(weights)]
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", *command, "--set", "data.test_json=absent.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == ExitCode.USAGE
    assert "--set data.test_json=" in result.stderr
    # Warnings of libraries tell a user nothing.
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_finished_training_needs_no_images(tmp_path):
    weights, images = tmp_path / "model_final.pth", tmp_path / "images"
    config = load_experiment(
        "configs/demo/full.py", ["data.train_json=README.md", f"data.train_images={images}"]
    )
    manifest = open_manifest(tmp_path, command=[], config={}, stages=["train"])
    with manifest.running("train", train_inputs(config)) as record:
        record.outputs = {"weights": str(weights)}
    weights.touch()
    assert run_train_stage(manifest, config) == weights
    weights.unlink()
    with pytest.raises(UsageError, match="no such image folder"):
        run_train_stage(manifest, config)


def test_errors_are_documents_too(capsys):
    assert invoke(["status", "absent", "--json"]) == ExitCode.USAGE
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["error"]["exit_code"] == 2
    assert "absent" in document["error"]["message"]


def test_unknown_config_suggests(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(["train", "absent.py"]) == ExitCode.USAGE
    assert "no config file 'absent.py'" in capsys.readouterr().err


def test_help_and_cache_commands_load_nothing_heavy():
    program = (
        "import sys\nfrom pipeline.cli import invoke\n"
        "invoke(['--help']); invoke(['cache', 'verify', '/no/such/root'])\n"
        "heavy = {'torch', 'transformers', 'dask', 'detectron2', 'omegaconf', 'matplotlib'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "libc", "expected"),
    [
        (["train", "x.py"], {}, "glibc", {**MALLOC_SETTINGS, **THREAD_SETTINGS}),
        (["--verbose", "depth"], {}, "glibc", {**MALLOC_SETTINGS, **THREAD_SETTINGS}),
        (["cache", "ls", "x"], {}, "glibc", {}),
        (["train", "--help"], {}, "glibc", {}),
        (["train"], {"PIPELINE_NO_REEXEC": "1"}, "glibc", {}),
        (["train"], {"MALLOC_TOP_PAD_": "1"}, "glibc", THREAD_SETTINGS),
        (["train"], {"LD_PRELOAD": "libjemalloc.so"}, "glibc", THREAD_SETTINGS),
        (["train"], {}, "", THREAD_SETTINGS),
        (["train"], {"OMP_WAIT_POLICY": "active"}, "glibc", dict(MALLOC_SETTINGS)),
        (["train"], {**MALLOC_SETTINGS, **THREAD_SETTINGS}, "glibc", {}),
    ],
)
def test_with_what_the_process_restarts(arguments, environment, libc, expected):
    assert missing_settings(arguments, environment, libc=libc) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator settings are glibc's")
def test_restart_keeps_the_command_and_sets_allocator_and_threads(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from pipeline.process_settings import restart_with_settings\n"
        "restart_with_settings(sys.argv[1:])\n"
        "names = 'MALLOC_MMAP_MAX_', 'GOMP_SPINCOUNT'\n"
        "print(*map(os.environ.get, names), os.getpid(), *sys.argv[1:])\n"
    )
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "OMP_", "GOMP_"))
    }
    environment.pop("LD_PRELOAD", None)
    environment.pop("PIPELINE_NO_REEXEC", None)
    process = subprocess.Popen(
        [sys.executable, str(program), "train", "a b"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    assert out.split("\n")[0] == f"0 10000 {process.pid} train a b"


@pytest.mark.parametrize("verb", ["train", "run"])
@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ([], "runs/demo-full"),
        (["--set", "train.output_dir=elsewhere"], "elsewhere"),
        (["--set", "train.output_dir=elsewhere", "--output", "here"], "here"),
    ],
)
def test_run_folder_is_the_option_then_the_configs_then_named_after_it(
    verb, options, folder, capsys
):
    command = [verb, "configs/demo/full.py", "--dry-run", "--json", *options]
    assert invoke(command) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["run"] == folder


def test_each_machine_has_its_own_folder(tmp_path):
    second = load_experiment(
        "configs/demo/full.py",
        ["train.num_machines=2", "train.machine_rank=1", "train.dist_url=tcp://a:1"],
    )
    assert machine_folder(tmp_path, load_experiment("configs/demo/full.py")) == tmp_path
    assert machine_folder(tmp_path, second) == tmp_path / "machine-1"
    # `pipeline resume` names the machine's folder itself.
    assert machine_folder(tmp_path / "machine-1", second) == tmp_path / "machine-1"


def test_a_whole_run_is_for_one_machine(tmp_path, capsys):
    arguments = ["run", "configs/demo/full.py", "--output", str(tmp_path / "run")]
    assert invoke([*arguments, "--set", "train.num_machines=2"]) == ExitCode.USAGE
    assert "`pipeline train` on each machine" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
