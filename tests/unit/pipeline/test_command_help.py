"""What the command line says of itself, and how fast it refuses."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from depthcache.exchange.interchange import import_maps
from pipeline.cli import invoke
from pipeline.commands.app import app
from pipeline.commands.examples import EXAMPLES
from pipeline.config import split_assignments
from pipeline.errors import ExitCode, describe_error
from pipeline.runs.manifest import open_manifest

# Measured: 0.5 to 1.4 on an idle core; a busy one takes up to twice that, torch alone six more.
_MAX_CPU_SECONDS = 4.0


def commands(group: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{words}{name} ")
        else:
            yield f"{words}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_command_has_an_example_that_parses() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()
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


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_every_option_says_what_it_is(words: str) -> None:
    assert [one.name for one in COMMANDS[words].params if not getattr(one, "help", "")] == []


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


_DATA = "--set data.train_json={d}/ok.json data.train_images={d}/images"
_BOXES_ONLY = "train configs/baselines/boxinst_r50.py --output {d}/run " + _DATA
_MASKS = "masks --out {d}/masks.json --output {d}/run --images {d}/images"
_PREDICT = "predict configs/demo/full.py --weights {d}/weights.pth"
_LABEL = _PREDICT.replace("predict", "label") + " --images {d}/images --out {d}/masks.json"
_DEPTH = "depth --images {d}/images --model demo-dpt --cache {d}"


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("train configs/no/such.py", "'configs/no/such.py' here or among the bundled configs; "
         "`pipeline configs` lists those"),
        ("train configs/boxinst_r5.py", "did you mean configs/baselines/boxinst_r50.py, "),
        ("train configs/demo/full.py --output {d}/run " + _DATA + " model.supervision=bogus",
         "model.supervision='bogus': choose one of boxes, masks, mixed"),
        ("train configs/demo/full.py --set data.train_json=absent.json", "absent.json"),
        ("train configs/coco/full_r50_1x.py --output {d}/run", "data/coco"),
        ("train configs/coco/full_r50_1x.py --set train.max_itre=3", "train.max_iter"),
        ("train configs/coco/full_r50_1x.py --set model.score_treshold=.3", "score_threshold"),
        ("train configs/baselines/mask_rcnn_r50.py --set model.consistency=True",
         "build_mask_rcnn takes no consistency"),
        ("train configs/baselines/solov2_r50.py --set model.depth_layer=True",
         "SOLOv2 takes no depth_layer"),
        ("train configs/baselines/boxinst_r50.py --set model.distillation.depth_matching=True",
         "model.distillation is null"),
        ("train configs/coco/full_r50_1x.py --set train.precision=fp8", "fp8"),
        ("train configs/coco/full_r50_1x.py --set train.max_iter=many", "many"),
        ("train configs/demo/full.py --output {d}/run " + _DATA, "no depth cache in"),
        ("train configs/demo/full.py --output {d}/file/run " + _DATA, "a part of this path"),
        ("train configs/demo/full.py --output {d}/run " + _DATA + " depth.enabled=False",
         "set depth.enabled=True"),
        ("run configs/demo/full.py --output {d}/run --set depth.enabled=False",
         "set depth.enabled=True"),
        ("train configs/demo/mask_rcnn.py --output {d}/run " + _DATA + " depth.enabled=True",
         "set depth.enabled=False"),
        ("run configs/demo/boxinst.py --output {d}/run --set depth.enabled=True",
         "set depth.enabled=False"),
        ("train configs/demo/mask_rcnn.py --output {d}/run " + _DATA + " data.use_masks=False",
         "set data.use_masks=True"),
        ("train configs/demo/boxinst.py --output {d}/run " + _DATA + " data.use_masks=True",
         "set data.use_masks=False"),
        ("train configs/demo/boxinst.py --output {d}/run " + _DATA + " train.distill_from=0.5",
         "set train.distill_from=null"),
        ("train configs/demo/full.py --output {d}/run " + _DATA + " data.use_masks=True"
         " model.supervision=masks", "set model.distillation=null train.distill_from=null"),
        ("train configs/demo/boxinst.py --output {d}/run " + _DATA + " depth.enabled=False"
         " data.num_classes=5", "data.num_classes=1"),
        ("train configs/demo/boxinst.py --output {d}/run " + _DATA + " depth.enabled=False"
         " data.train_json={d}/no-categories.json", "categories"),
        (_BOXES_ONLY + " train.init_checkpoint={d}/none.pth", "none.pth: there is no such file"),
        (_BOXES_ONLY + " train.init_checkpoint=http://127.0.0.1:9/R-50.pkl", "cannot be fetched"),
        (_BOXES_ONLY + " train.init_checkpoint={d}/ok.json", "or to null"),
        (_BOXES_ONLY + " train.device=cuda", "no CUDA device"),
        (_BOXES_ONLY.replace("train", "run", 1) + " train.device=cuda", "no CUDA device"),
        ("train configs/demo/full.py --output {d}/run " + _DATA + " depth.cache={maps}",
         "no map for 1 of the 1 photos"),
        ("eval configs/demo/full.py --weights absent.pth", "absent.pth"),
        ("eval configs/demo/full.py --weights {d}/weights.pth --set train.device=cuda",
         "no CUDA device"),
        ("eval configs/demo/full.py --weights {d}/weights.pth --set data.test_json="
         "{d}/no-categories.json data.test_images={d}/images", "categories"),
        ("label configs/demo/full.py --weights {d}/file --coco {d}/ok.json --images {d}/images"
         " --out {d}/masks.json", "no readable checkpoint"),
        ("label configs/demo/full.py --weights {d}/weights.pth --coco {d}/no-categories.json"
         " --images {d}/images --out {d}/masks.json", "categories"),
        (_LABEL + " --coco {d}/other-photos.json", "none of the 1 photos"),
        (_LABEL + " --coco {d}/ok.json --out {d}/file/x/masks.json", "x/masks.json cannot be"),
        (_PREDICT + " --images {d}/ok.json --out {d}/p", "--coco {d}/ok.json --images DIR"),
        (_PREDICT + " --images {d}/images --coco {d}/other-photos.json --out {d}/p",
         "none of the 1 photos"),
        (_PREDICT + " --images {d}/images --out {d}/file/x/p", "x/p cannot be written"),
        (_PREDICT.replace("predict", "export") + " --out {d}/file/x/p.onnx",
         "p.onnx cannot be written"),
        (_PREDICT.replace("predict", "eval") + " --output {d}/file/x --set data.test_json="
         "{d}/ok.json data.test_images={d}/images", "file/x cannot be written"),
        ("convert-checkpoint {d}/ok.json {d}/x/out.pth", "begins with b'{{\""),
        ("convert-checkpoint {d}/empty {d}/x/out.pth", "it is empty; give the file that AdelaiDet"),
        ("predict configs/demo/full.py --weights {d}/cut.pth --images {d}/images --out {d}/p",
         "cut off"),
        ("predict configs/demo/full.py --weights {d}/file --images {d}/images --out {d}/p", "file"),
        ("masks --coco absent.json --images {d}/images --out {d}/masks.json", "absent.json"),
        (_MASKS + " --coco {d}/no-categories.json", "categories"),
        (_MASKS + " --coco {d}/ok.json --model ./absent", "absent"),
        (_MASKS + " --coco {d}/ok.json --cache {d}/absent", "absent"),
        (_MASKS + " --coco {d}/other-photos.json", "none of the 1 photos"),
        (_MASKS + " --coco {d}/ok.json --start {d}/weights.pth", "no labeller"),
        ("depth --images docs --model ./no-such-folder --cache x", "no-such-folder"),
        ("depth --images {d}/images --model {d} --cache {d}/cache", "model_type"),
        ("depth configs/demo/full.py --set data.test_images=absent", "data.test_images"),
        (_DEPTH + "/file/cache", "file/cache cannot be written"),
        (_DEPTH + " --cache /proc/none", "/proc/none cannot be written"),
        (_DEPTH + " --precision fp8", "fp8"),
        ("status absent", "absent"),
        ("resume docs", "docs"),
        ("report docs", "docs"),
        ("cache ls absent", "absent"),
        ("cache import {d}/cache --source {d}/images --images {d}/images --format npy"
         " --convention bogus", "convention='bogus' is not one of"),
        ("cache export {maps} --out {d}/x --format tiff", "format='tiff' is not one of"),
        ("cache coverage absent --images {d}/images", "absent"),
        ("data check absent.json", "absent"),
        ("data import absent --images {d}/images --out {d}/boxes.json", "absent"),
        ("data export {d}/ok.json --out {d}/x --format docx", "docx"),
    ],
)  # fmt: skip
def test_a_refusal_takes_seconds_and_no_torch(
    command: str,
    word: str,
    tmp_path: Path,
    maps_of_another_photo: Path,
    refuse: Callable[..., tuple[int, float, str]],
) -> None:
    _write_files(tmp_path)
    words = command.format(d=tmp_path, maps=maps_of_another_photo).split()
    code, seconds, told = refuse(words, tmp_path / "told.txt")
    assert code == ExitCode.USAGE, told
    assert word.format(d=tmp_path) in told
    assert not (tmp_path / "masks.json").exists()
    assert seconds < _MAX_CPU_SECONDS


@pytest.fixture(scope="module")
def maps_of_another_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    for name in ("photos", "maps"):
        (folder / name).mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "photos" / "other.png")
    np.save(folder / "maps" / "other.npy", np.eye(8, dtype=np.float32))
    import_maps(folder / "maps", folder / "cache", images=folder / "photos", format="npy")
    return folder / "cache"


@pytest.fixture(scope="module")
def refuse() -> Iterator[Callable[..., tuple[int, float, str]]]:
    """Run a command in a process of its own: exit code, processor seconds, what it told.

    The processes are forked from one that has imported what most commands import, whose seconds
    are added to theirs.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _FORK_COMMANDS],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "no_proxy": "*"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip

        def run(arguments: list[str], file: Path) -> tuple[int, float, str]:
            assert server.stdin is not None
            assert server.stdout is not None
            print(json.dumps([arguments, str(file)]), file=server.stdin, flush=True)
            code, seconds = json.loads(server.stdout.readline())
            return code, seconds, file.read_text()

        yield run


_FORK_COMMANDS = """
import json, os, sys
import omegaconf, PIL.Image, pipeline.commands.app
import pipeline.config, pipeline.runs.stages, segtrain.run.experiment
from pipeline.cli import invoke
imported = sum(os.times()[:2])
for line in sys.stdin:
    arguments, file = json.loads(line)
    child = os.fork()
    if not child:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = int(invoke(arguments))
        heavy = {"torch", "transformers", "detectron2"} & set(sys.modules)
        print("heavy:", *heavy)
        sys.stdout.flush()
        os._exit(99 if heavy else code)
    _, status, used = os.wait4(child, 0)
    seconds = imported + used.ru_utime + used.ru_stime
    print(json.dumps([os.waitstatus_to_exitcode(status), seconds]), flush=True)
"""


def _write_files(folder: Path) -> None:
    """One photo with one box, and what is wrong in some way."""
    (folder / "images").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "images" / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 32, "height": 32}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 9, 9], "iscrowd": 0, "area": 81}
    document = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    for name, changes in (
        ("ok", {}),
        ("no-categories", {"categories": []}),
        ("other-photos", {"images": [image | {"file_name": "b.png"}]}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(document | changes))
    (folder / "file").write_text("text")
    (folder / "empty").touch()
    weights = folder / "weights.pth"
    with zipfile.ZipFile(weights, "w") as archive:  # as torch.save does
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    (folder / "cut.pth").write_bytes(weights.read_bytes()[:-30])


def test_detectron2_is_whole_after_a_config_was_read(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    for imports, comes_with_torch in (
        ("import math", False),
        ("from detectron2.layers import ShapeSpec\nfrom detectron2.modeling import FPN", True),
    ):
        config.write_text(f"{imports}\nfrom detectron2.config import LazyCall\nmodel = {{'a': 1}}")
        program = (
            "import sys\nfrom pipeline.config import load_config\n"
            f"load_config({str(config)!r})\n"
            f"assert ('torch' in sys.modules) is {comes_with_torch}, sorted(sys.modules)\n"
            "import detectron2.config, detectron2.layers.wrappers as layers\n"
            "assert detectron2.utils.env._ENV_SETUP_DONE\n"
            "assert detectron2.utils.env is sys.modules['detectron2.utils.env']\n"
            "assert layers.TORCH_VERSION >= (2, 0)\n"
            "assert detectron2.config.LazyConfig is sys.modules['detectron2.config'].LazyConfig\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr


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
    command[4] = str(tmp_path / "a.png" / "cache")
    assert invoke([*command, "Intel/no-such-dpt"]) == ExitCode.USAGE
    assert "a.png/cache cannot be written" in capsys.readouterr().err


def test_status_says_how_far_training_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = {"train": {"max_iter": 150}}
    manifest = open_manifest(
        tmp_path, command=[], config={"path": "x.py", "resolved": resolved}, stages=["train"]
    )
    manifest.save()
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
        (OSError(28, "No space left on device", "x"), "x: no space left on device; free some"),
        (OSError(28, "No space left on device"), "no space left on device; free some space"),
        (OSError(122, "Disk quota exceeded"), "disk quota exceeded; free some space"),
        (OSError(30, "Read-only file system", "/x"), "/x: read-only file system; name a path on"),
        (PermissionError(13, "Permission denied"), "[Errno 13] Permission denied"),  # of a socket
        (ValueError("plain"), "plain"),
    ],
)
def test_a_path_that_cannot_be_written_is_named_with_the_remedy(
    error: Exception, text: str
) -> None:
    assert describe_error(error).startswith(text)


def test_a_write_that_finds_the_disk_full_is_told_with_the_remedy() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full (Linux)")
    with pytest.raises(OSError, match="No space") as caught:
        Path("/dev/full").write_text("x")
    assert describe_error(caught.value).startswith("no space left on device; free some space")


def test_output_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "run"
    assert invoke(["demo", "--output", str(output)]) == ExitCode.USAGE
    assert str(output) in capsys.readouterr().err
