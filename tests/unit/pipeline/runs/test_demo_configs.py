"""The demo compares methods, not settings: its configs differ in the method's switches alone."""

from __future__ import annotations

from typing import Any

from benchmarks.method_table.rows import CHOSEN
from pipeline.config import flatten, load_config, take_snapshot
from pipeline.runs.demo import METHODS, START

# What makes the full method of BoxInst.
_SWITCHES = (
    "model.depth_layer",
    "model.depth_weight",
    "model.depth_warmup",
    "model.consistency",
    "model.depth_threshold",
    "model.distillation",
    "train.distill_from",
    "train.teacher_",
    "depth.enabled",
)


def settings(path: str) -> dict[str, Any]:
    return dict(flatten(take_snapshot(load_config(path))))


def differences(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {key for key in first | second if first.get(key) != second.get(key)}


def test_ours_is_what_the_table_of_results_calls_so() -> None:
    boxinst, control, ours = (settings(path) for path in METHODS.values())
    assert differences(boxinst, control) == {"model.color_everywhere"}
    assert differences(boxinst, ours) == {*CHOSEN, "depth.enabled"}
    assert {name: ours[name] for name in CHOSEN} == CHOSEN


def test_the_paper_s_method_differs_in_its_switches_only() -> None:
    boxinst, full = settings(METHODS["BoxInst"]), settings("configs/demo/full.py")
    different = differences(boxinst, full)
    assert {"model.depth_layer", "model.consistency", "depth.enabled"} <= different
    assert {key for key in different if not key.startswith(_SWITCHES)} == set()


def test_all_start_from_plain_boxinst() -> None:
    different = differences(settings(METHODS["BoxInst"]), settings(START))
    allowed = ("train.max_iter", "dataloader.train.augmentation", "model.warmup_iterations")
    assert {key for key in different if not key.startswith(allowed)} == set()
