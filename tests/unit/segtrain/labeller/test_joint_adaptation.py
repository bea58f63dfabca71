"""Several processes learn what one learns, resume, and end together."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from safetensors.torch import load_file

from segtrain.errors import SegtrainError, TrainingConfigError
from segtrain.labeller import (
    BoxedPhoto,
    LabellerSettings,
    MaskedCrops,
    MaskedObject,
    adapt_labeller,
)
from segtrain.labeller.adaptation import drop_hints
from segtrain.labeller.crop_network import NetworkDescription
from segtrain.run.metrics_log import read_metrics
from tests.unit.segtrain.labeller.conftest import draw_disc

_NUM_READ = 3


def _read_or_die(image: np.ndarray, tally: Path) -> np.ndarray:
    """A picture; the second of several processes is killed when it reads its third."""
    if comm.get_rank() == 1:
        with tally.open("a") as file:
            file.write(".")
        if len(tally.read_text()) == _NUM_READ:
            os.kill(os.getpid(), signal.SIGKILL)
    return image.copy()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_though_one_of_them_is_killed_on_the_way(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    # Composites lay crops of a process's own part over each other, so that they differ. No picture
    # is remembered for long, so that the second process reads its third amid the four steps.
    settings = dataclasses.replace(tiny_settings, paste_share=0.0, photo_cache_bytes=1)
    image, mask, _, _ = draw_disc(11)
    known = MaskedObject(
        name="11",
        load_image=functools.partial(np.copy, image),
        load_mask=functools.partial(np.copy, mask),
    )
    mortal = [
        dataclasses.replace(
            photo,
            load_image=functools.partial(_read_or_die, photo.load_image(), tmp_path / "tally"),
        )
        for photo in photos
    ]
    told: list[tuple[int, int]] = []
    adapt = functools.partial(
        adapt_labeller, mortal, settings, start=start_weights,
        known_crops=MaskedCrops([known], settings, NetworkDescription()),
        on_progress=lambda done, total, _: told.append((done, total)),
    )  # fmt: skip
    expected = load_file(adapt(tmp_path / "one"))
    told.clear()
    with pytest.raises(SegtrainError, match=r"process 2 of 2 .* was ended by SIGKILL"):
        adapt(tmp_path / "two", num_processes=2)
    assert told == [(done, 4) for done in range(1, len(told) + 1)]
    assert 1 <= len(told) < 4
    found = load_file(adapt(tmp_path / "two", num_processes=2))
    assert told[-1] == (4, 4)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)
    assert not torch.equal(expected["head.weight"], load_file(start_weights)["head.weight"])
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_a_batch_that_cannot_be_shared_is_refused_with_what_fits(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings, start_weights: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(tiny_settings, batch_size=12)
    for num_processes in (5, 12):
        with pytest.raises(TrainingConfigError, match=r"take 1, 2, 3, 4, 6 processes"):
            adapt_labeller(
                photos, settings, tmp_path, start=start_weights, num_processes=num_processes
            )


def test_parts_of_a_batch_hide_the_hints_that_the_batch_hides(
    tiny_settings: LabellerSettings,
) -> None:
    hints = torch.ones(40, 2, 1, 1)
    whole = drop_hints(hints, tiny_settings, 7)
    parts = [drop_hints(hints[:20], tiny_settings, 7, first) for first in (0, 20)]
    assert torch.equal(whole, torch.cat(parts))
    assert 0 < whole.mean() < 1
