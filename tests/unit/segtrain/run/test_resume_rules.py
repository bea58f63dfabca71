"""Which settings a resumed run may change, and which make it another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from segtrain.run.experiment import Experiment, read_experiment
from segtrain.run.resume_rules import describe_refusal, describe_trajectory, find_changes
from segtrain.run.train_settings import TrainSettings


def experiment(repository: Path, changes: dict[str, Any] | None = None) -> Experiment:
    cfg = LazyConfig.load(str(repository / "configs" / "demo" / "full.py"))
    for key, value in (changes or {}).items():
        OmegaConf.update(cfg, key, value)
    return read_experiment(cfg)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train.device": "cpu", "train.deterministic": False, "train.num_processes": 2}, []),
        ({"train.checkpoint_period": 7, "train.log_period": 3, "train.output_dir": "x"}, []),
        ({"dataloader.train.num_workers": 0, "dataloader.test.short_side": 64}, []),
        ({"data.train_images": "moved", "data.test_json": "other", "data.name": "x"}, []),
        ({"depth.cache": "moved", "depth.batch_size": 2}, []),
        (
            {"train.max_iter": 9},
            ["train.max_iter", "model.warmup_iterations", "model.total_iterations"],
        ),
        ({"train.init_checkpoint": "other.pth"}, ["train.init_checkpoint"]),
        ({"schedule.drops": [0.5]}, ["schedule.drops"]),
        (
            {"dataloader.train.augmentation.max_size": 99},
            ["dataloader.train.augmentation.max_size"],
        ),
        ({"data.num_classes": 7}, ["data.num_classes", "model.num_classes"]),
        ({"data.use_masks": True}, ["data.use_masks"]),
        ({"model.depth_layer": False}, ["model.depth_layer"]),
        ({"model.distillation": None}, ["model.distillation"]),
        ({"depth.enabled": False}, ["depth.enabled"]),
    ],
)
def test_what_moves_the_weights_is_named_and_nothing_else(
    repository: Path, changes: dict[str, Any], named: list[str]
) -> None:
    before = describe_trajectory(experiment(repository), "dpt-1")
    now = describe_trajectory(experiment(repository, changes), "dpt-1")
    found = find_changes(before, now)
    assert {name for name in found if not name.startswith("model.distillation.")} == set(named)


def test_another_depth_model_is_another_run(repository: Path) -> None:
    same = experiment(repository)
    changes = find_changes(describe_trajectory(same, "dpt-1"), describe_trajectory(same, "dpt-2"))
    assert changes == {"depth.fingerprint": "dpt-1 → dpt-2"}


def test_files_count_by_their_content(repository: Path, tmp_path: Path) -> None:
    def trajectory(folder: Path, boxes: str, weights: bytes) -> dict[str, Any]:
        folder.mkdir()
        (folder / "boxes.json").write_text(boxes)
        (folder / "start.pth").write_bytes(weights)
        given = experiment(repository).with_dataset("train", folder / "boxes.json", folder)
        return describe_trajectory(
            given.with_train(init_checkpoint=str(folder / "start.pth")), None
        )

    before = trajectory(tmp_path / "a", "[]", b"1")
    assert find_changes(before, trajectory(tmp_path / "moved", "[]", b"1")) == {}
    edited = find_changes(before, trajectory(tmp_path / "edited", "[1]", b"2"))
    assert edited.keys() == {"data.train_json", "train.init_checkpoint"}


def test_a_refusal_of_many_changes_stays_readable() -> None:
    text = describe_refusal({f"model.part_{number}": "1 → 2" for number in range(30)})
    assert "model.part_7: 1 → 2; and 22 more" in text
    assert "model.part_8" not in text


def test_an_experiment_is_what_its_config_says(repository: Path) -> None:
    cfg = LazyConfig.load(str(repository / "configs" / "demo" / "full.py"))
    given = read_experiment(cfg)
    assert read_experiment(given) is given
    plain = given.to_plain()
    assert plain["model"]["_target_"].endswith(".build_condinst")
    assert plain["model"]["num_classes"] == cfg.data.num_classes
    assert plain["train"] == dataclasses.asdict(given.train)
    assert plain["dataloader"]["test"]["short_side"] == cfg.dataloader.test.short_side
    assert given.with_train(seed=5).train == TrainSettings(
        **dataclasses.asdict(given.train) | {"seed": 5}
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.train = TrainSettings()  # type: ignore[misc]
