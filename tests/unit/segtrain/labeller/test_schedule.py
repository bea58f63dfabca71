"""The schedule follows device, weights and number of boxes; what is given wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segtrain.errors import TrainingConfigError
from segtrain.labeller import LabellerSettings, choose_settings
from segtrain.labeller.crop_network import NetworkDescription
from segtrain.labeller.schedule import choose_batch_size, choose_crop_size, choose_steps

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_boxes", "steps"),
    [(1, 40), (40, 40), (100, 100), (300, 300), (3033, 300), (4800, 300), (20_000, 1250)],
)
def test_few_boxes_get_fewer_steps_and_very_many_more(num_boxes: int, steps: int) -> None:
    assert choose_steps(num_boxes, 16) == steps


@given(
    num_boxes=st.integers(1, 10**7), more=st.integers(0, 10**6), batch=st.sampled_from((8, 16, 32))
)
def test_steps_never_fall_as_boxes_grow_and_stay_bounded(
    num_boxes: int, more: int, batch: int
) -> None:
    steps = choose_steps(num_boxes, batch)
    assert 40 <= steps <= choose_steps(num_boxes + more, batch) <= 5000
    assert steps in (40, 5000) or num_boxes <= steps * batch < 16 * num_boxes + batch


def test_a_cpu_keeps_the_measured_schedule(start_weights: Path) -> None:
    settings = choose_settings(3033, start_weights, device=CPU, seed=3)
    assert settings == LabellerSettings(max_iterations=300, seed=3)


def test_given_settings_win_and_the_others_follow_them(start_weights: Path) -> None:
    settings = choose_settings(320, start_weights, device=CPU, batch_size=64)
    assert (settings.batch_size, settings.max_iterations) == (64, 80)
    settings = choose_settings(320, start_weights, device=CPU, max_iterations=7, crop_size=96)
    assert (settings.crop_size, settings.max_iterations) == (96, 7)
    with pytest.raises(TrainingConfigError, match="crop_size=100"):
        choose_settings(320, start_weights, device=CPU, crop_size=100)


def test_a_gpu_sees_larger_crops_only_of_weights_that_know_them() -> None:
    knows, plain = {"crop_sizes": [96, 160]}, NetworkDescription()
    assert choose_crop_size(plain, {}, 8 * 2**30) == 128
    assert choose_crop_size(plain, knows, 8 * 2**30) == 160
    assert choose_crop_size(plain, knows, 0) == 128
    transformer = NetworkDescription(encoder_settings={"img_size": 512})
    assert choose_crop_size(transformer, {}, 0) == 512


def test_the_batch_is_what_a_gpu_holds() -> None:
    assert choose_batch_size(0, 128, 3_300_000) == 16
    assert choose_batch_size(80 * 2**30, 128, 3_300_000) == 32
    # 16 crops of 512 pixels took 7.7 GiB: a card of 16 GiB has room for them.
    assert choose_batch_size(16 * 2**30, 512, 22_000_000) == 16
    assert choose_batch_size(16 * 2**30, 512, 88_000_000) == 4
    assert choose_batch_size(2**28, 512, 22_000_000) == 1
