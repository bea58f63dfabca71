"""One training sample: alignment, determinism, and clear refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from depthcache import image_key
from depthcache.errors import CacheMissError
from segtrain.data.augmentations import resize_map, scale_to_255
from segtrain.data.coco_boxes import BoxAnnotation, ImageRecord
from segtrain.data.mapper import TeacherView, TrainingMapper, make_test_input
from segtrain.data.settings import AugmentationSettings
from segtrain.errors import DatasetError, ImageSizeMismatchError, MissingDepthError

EXIF_ORIENTATION = 0x0112


class MapsInMemory:
    """Depth maps by key, resized as a cache resizes them."""

    def __init__(self, maps: dict[str, npt.NDArray[np.float32]]) -> None:
        self.maps = maps

    def read(self, key: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        if key not in self.maps:
            raise CacheMissError(key)
        return self.maps[key] if size is None else resize_map(self.maps[key], size)


def _write_ramp(path: Path, height: int, width: int, orientation: int = 1) -> bytes:
    """A picture whose brightness grows to the right, before its EXIF orientation turns it."""
    ramp = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, axis=0)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(buffer, "JPEG", quality=98, exif=exif)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _record(path: Path, height: int, width: int, **changes: Any) -> ImageRecord:
    values: dict[str, Any] = {
        "image_id": 5,
        "path": str(path),
        "file_name": path.name,
        "height": height,
        "width": width,
        "annotations": (
            BoxAnnotation(box_xyxy=(2, 3, 20, 24), category=1),
            BoxAnnotation(box_xyxy=(10, 8, 30, 30), category=0),
        ),
    }
    return ImageRecord(**(values | changes))


SMALL = AugmentationSettings(short_sides=[32, 40, 48], max_size=100, crop_fraction=0.7)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("position", range(4))
def test_depth_is_aligned_with_every_exif_orientation(
    tmp_path: Path, orientation: int, position: int
) -> None:
    path = tmp_path / "photo.jpg"
    data = _write_ramp(path, 40, 60, orientation)
    height, width = (60, 40) if orientation >= 5 else (40, 60)
    # The depth map of the upright picture: its own brightness.
    from depthcache import decode_image

    upright = decode_image(data)
    assert upright.shape[:2] == (height, width)
    depth = MapsInMemory({image_key(data): upright[:, :, 0].astype(np.float32)})
    mapper = TrainingMapper(SMALL, seed=0, depth=depth)
    sample = mapper(_record(path, height, width), position)
    grey = scale_to_255(sample["image"][0].numpy().astype(np.float32))
    difference = np.abs(sample["inverse_depth_255"].numpy() - grey)
    # A crop shows part of the ramp, so compare where the picture's own scale is known.
    correlation = np.corrcoef(sample["inverse_depth_255"].numpy().ravel(), grey.ravel())[0, 1]
    assert correlation > 0.999, difference.max()


def test_same_position_gives_the_same_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    mapper = TrainingMapper(SMALL, seed=3)
    record = _record(path, 40, 60)
    first, again = mapper(record, 7), mapper(record, 7)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["instances"].gt_boxes.tensor, again["instances"].gt_boxes.tensor)
    shapes = {tuple(mapper(record, position)["image"].shape) for position in range(12)}
    assert len(shapes) > 1


def test_kept_images_and_depth_are_the_same_and_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    data = _write_ramp(path, 40, 60)
    depth = MapsInMemory({image_key(data): np.arange(2400, dtype=np.float32).reshape(40, 60)})
    settings = AugmentationSettings(short_sides=[32], max_size=100)
    keeping = TrainingMapper(settings, seed=0, depth=depth, keep_in_memory=True)
    reading = TrainingMapper(settings, seed=0, depth=depth)
    record = _record(path, 40, 60)
    plain = [reading(record, position) for position in range(4)]
    keeping(record, 0)
    path.unlink()
    depth.maps.clear()
    for position, expected in enumerate(plain):
        sample = keeping(record, position)
        for name in ("image", "inverse_depth_255"):
            assert torch.equal(sample[name], expected[name])
    with pytest.raises(DatasetError, match="cannot be read"):
        reading(record, 0)


def test_image_is_bgr_and_boxes_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), (200, 100, 50)).save(path)
    mapper = TrainingMapper(AugmentationSettings(short_sides=[80], flip_probability=1.0), seed=0)
    sample = mapper(_record(path, 40, 60), 0)
    assert sample["image"].shape == (3, 80, 120)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"][:, 0, 0].tolist() == [50, 100, 200]
    assert (sample["height"], sample["width"]) == (40, 60)
    torch.testing.assert_close(
        sample["instances"].gt_boxes.tensor[0], torch.tensor([80.0, 6.0, 116.0, 48.0])
    )
    assert sample["instances"].gt_classes.tolist() == [1, 0]
    assert "inverse_depth_255" not in sample
    assert "teacher_image" not in sample


def test_teacher_view_starts_late_and_has_the_same_flip(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    mapper = TrainingMapper(
        AugmentationSettings(short_sides=[32]),
        seed=0,
        teacher_view=TeacherView(first_position=4, short_side=64, max_size=200),
    )
    record = _record(path, 40, 60)
    assert "teacher_image" not in mapper(record, 3)
    for position in range(4, 12):
        sample = mapper(record, position)
        assert sample["teacher_image"].shape == (3, 64, 96)
        # Brightness grows to the right, or to the left after a flip, in both views.
        slopes = [
            float(sample[name][0, 0, -1]) - float(sample[name][0, 0, 0])
            for name in ("image", "teacher_image")
        ]
        assert slopes[0] * slopes[1] > 0


def test_equal_size_teacher_sees_the_student_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    mapper = TrainingMapper(
        SMALL, seed=0, teacher_view=TeacherView(first_position=0, short_side=None)
    )
    sample = mapper(_record(path, 40, 60), 0)
    assert torch.equal(sample["teacher_image"], sample["image"])


def test_missing_depth_names_image_and_command(tmp_path: Path) -> None:
    path = tmp_path / "lonely.jpg"
    _write_ramp(path, 40, 60)
    mapper = TrainingMapper(
        SMALL, seed=0, depth=MapsInMemory({}), depth_command="pipeline depth --cache X"
    )
    with pytest.raises(MissingDepthError, match=r"lonely\.jpg.*pipeline depth --cache X"):
        mapper(_record(path, 40, 60), 0)


def test_wrong_size_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    mapper = TrainingMapper(SMALL, seed=0)
    with pytest.raises(ImageSizeMismatchError, match=r"60x40 pixels.*states 50x40"):
        mapper(_record(path, 40, 50), 0)
    with pytest.raises(ImageSizeMismatchError, match="EXIF"):
        mapper(_record(path, 60, 40), 0)
    with pytest.raises(DatasetError, match="cannot be read"):
        mapper(_record(tmp_path / "absent.jpg", 40, 60), 0)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        mapper(_record(broken, 40, 60), 0)


def test_image_without_boxes_gives_empty_instances(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    sample = TrainingMapper(SMALL, seed=0)(_record(path, 40, 60, annotations=()), 0)
    assert len(sample["instances"]) == 0
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)


def test_masks_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    annotations = (
        BoxAnnotation(box_xyxy=(10, 10, 30, 30), category=0, segmentation=square),
        BoxAnnotation(box_xyxy=(5, 5, 9, 9), category=0),
    )
    record = _record(path, 40, 60, annotations=annotations)
    plain = AugmentationSettings(short_sides=[80], flip_probability=0.0)
    assert not TrainingMapper(plain, seed=0)(record, 0)["instances"].has("gt_masks")
    instances = TrainingMapper(plain, seed=0, use_masks=True)(record, 0)["instances"]
    assert instances.gt_has_mask.tolist() == [True, False]
    areas = instances.gt_masks.tensor.flatten(1).sum(1).tolist()
    assert areas[0] == pytest.approx(40 * 40, rel=0.05)
    assert areas[1] == 0


def test_test_input_keeps_the_original_size() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    sample = make_test_input(image, short_side=80, max_size=90)
    assert sample["image"].shape == (3, 60, 90)
    assert (sample["height"], sample["width"]) == (40, 60)


@pytest.mark.parametrize("size", [(2, 300), (300, 2), (1, 9000)])
def test_images_one_pixel_wide_give_samples(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    path = tmp_path / "thin.png"
    Image.new("RGB", size, (200, 100, 50)).save(path)
    mapper = TrainingMapper(
        AugmentationSettings(short_sides=[64], max_size=128, flip_probability=1.0),
        seed=0,
        depth=MapsInMemory({image_key(path.read_bytes()): np.eye(4, dtype=np.float32)}),
    )
    box = BoxAnnotation(box_xyxy=(0, 0, width, height), category=0)
    sample = mapper(_record(path, height, width, annotations=(box,)), 0)
    assert min(sample["image"].shape[1:]) == 1
    assert sample["inverse_depth_255"].shape == sample["image"].shape[1:]
    assert sample["image"][:, 0, 0].tolist() == [50, 100, 200]


def test_a_bad_mask_is_refused_by_its_annotation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _write_ramp(path, 40, 60)
    bad = BoxAnnotation(box_xyxy=(5, 5, 9, 9), category=0, segmentation=[[1, 2]], annotation_id=7)
    with pytest.raises(DatasetError, match=r"annotation 7 of a\.jpg"):
        TrainingMapper(SMALL, seed=0, use_masks=True)(_record(path, 40, 60, annotations=(bad,)), 0)
