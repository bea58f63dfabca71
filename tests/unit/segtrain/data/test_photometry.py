"""Colours of the student's image change; its geometry, its boxes and its teacher's view do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.data.coco_boxes import BoxAnnotation, ImageRecord
from segtrain.data.mapper import TeacherView, TrainingMapper
from segtrain.data.photometry import perturb_colours
from segtrain.data.settings import AugmentationSettings, PhotometricSettings
from segtrain.errors import TrainingConfigError

ALWAYS = PhotometricSettings(
    jitter_probability=1.0, grayscale_probability=1.0, blur_probability=1.0
)


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return ImageRecord(
        image_id=5,
        path=str(path),
        file_name=path.name,
        height=40,
        width=60,
        annotations=(BoxAnnotation(box_xyxy=(2, 3, 20, 24), category=1),),
    )


@pytest.fixture
def make_mapper() -> Callable[[PhotometricSettings], TrainingMapper]:
    def make(photometric: PhotometricSettings) -> TrainingMapper:
        sizes = AugmentationSettings(
            short_sides=[32, 40, 48], max_size=100, crop_fraction=0.7, photometric=photometric
        )
        view = TeacherView(first_position=0, short_side=None)
        return TrainingMapper(sizes, seed=7, teacher_view=view)

    return make


def test_only_the_students_colours_change(
    record: ImageRecord, make_mapper: Callable[[PhotometricSettings], TrainingMapper]
) -> None:
    for position in range(6):
        plain = make_mapper(PhotometricSettings())(record, position)
        strong = make_mapper(ALWAYS)(record, position)
        assert "clean_image" not in plain
        assert torch.equal(strong["clean_image"], plain["image"])
        assert torch.equal(strong["teacher_image"], plain["image"])
        assert not torch.equal(strong["image"], plain["image"])
        assert strong["image"].shape == plain["image"].shape
        boxes = [sample["instances"].gt_boxes.tensor for sample in (strong, plain)]
        assert torch.equal(*boxes)
        again = make_mapper(ALWAYS)(record, position)
        assert torch.equal(again["image"], strong["image"])


def test_nothing_moves() -> None:
    """An edge stays where it is through every change of colour and blur."""
    image = torch.zeros(3, 24, 30, dtype=torch.uint8)
    image[:, :, 15:] = torch.tensor([255, 220, 160], dtype=torch.uint8)[:, None, None]
    for seed in range(20):
        changed = perturb_colours(image, ALWAYS, np.random.default_rng(seed)).float().mean((0, 1))
        steps = (changed[1:] - changed[:-1]).abs()
        centre = (steps * torch.arange(29)).sum() / steps.sum()
        assert centre.item() == pytest.approx(14, abs=0.25), seed


def test_grey_is_grey_and_blur_keeps_the_mean() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    grey = perturb_colours(
        image, PhotometricSettings(grayscale_probability=1.0), np.random.default_rng(0)
    )
    assert torch.equal(grey[0], grey[2])
    # Luma weighs green most, in BGR as well.
    blue, green, red = (int(image[c, 0, 0]) for c in range(3))
    assert int(grey[0, 0, 0]) == pytest.approx(0.114 * blue + 0.587 * green + 0.299 * red, abs=1.0)
    blur = PhotometricSettings(blur_probability=1.0, blur_sigma=[2.0, 2.0])
    blurred = perturb_colours(image, blur, np.random.default_rng(0)).float()
    assert blurred.mean().item() == pytest.approx(image.float().mean().item(), abs=2)
    assert blurred.std() < 0.4 * image.float().std()
    tiny = image[:, :1, :]
    assert perturb_colours(tiny, ALWAYS, np.random.default_rng(0)).shape == tiny.shape


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"jitter_probability": 1.2}, "photometric.jitter_probability=1.2"),
        ({"hue": 0.6}, "photometric.hue=0.6"),
        ({"blur_sigma": [2.0, 0.1]}, "photometric.blur_sigma"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(TrainingConfigError, match=name):
        PhotometricSettings(**settings)
