"""What of a checkpoint is refused before torch is loaded, torch would refuse, too."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.runs.experiment_files import existing_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.arange(2000.0)}}, path)
    return path


def _garble_pickle(data: bytes) -> bytes:
    start = data.index(b"\x80\x02")
    return data[: start + 2] + b"\xff" * 8 + data[start + 10 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1000], "was cut off"),
        (_garble_pickle, "data.pkl is damaged"),
        (lambda data: data.replace(b"data.pkl", b"dada.pkl"), "holds no data.pkl"),
        (lambda data: b"<html>" + data, "begins with b'<h'"),
    ],
)
def test_damage_is_found_without_torch(
    checkpoint: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(UsageError, match=reason):
        existing_checkpoint(checkpoint)
    with pytest.raises((RuntimeError, OSError, pickle.UnpicklingError)):
        torch.load(checkpoint, weights_only=True)


def test_every_form_that_torch_writes_is_taken(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    before = torch.serialization.get_crc32_options()
    assert existing_checkpoint(checkpoint) == checkpoint
    torch.save(content, checkpoint, _use_new_zipfile_serialization=False)
    assert existing_checkpoint(checkpoint) == checkpoint
    torch.serialization.set_crc32_options(not before)
    try:
        torch.save(content, checkpoint)
    finally:
        torch.serialization.set_crc32_options(before)
    assert existing_checkpoint(checkpoint) == checkpoint
