"""Adaptation: it learns, it resumes to the same bits, it says what goes wrong."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from segtrain.errors import CheckpointError, DatasetError
from segtrain.labeller import BoxedPhoto, LabellerSettings, adapt_labeller, load_labeller
from segtrain.labeller.adaptation import _Adaptation, drop_hints
from segtrain.labeller.crop_batches import KnownCrops
from segtrain.labeller.crop_losses import TeacherMasks, teacher_dice
from segtrain.labeller.mask_scores import ADAPTED_THRESHOLD, STARTING_THRESHOLD, threshold_after
from segtrain.run.checkpoints import load_state
from segtrain.run.metrics_log import read_metrics
from tests.unit.segtrain.labeller.conftest import follow_loss


class StopError(Exception):
    pass


def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, losses: object) -> None:
        if done == 2:
            raise StopError

    whole = adapt_labeller(photos, tiny_settings, tmp_path / "whole", start=start_weights)
    with pytest.raises(StopError):
        adapt_labeller(
            photos, tiny_settings, tmp_path / "parts", start=start_weights, on_progress=stop
        )
    parts = adapt_labeller(photos, tiny_settings, tmp_path / "parts", start=start_weights)
    expected, found = load_file(whole), load_file(parts)
    assert load_labeller(whole).threshold == threshold_after(4) > STARTING_THRESHOLD
    assert threshold_after(300) == pytest.approx(ADAPTED_THRESHOLD)
    assert load_labeller(start_weights).threshold == STARTING_THRESHOLD
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [row["iteration"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
    ]


def test_losses_fall_on_a_few_discs(
    photos: list[BoxedPhoto], eager_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(eager_settings, max_iterations=24, teacher_weight=0.0)
    seen = follow_loss("loss", photos, settings, tmp_path, start=start_weights)
    assert np.mean(seen[-4:]) < 0.6 * np.mean(seen[:4])


def test_a_budget_becomes_a_plan_that_the_state_keeps(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    totals: list[int] = []
    settings = dataclasses.replace(tiny_settings, max_iterations=5)
    adapt_labeller(
        photos,
        settings,
        tmp_path,
        start=start_weights,
        minutes=60.0,
        on_progress=lambda done, total, losses: totals.append(total),
    )
    assert totals == [5] * 5


def test_another_setting_refuses_the_state(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    adapt_labeller(photos, tiny_settings, tmp_path, start=start_weights)
    changed = dataclasses.replace(tiny_settings, margin_high=0.4)
    with pytest.raises(CheckpointError, match=r"margin_high was 0\.55, is 0\.4"):
        adapt_labeller(photos, changed, tmp_path, start=start_weights)


def test_another_start_refuses_the_state(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    other = adapt_labeller(photos, tiny_settings, tmp_path, start=start_weights)
    with pytest.raises(CheckpointError, match="started from other weights than"):
        adapt_labeller(photos, tiny_settings, tmp_path, start=other)


def test_an_unreadable_photo_is_left_out_and_named(
    photos: list[BoxedPhoto],
    tiny_settings: LabellerSettings,
    start_weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> np.ndarray:
        raise OSError("truncated")

    broken = dataclasses.replace(photos[0], name="broken.jpg", load_image=fail)
    with caplog.at_level(logging.WARNING):
        adapt_labeller([broken, *photos[1:]], tiny_settings, tmp_path, start=start_weights)
    assert "broken.jpg is left out of the adaptation: truncated" in caplog.text
    with pytest.raises(DatasetError, match="none of 1 photos can be used"):
        adapt_labeller([broken], tiny_settings, tmp_path / "alone", start=start_weights)


def test_no_box_is_an_error(
    tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="hold no box"):
        adapt_labeller([], tiny_settings, tmp_path, start=start_weights)


def test_collapse_is_announced_once_with_a_remedy(
    photos: list[BoxedPhoto],
    tiny_settings: LabellerSettings,
    start_weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = _Adaptation(photos, tiny_settings, tmp_path, start_weights, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            run._watch_fill(1.0)
    assert caplog.text.count("have collapsed to the boxes") == 1
    assert "pipeline data check" in caplog.text


def test_hints_are_dropped_in_their_shares(tiny_settings: LabellerSettings) -> None:
    settings = dataclasses.replace(tiny_settings, box_hint_share=0.25, depth_hint_share=1.0)
    dropped = drop_hints(torch.ones(4000, 2, 1, 1), settings, 0)
    assert float(dropped[:, 0].mean()) == pytest.approx(0.25, abs=0.03)
    assert float(dropped[:, 1].mean()) == 1.0


def test_depth_reaches_the_network_only_where_it_is_asked_for(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    def depth_hint(depth: str) -> float:
        settings = dataclasses.replace(tiny_settings, depth=depth)
        batch = _Adaptation(
            photos, settings, tmp_path, start_weights, torch.device("cpu")
        ).source.draw(0)
        return float(batch.hints[:, 1].abs().max())

    assert depth_hint("off") == 0
    assert depth_hint("loss") == 0
    assert depth_hint("both") == pytest.approx(1.0)


@pytest.mark.parametrize("depth", ["loss", "both"])
def test_photos_without_depth_train_beside_those_with(
    depth: str,
    photos: list[BoxedPhoto],
    tiny_settings: LabellerSettings,
    start_weights: Path,
    tmp_path: Path,
) -> None:
    mixed = [dataclasses.replace(photos[0], load_inverse_depth=None), *photos[1:]]
    settings = dataclasses.replace(tiny_settings, depth=depth, max_iterations=2)
    rows: list[float] = []
    adapt_labeller(
        mixed,
        settings,
        tmp_path,
        start=start_weights,
        on_progress=lambda done, total, losses: rows.append(losses["consistency"]),
    )
    assert all(0 < value < 10 for value in rows)


def test_the_result_lies_between_the_start_and_what_was_learned(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(tiny_settings, start_share=0.25)
    found = load_file(adapt_labeller(photos, settings, tmp_path, start=start_weights))
    learned = load_state(tmp_path / "adaptation.pth")["teacher"]
    start = load_file(start_weights)
    for name in ("head.bias", "levels.0.lateral.weight", "encoder.blocks.5.0.conv_pw.weight"):
        assert not torch.equal(learned[name], start[name])
        torch.testing.assert_close(found[name], 0.75 * learned[name] + 0.25 * start[name])


def test_crops_with_known_masks_are_learned_beside_the_boxes(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    asked: list[int] = []

    def draw(iteration: int) -> KnownCrops:
        asked.append(iteration)
        return KnownCrops(
            torch.zeros(2, 3, 64, 64), torch.zeros(2, 2, 64, 64), torch.ones(2, 32, 32)
        )

    settings = dataclasses.replace(tiny_settings, paste_share=0.5)
    adapt_labeller(photos, settings, tmp_path, start=start_weights, known_crops=draw)
    assert asked == [0, 1, 2, 3]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(row["known"] > 0 for row in rows)


def test_crops_count_by_the_teacher_s_agreement_with_itself() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[:, 2:6, 2:6] = 1
    logits = torch.full((2, 8, 8), -9.0)
    logits[0, 2:6, 2:6] = 9.0
    teacher = TeacherMasks(masks, torch.tensor([1.0, 0.5]))
    alike = float(teacher_dice(logits, teacher, 0.0))
    assert alike == pytest.approx(0.5, abs=0.01)
    assert float(teacher_dice(logits, teacher, 2.0)) == pytest.approx(0.2, abs=0.01)


def test_a_budget_that_ends_within_the_warm_up_is_kept_and_told(
    photos: list[BoxedPhoto],
    tiny_settings: LabellerSettings,
    start_weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = dataclasses.replace(tiny_settings, warmup_iterations=20, max_iterations=40)
    with caplog.at_level(logging.WARNING):
        weights = adapt_labeller(photos, settings, tmp_path, start=start_weights, minutes=1e-6)
    assert load_labeller(weights).facts["adapted"]["iterations"] == 1
    assert "1 iterations took the whole budget" in caplog.text
