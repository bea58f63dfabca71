"""A stage is skipped only when what it depends on is the same, and then leaves its record alone."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from depthcache.errors import CacheNotFoundError
from depthcache.exchange.interchange import import_maps
from pipeline.cli import invoke
from pipeline.config import load_experiment
from pipeline.errors import ExitCode, UsageError
from pipeline.runs.experiment_files import resolve_model
from pipeline.runs.manifest import Manifest, load_manifest, open_manifest
from pipeline.runs.stages import (
    compute_depth_maps,
    refuse_other_experiment,
    run_eval_stage,
    run_train_stage,
    stage_one_options,
    train_inputs,
)
from pipeline.synth import generate_dataset
from segtrain.depth_source import DepthSettings
from segtrain.run.experiment import Experiment


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, and two caches of their depth as two models see it."""
    folder = tmp_path_factory.mktemp("scenes")
    generate_dataset(folder, num_images=2, size=(64, 64), seed=3, workers=1)
    for model in ("first", "second"):
        import_maps(
            folder / "depth",
            folder / model,
            images=folder / "images",
            format="npy",
            convention="metric",
            model=model,
        )
    return folder


@pytest.fixture
def load(scenes: Path) -> Callable[..., Experiment]:
    def load_with(*assignments: str, folder: Path = scenes) -> Experiment:
        files = [
            f"data.{split}_{kind}={folder / name}"
            for split in ("train", "test")
            for kind, name in (("json", "annotations.json"), ("images", "images"))
        ]
        cache = f"depth.cache={folder / 'first'}"
        return load_experiment("configs/demo/full.py", [*files, cache, *assignments])

    return load_with


def finish_training(folder: Path, experiment: Experiment) -> Manifest:
    manifest = open_manifest(folder, command=[], config={}, stages=["train"])
    with manifest.running("train", train_inputs(experiment)) as record:
        record.outputs = {"weights": str(folder / "model_final.pth")}
    (folder / "model_final.pth").touch()
    return manifest


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("depth.cache={scenes}/second", r"depth\.fingerprint: .*first.* → .*second"),
        (
            "depth.enabled=False model.depth_layer=False model.consistency=False "
            "model.distillation.depth_matching=False",
            r"depth\.enabled: True → False",
        ),
        ("model.depth_layer=False", r"model\.depth_layer: True → False"),
        ("train.max_iter=9", r"train\.max_iter: 120 → 9"),
    ],
)
def test_finished_training_is_not_taken_for_another(
    assignment: str, named: str, tmp_path: Path, scenes: Path, load: Callable[..., Experiment]
) -> None:
    manifest = finish_training(tmp_path, load())
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=named):
        run_train_stage(manifest, load(*assignment.format(scenes=scenes).split()))
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("assignment", ["train.deterministic=False", "train.log_period=3"])
def test_command_and_trainer_agree_on_what_is_free(
    assignment: str, tmp_path: Path, load: Callable[..., Experiment]
) -> None:
    manifest = finish_training(tmp_path, load())
    assert run_train_stage(manifest, load(assignment)) == tmp_path / "model_final.pth"
    refuse_other_experiment(manifest, train_inputs(load(assignment)))


def test_training_names_a_cache_that_is_not_there(
    tmp_path: Path, load: Callable[..., Experiment]
) -> None:
    manifest = open_manifest(tmp_path, command=[], config={}, stages=["train"])
    with pytest.raises(CacheNotFoundError, match="no-such-cache"):
        run_train_stage(manifest, load(f"depth.cache={tmp_path / 'no-such-cache'}"))


def test_moved_run_is_done_where_it_lies_now(
    tmp_path: Path, scenes: Path, load: Callable[..., Experiment]
) -> None:
    def experiment(home: Path) -> Experiment:
        start = home / "start" / "model_final.pth"
        return load(f"train.init_checkpoint={start}", folder=home / "data")

    home = tmp_path / "demo"
    shutil.copytree(scenes, home / "data")
    (home / "start").mkdir()
    (home / "start" / "model_final.pth").write_bytes(b"start")
    finish_training(home / "full", experiment(home)).save()
    manifest = open_manifest(home / "outer", command=[], config={}, stages=[], home=home)
    with manifest.running("eval", {"images": str(home / "data" / "images")}) as record:
        record.outputs = {"metrics": str(home / "outer" / "metrics.json"), "else": "/demo/x"}

    moved = tmp_path / "elsewhere" / "renamed"
    shutil.move(home, moved)
    manifest = load_manifest(moved / "full")
    assert run_train_stage(manifest, experiment(moved)) == moved / "full" / "model_final.pth"
    outer = load_manifest(moved / "outer")
    assert outer.is_done("eval", {"images": str(moved / "data" / "images")})
    assert outer.stages["eval"].outputs == {
        "metrics": str(moved / "outer" / "metrics.json"),
        "else": "/demo/x",
    }


def test_run_is_found_again_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Path("demo")
    manifest = open_manifest(home / "full", command=[], config={}, stages=[], home=home)
    with manifest.running("eval", {"images": "demo/data"}):
        pass
    monkeypatch.chdir(tmp_path / "demo")
    found = load_manifest(Path("full"))
    assert found.is_done("eval", {"images": str(tmp_path / "demo" / "data")})


def test_refused_and_idle_commands_leave_the_record_as_it_is(
    tmp_path: Path, load: Callable[..., Experiment], scenes: Path
) -> None:
    finish_training(tmp_path, load())
    before = (tmp_path / "manifest.json").read_bytes()
    command = ["train", "configs/demo/full.py", "--output", str(tmp_path), "--set"]
    command += [f"data.train_json={scenes}/annotations.json", f"data.train_images={scenes}/images"]
    command += [f"data.test_json={scenes}/annotations.json", f"data.test_images={scenes}/images"]
    command += [f"depth.cache={scenes}/first"]
    assert invoke(command) == ExitCode.DONE
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert invoke([*command, "train.seed=5"]) == ExitCode.USAGE
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_evaluation_depends_on_the_method_and_the_size(
    tmp_path: Path, load: Callable[..., Experiment]
) -> None:
    (tmp_path / "w.pth").write_bytes(b"no weights")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "metrics.json").write_text('{"bbox": {"AP": 1.0}}')
    manifest = open_manifest(tmp_path, command=[], config={}, stages=["eval"])
    with pytest.raises(Exception, match="no readable checkpoint"):
        run_eval_stage(manifest, load(), tmp_path / "w.pth")
    record = manifest.stages["eval"]
    record.state = "done"
    assert run_eval_stage(manifest, load(), tmp_path / "w.pth") == {"bbox": {"AP": 1.0}}
    for change in ("dataloader.test.short_side=64", "model.score_threshold=0.5"):
        with pytest.raises(Exception, match="no readable checkpoint"):
            run_eval_stage(manifest, load(change), tmp_path / "w.pth")


@pytest.mark.parametrize(("model", "is_told"), [("second", True), ("imported/first", False)])
def test_a_cache_of_another_model_than_the_config_s_is_told(
    model: str,
    is_told: bool,
    tmp_path: Path,
    load: Callable[..., Experiment],
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest = finish_training(tmp_path, load())
    with pytest.raises(UsageError, match="max_iter"):  # told before this
        run_train_stage(manifest, load(f"depth.model={model}", "train.max_iter=9"))
    said = f"holds the depth of imported/first, the config names depth.model={model}: "
    assert (said in caplog.text) is is_told


@pytest.mark.parametrize(("name", "is_told"), [("a.JPG", True), ("a.png", False)])
def test_the_demo_model_on_photos_is_told(
    name: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):  # told before this
        compute_depth_maps(
            [Path("b.png"), Path(name)], resolve_model("demo-dpt"), str(tmp_path / "file")
        )
    assert ("its depth of photos is poor; name another with --model" in caplog.text) is is_told


def test_every_depth_setting_of_stage_one_reaches_it() -> None:
    of_training = {"enabled", "model", "cache", "fingerprint", "local_tier"}
    names = {field.name for field in dataclasses.fields(DepthSettings)} - of_training
    settings = DepthSettings(device="cpu", workers=3, shard_rows=5, scheduler="local")
    assert stage_one_options(settings) == {name: getattr(settings, name) for name in names}
