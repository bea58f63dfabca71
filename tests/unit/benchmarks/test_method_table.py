"""The table at a tiny size: rows train, resume and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mask_lab.splits import NUM_SCENES, SEEDS
from benchmarks.method_table.__main__ import LABELLERS, main
from benchmarks.method_table.rows import ROWS
from benchmarks.method_table.scenes import Scenes
from benchmarks.method_table.table import draw_table, read_results
from benchmarks.method_table.training import Budget, make_config
from segtrain.run.experiment import read_experiment
from segtrain.run.setting_rules import refuse_contradictions

_SIZES = {
    "num-scenes": 2,
    "iterations": 2,
    "start-iterations": 2,
    "batch": 2,
    "start-batch": 2,
    "short-side": 64,
    "teacher-side": 96,
    "label-iterations": 2,
    "backbone": "test_efficientnet_gn",
    "split": "choose",
}
TINY = [text for name, value in _SIZES.items() for text in (f"--{name}", str(value))]


def test_rows_train_resume_and_compare(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--output", str(tmp_path), *TINY, "--seeds", "0", "--rows"]
    main([*command, "boxinst", "box_caseg"])
    main([*command, "boxinst", "cut_by_depth", "paper_predicted"])
    capfd.readouterr()
    main([*command, "boxinst", "box_caseg", "cut_by_depth", "paper_predicted"])
    assert "nothing is missing" in capfd.readouterr().out
    runs = read_results(tmp_path / "results.jsonl", "choose")
    assert [run["row"] for run in runs] == [
        "start", "boxinst", "labels-salient", "box_caseg", "cut-by-depth", "cut_by_depth",
        "predicted-depth", "paper_predicted",
    ]  # fmt: skip
    for run in runs:
        if run["row"] in ROWS:
            assert 0 < run["iou"]["all"] <= 1
            assert {"AP", "AP50", "AP75"} == run["box"].keys() == run["mask"].keys()
            assert run["seconds_per_step"] > 0
            assert run["peak_mib"] > 0
    assert runs[-1]["depth"] == runs[-2]["fingerprint"]
    assert {"loss_dice", "loss_consistency", "loss_depth"} <= runs[-1]["last"].keys()
    table = draw_table(runs)
    for name in ("boxinst", "box_caseg", "cut_by_depth", "paper_predicted"):
        assert ROWS[name].title in table
    assert not read_results(tmp_path / "results.jsonl", "test")


def test_differences_are_paired_by_seed() -> None:
    def run(row: str, seed: int, iou: float, mask: float) -> dict[str, Any]:
        return {"row": row, "seed": seed, "iou": {"all": iou}, "mask": {"AP": mask}}

    table = draw_table(
        [run("boxinst", 0, 0.5, 30), run("boxinst", 1, 0.6, 34), run("control", 1, 0.65, 33)]
    )
    assert "**+.050** (+.050)" in table
    assert "**−1.0** (−1.0)" in table
    assert "| .550 ± .071 |" in table
    assert "| 32.0 ± 2.8 |" in table


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_an_experiment_of_the_same_budget(name: str) -> None:
    scenes, budget = Scenes(folder=Path("scenes"), num_scenes={}), Budget()
    row = ROWS[name]
    found = read_experiment(make_config(row, scenes, budget, "test", 1, depth=row.depth))
    plain = read_experiment(make_config(ROWS["boxinst"], scenes, budget, "test", 1))
    assert found.depth.enabled == bool(row.depth)
    refuse_contradictions(found)
    for part in ("optimizer", "schedule", "test_size"):
        assert getattr(found, part) == getattr(plain, part)
    assert found.train_loader.augmentation.short_sides == [336, 384, 432]
    assert found.train_loader.keep_in_memory
    for field in ("max_iter", "batch_size", "seed", "precision"):
        assert getattr(found.train, field) == getattr(plain.train, field)


def test_settings_are_chosen_on_scenes_that_the_table_does_not_measure() -> None:
    assert SEEDS.keys() == NUM_SCENES.keys() == {"train", "choose", "test"}
    assert len(set(SEEDS.values())) == 3


def test_results_skip_errors_and_unfinished_lines(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    good = {"row": "boxinst", "seed": 0, "split": "test"}
    file.write_text(f'{json.dumps(good)}\n{json.dumps({**good, "error": "cut"})}\n{{"row": ')
    assert read_results(file, "test") == [good]


def test_no_row_is_named_like_the_work_that_comes_before_rows() -> None:
    assert not ROWS.keys() & {"start", "predicted-depth", "cut-by-depth", *LABELLERS}
