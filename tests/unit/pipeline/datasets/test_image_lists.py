"""Which images a folder gives to a command, and what it says of the rest."""

from __future__ import annotations

import logging

import pytest

from pipeline.datasets.image_lists import list_folder_images
from pipeline.errors import UsageError


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    for name in ("a.png", "b.jfif", "b.txt", "c.txt", "._a.png", "Thumbs.db"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO):
        assert [path.name for path in list_folder_images(tmp_path)] == ["a.png", "b.jfif"]
    for told in ("2 images", "2 .txt", "1 macOS companions", "1 .db", "._a.png"):
        assert told in caplog.text


def test_a_folder_without_images_is_refused_with_the_known_endings(tmp_path):
    (tmp_path / "a.docx").touch()
    with pytest.raises(UsageError, match=r"no image.*\.jfif"):
        list_folder_images(tmp_path)
