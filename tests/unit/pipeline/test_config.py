"""`--set`: order-free, checked, with suggestions."""

from __future__ import annotations

import dataclasses
import re

import pytest
from omegaconf import OmegaConf

from pipeline.config import (
    apply_assignment,
    describe_changes,
    list_keys,
    load_config,
    split_assignments,
    take_snapshot,
)
from pipeline.errors import UsageError


@dataclasses.dataclass(kw_only=True)
class _Train:
    max_iter: int = 100
    precision: str = "fp32"
    init_checkpoint: str | None = None


def _target(first: int, second: float = 0.5, name: str = "a", kind: str = "b") -> None:
    """Something that a config would call."""


@pytest.fixture
def config():
    return OmegaConf.create(
        {
            "train": OmegaConf.structured(_Train()),
            "model": {"_target_": _target, "first": 1, "name": "a"},
            "sizes": [640, 800],
        },
        flags={"allow_objects": True},
    )


def test_several_values_after_one_flag_become_one_each():
    given = ["run", "--set", "a.b=1", "c=x", "configs/a.py", "--json", "--set", "d=2"]
    expected = ["run", "--set", "a.b=1", "--set", "c=x", "configs/a.py", "--json", "--set", "d=2"]
    assert split_assignments(given) == expected


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.max_iter=50", "train.max_iter", 50),
        ("train.precision=bf16", "train.precision", "bf16"),
        ("train.init_checkpoint=a=b.pth", "train.init_checkpoint", "a=b.pth"),
        ("train.init_checkpoint=null", "train.init_checkpoint", None),
        ("sizes=[320]", "sizes", [320]),
        ("sizes[1]=900", "sizes", [640, 900]),
        ("model.first=1e-3", "model.first", 1e-3),
        ("model.second=2", "model.second", 2),  # a parameter that the config leaves out
    ],
)
def test_existing_keys_are_set(config, assignment, key, value):
    apply_assignment(config, assignment)
    assert OmegaConf.select(config, key) == value


def test_unknown_key_is_refused_with_a_suggestion(config):
    with pytest.raises(UsageError, match=r"did you mean train\.max_iter"):
        apply_assignment(config, "train.max_itre=50")


@pytest.mark.parametrize(
    ("name", "assignment", "told"),
    [
        (
            "baselines/mask_rcnn_r50.py",
            "model.consistency=True",
            "build_mask_rcnn takes no consistency; model has backbone, num_classes, head_channels,",
        ),
        (
            "baselines/boxinst_r50.py",
            "model.distillation.depth_matching=True",
            "model.distillation is null in this config; start from one that has it",
        ),
        (
            "baselines/bbtp_r50.py",
            "model.supervision.consistency=True",
            "BBTP takes no consistency; did you mean model.supervision.consistency_weight?",
        ),
        ("baselines/bbtp_r50.py", "train.max_iter.x=1", "no such key; train.max_iter is 90000"),
    ],
)
def test_what_a_method_has_not_is_told_with_what_it_has(name, assignment, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        load_config(f"configs/{name}", [assignment])


@pytest.mark.parametrize("assignment", ["model.third=1", "sizes[5]=1", "nothing", "=3"])
def test_what_does_not_exist_is_refused(config, assignment):
    before = take_snapshot(config)
    with pytest.raises(UsageError):
        apply_assignment(config, assignment)
    assert take_snapshot(config) == before


def test_wrong_type_is_refused(config):
    with pytest.raises(UsageError, match=r"train\.max_iter.*refused"):
        apply_assignment(config, "train.max_iter=many")


def test_keys_leave_out_call_targets(config):
    assert "train.max_iter" in list_keys(config)
    assert not any("_target_" in key for key in list_keys(config))


def test_snapshot_names_callables_by_import_path(config):
    assert take_snapshot(config)["model"]["_target_"].endswith("._target")


def test_changes_are_named_field_by_field():
    old = {"train": {"max_iter": 1, "seed": 0}, "gone": 1}
    new = {"train": {"max_iter": 2, "seed": 0}, "came": [1]}
    assert describe_changes(old, new) == {
        "train.max_iter": "1 → 2",
        "gone": "1 → absent",
        "came": "absent → [1]",
    }


@pytest.mark.parametrize("typed", ["0012", "12:30", "no", "photos #2", "1e5", "[a", "x=y", "a: b"])
@pytest.mark.parametrize("key", ["train.init_checkpoint", "model.name", "model.kind"])
def test_text_stays_as_it_is_typed(config, key, typed):
    apply_assignment(config, f"{key}={typed}")
    assert OmegaConf.select(config, key) == typed


@pytest.mark.parametrize(
    ("typed", "value"),
    [("~/depth/", "HOME/depth/"), ("~", "HOME"), ("a~/b", "a~/b"), ("'no'", "no"), ("null", None)],
)
def test_text_may_name_the_home_folder_or_be_quoted(config, monkeypatch, typed, value):
    monkeypatch.setenv("HOME", "HOME")
    apply_assignment(config, f"train.init_checkpoint={typed}")
    assert config.train.init_checkpoint == value


def test_a_reference_may_become_a_number(config):
    config.model.first = "${train.max_iter}"
    apply_assignment(config, "model.first=7")
    assert config.model.first == 7


@pytest.mark.parametrize(
    ("assignments", "has_weights", "num_classes"),
    [
        ([], False, 6),
        ([], True, None),
        (["data.train_json=mine.json"], False, None),
        (["data.train_json=mine.json", "data.num_classes=3"], False, 3),
        (["data.num_classes=3"], True, 3),
    ],
)
def test_the_number_of_classes_is_left_to_own_data_and_weights(
    assignments, has_weights, num_classes
):
    config = load_config("configs/demo/boxinst.py", assignments, has_weights=has_weights)
    assert config.data.num_classes == num_classes
