"""Batches that threads draw are those that would be drawn without them."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from segtrain.errors import DatasetError
from segtrain.labeller import BoxedPhoto, LabellerSettings, adapt_labeller, adaptation
from segtrain.labeller.crop_batches import CropBatch, CropSource
from segtrain.labeller.crop_network import NetworkDescription
from segtrain.labeller.draw_ahead import DrawAhead, count_drawing_threads


def _break(photo: BoxedPhoto) -> BoxedPhoto:
    def fail() -> np.ndarray:
        raise OSError("truncated")

    return dataclasses.replace(photo, load_image=fail)


def _same(a: CropBatch, b: CropBatch) -> bool:
    return all(torch.equal(value, vars(b)[name]) for name, value in vars(a).items())


def test_threads_draw_the_batches_that_the_caller_would_draw(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings
) -> None:
    mixed = [photos[0], _break(photos[1]), photos[2]]
    plain = CropSource(mixed, tiny_settings, NetworkDescription())
    # So little memory that every photo is decoded anew.
    forgetful = dataclasses.replace(tiny_settings, photo_cache_bytes=1)
    ahead = DrawAhead(CropSource(mixed, forgetful, NetworkDescription()).draw, 3)
    drawn = [ahead.take(iteration) for iteration in (0, 1, 2, 3, 7, 8, 4)]
    ahead.close()
    for iteration, batch in zip((0, 1, 2, 3, 7, 8, 4), drawn, strict=True):
        assert _same(batch, plain.draw(iteration)), iteration


def test_the_next_batches_are_drawn_before_they_are_asked_for() -> None:
    caller, seen = threading.current_thread(), {}
    has_drawn_two = threading.Event()

    def draw(iteration: int) -> int:
        seen[iteration] = threading.current_thread()
        if iteration == 2:
            has_drawn_two.set()
        return iteration

    ahead = DrawAhead(draw, 2)
    assert ahead.take(0) == 0
    assert has_drawn_two.wait(10)
    ahead.close()
    assert seen.keys() == {0, 1, 2}
    assert caller not in seen.values()
    assert DrawAhead(draw, 0).take(5) == 5
    assert seen[5] is caller


def test_what_drawing_raises_reaches_the_caller(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings
) -> None:
    source = CropSource([_break(photo) for photo in photos], tiny_settings, NetworkDescription())
    ahead = DrawAhead(source.draw, 2)
    with pytest.raises(DatasetError, match="none of 3 photos can be used"):
        ahead.take(0)
    ahead.close()


def test_drawing_ahead_does_not_change_what_is_learned(
    photos: list[BoxedPhoto],
    tiny_settings: LabellerSettings,
    start_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for num_threads in (0, 3):
        monkeypatch.setattr(adaptation, "count_drawing_threads", lambda _, n=num_threads: n)
        folder = tmp_path / str(num_threads)
        found.append(load_file(adapt_labeller(photos, tiny_settings, folder, start=start_weights)))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_parts_of_a_batch_are_the_batch(
    photos: list[BoxedPhoto], tiny_settings: LabellerSettings
) -> None:
    whole = CropSource(photos, tiny_settings, NetworkDescription()).draw(3)
    parts = [
        CropSource(photos, tiny_settings, NetworkDescription(), rank=rank, num_parts=2).draw(3)
        for rank in (0, 1)
    ]
    joined = {name: torch.cat([vars(part)[name] for part in parts]) for name in vars(whole)}
    assert _same(whole, CropBatch(**joined))


def test_threads_are_for_cores_that_nothing_else_computes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for num_cores, on_cpu, on_gpu in ((1, 0, 1), (2, 1, 1), (3, 1, 2), (16, 1, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=num_cores: set(range(n)))
        assert count_drawing_threads(cpu) == on_cpu, "torch computes with one thread here"
        assert count_drawing_threads(gpu) == on_gpu
    assert count_drawing_threads(gpu, num_processes=8) == 1
