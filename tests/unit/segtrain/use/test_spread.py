"""The bootstrap draws images for every model alike, and AP of a draw is AP of those images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.coco_reader import read_coco_file
from segtrain.use.evaluation import measure_average_precision
from segtrain.use.spread import NUM_DRAWS, draw_images, resampled_means, resampled_precision

NUM_IMAGES = 6


def _document(chosen: list[int]) -> dict[str, Any]:
    """Two boxes in each image; the same image may come several times."""
    return {
        "images": [
            {"id": i + 1, "file_name": f"{i}.png", "width": 90, "height": 90}
            for i in range(len(chosen))
        ],
        "annotations": [
            {
                "id": 2 * i + k + 1, "image_id": i + 1, "category_id": 1,
                "bbox": [10 + 3 * image, 10 + 30 * k, 20, 20], "area": 400,
                "segmentation": [[0, 0, 9, 0, 9, 9]],
            }
            for i, image in enumerate(chosen)
            for k in range(2)
        ],
        "categories": [{"id": 1, "name": "bolt"}],
    }  # fmt: skip


def _results(chosen: list[int]) -> list[dict[str, Any]]:
    """The more to the left, the better; scores differ between images."""
    return [
        {
            "image_id": i + 1, "category_id": 1, "score": 0.9 - 0.1 * image - 0.01 * k,
            "bbox": [10 + 3 * image + image * (1 + k), 10 + 30 * k, 20, 20],
        }
        for i, image in enumerate(chosen)
        for k in range(2)
    ]  # fmt: skip


def test_precision_of_a_draw_is_that_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(_document(list(range(NUM_IMAGES)))))
    reading = read_coco_file(path, tmp_path, masks=True)
    found = resampled_precision(reading, _results(list(range(NUM_IMAGES))), "bbox")
    assert found.shape == (NUM_DRAWS,)
    assert np.unique(found).size > 10
    for draw in (0, 7):
        chosen = sorted(draw_images(NUM_IMAGES)[draw].tolist())
        path.write_text(json.dumps(_document(chosen)))
        expected = measure_average_precision(path, _results(chosen))["bbox"]["AP"]
        assert found[draw] == pytest.approx(expected)
    assert not resampled_precision(reading, [], "bbox").any()


def test_means_are_over_the_objects_of_the_images_drawn() -> None:
    values = [[1.0], [0.0, 0.0, 0.0], []]
    expected = []
    for chosen in draw_images(3):
        drawn = [value for image in chosen for value in values[image]]
        expected.append(np.mean(drawn) if drawn else 0.0)
    assert resampled_means(values) == pytest.approx(expected)
