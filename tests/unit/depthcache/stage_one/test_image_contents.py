"""How far the hashing of many files is, is told now and then."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from depthcache.stage_one import image_contents
from depthcache.stage_one.image_contents import read_contents


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three images, the second of which is none."""
    for name in "abc":
        Image.new("RGB", (9, 9), ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    return sorted(tmp_path.iterdir())


def test_counts_grow_to_the_number_of_files(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_contents, "_SECONDS_BETWEEN_COUNTS", 0.0)
    told: list[tuple[int, int, int]] = []
    read_contents([*files, files[0]], progress=lambda *counts: told.append(counts))
    assert told == [(1, 3, 0), (2, 3, 0), (3, 3, 1), (3, 3, 1)]


def test_what_takes_no_time_is_not_told(files: list[Path]) -> None:
    told: list[tuple[int, int, int]] = []
    read_contents(files, progress=lambda *counts: told.append(counts))
    assert told == []
