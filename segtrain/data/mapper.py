"""One image of the dataset → one element of the model's batch.

bytes → decode → key → depth from the cache → one drawn geometric plan for all → tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from depthcache import decode_image, image_key
from depthcache.errors import CacheMissError, ImageDecodeError
from segtrain.data.augmentations import (
    GeometricPlan,
    apply_plan_to_inverse_depth,
    draw_plan,
    plan_to_transforms,
    resized_shape,
)
from segtrain.data.coco_boxes import ImageRecord
from segtrain.data.image_files import read_image_bytes
from segtrain.data.photometry import perturb_colours
from segtrain.data.segmentations import decode_segmentation
from segtrain.data.settings import AugmentationSettings
from segtrain.errors import DatasetError, ImageSizeMismatchError, MissingDepthError


class InverseDepthReader(Protocol):
    """What the mapper needs of a depth cache."""

    def read(self, key: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Map of one image, larger = nearer, at its own size or at (height, width)."""
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherView:
    """The second, larger view of an image that the distillation teacher sees.

    Attributes:
        first_position: samples before this position of the run carry no teacher view.
        short_side: pixels; None gives the teacher the student's size.
        max_size: bound on the longer side, pixels.
    """

    first_position: int
    short_side: int | None = 800
    max_size: int = 1333


class TrainingMapper:
    """Makes training samples; the same (seed, position) gives the same sample in any process.

    Args:
        settings: augmentations.
        seed: of the run.
        depth: where depth maps come from; None for configs that use no depth.
        depth_command: the command that fills the cache, for the message when a map is missing.
        teacher_view: set when the run distils.
        use_masks: hand annotated masks to the model.
        keep_in_memory: decode each image, and read its depth at each size, once.
    """

    def __init__(
        self,
        settings: AugmentationSettings,
        *,
        seed: int,
        depth: InverseDepthReader | None = None,
        depth_command: str = "pipeline depth",
        teacher_view: TeacherView | None = None,
        use_masks: bool = False,
        keep_in_memory: bool = False,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.depth = depth
        self.depth_command = depth_command
        self.teacher_view = teacher_view
        self.use_masks = use_masks
        self._kept: dict[Any, Any] | None = {} if keep_in_memory else None

    def __call__(self, record: ImageRecord, position: int) -> dict[str, Any]:
        """Make the sample of one image.

        Args:
            record: the image and its boxes.
            position: how many samples the run drew before this one.

        Returns:
            `image` uint8 (3, H, W) BGR, `height`, `width`, `file_name`, `image_id`, `instances`,
            with depth `inverse_depth_255` float32 (H, W), with a teacher `teacher_image`, and where
            the colours of `image` are perturbed `clean_image`.

        Raises:
            DatasetError: the image is missing, broken, or of another size than the file states.
            MissingDepthError: the cache has no map for this image.
        """
        random = np.random.default_rng((self.seed, position))
        image_rgb, key = self._keep(record.path, lambda: read_image(record))
        plan = draw_plan((record.height, record.width), self.settings, random)
        transforms = plan_to_transforms(plan)
        clean = to_bgr_tensor(transforms.apply_image(image_rgb))
        # Drawn after the plan, so that geometry is the same with and without it.
        perturbed = perturb_colours(clean, self.settings.photometric, random)
        sample: dict[str, Any] = {
            "image": perturbed,
            "height": record.height,
            "width": record.width,
            "file_name": record.file_name,
            "image_id": record.image_id,
            "instances": self._map_instances(record, plan),
        }
        if perturbed is not clean:
            sample["clean_image"] = clean
        if self.depth is not None:
            sample["inverse_depth_255"] = self._read_depth(record, key, plan)
        view = self.teacher_view
        if view is not None and position >= view.first_position:
            teacher_plan = plan
            if view.short_side is not None:
                teacher_plan = plan.at_short_side(view.short_side, view.max_size)
            sample["teacher_image"] = (
                clean
                if teacher_plan == plan
                else to_bgr_tensor(plan_to_transforms(teacher_plan).apply_image(image_rgb))
            )
        return sample

    def _read_depth(self, record: ImageRecord, key: str, plan: GeometricPlan) -> torch.Tensor:
        depth = self.depth
        assert depth is not None
        try:
            moved = apply_plan_to_inverse_depth(
                plan, lambda size: self._keep((key, size), lambda: depth.read(key, size))
            )
        except CacheMissError as error:
            raise MissingDepthError(
                f"the depth cache has no map for {record.path} (sha256 {key}); "
                f"fill it with: {self.depth_command}"
            ) from error
        return torch.from_numpy(moved)

    def _keep(self, name: Hashable, read: Callable[[], Any]) -> Any:
        """What `read` gives, read once if the settings say so."""
        if self._kept is None:
            return read()
        if name not in self._kept:
            self._kept[name] = read()
        return self._kept[name]

    def _map_instances(self, record: ImageRecord, plan: GeometricPlan) -> Instances:
        instances = Instances(plan.size)
        boxes = np.array([a.box_xyxy for a in record.annotations], dtype=np.float64).reshape(-1, 4)
        transforms = plan_to_transforms(plan)
        moved = Boxes(torch.as_tensor(transforms.apply_box(boxes), dtype=torch.float32))
        moved.clip(plan.size)
        instances.gt_boxes = moved
        instances.gt_classes = torch.tensor(
            [a.category for a in record.annotations], dtype=torch.int64
        )
        if self.use_masks:
            masks = np.zeros((len(boxes), *plan.size), dtype=bool)
            for index, annotation in enumerate(record.annotations):
                try:
                    mask = decode_segmentation(annotation.segmentation, record.height, record.width)
                except DatasetError as error:
                    raise DatasetError(
                        f"annotation {annotation.annotation_id} of {record.file_name}: {error}"
                    ) from error
                masks[index] = transforms.apply_segmentation(mask).astype(bool)
            instances.gt_masks = BitMasks(torch.from_numpy(masks))
            instances.gt_has_mask = torch.tensor(
                [a.segmentation is not None for a in record.annotations], dtype=torch.bool
            )
        # A crop can leave a sliver of a box that no location lies in.
        return instances[moved.nonempty(threshold=1e-5)]


def read_image(record: ImageRecord) -> tuple[npt.NDArray[np.uint8], str]:
    """Read, decode and hash one image, with the functions that stage one uses.

    Args:
        record: names the file and its stated size.

    Returns:
        (height, width, 3) RGB, EXIF orientation applied, and the key of its depth map.

    Raises:
        ImageSizeMismatchError: the decoded size is not the stated one.
        DatasetError: the file is missing or is no image.
    """
    data = read_image_bytes(record.path)
    try:
        image_rgb = decode_image(data)
    except ImageDecodeError as error:
        raise DatasetError(f"image {record.path} cannot be decoded: {error}") from error
    height, width = image_rgb.shape[:2]
    if (height, width) != (record.height, record.width):
        rotated = (width, height) == (record.height, record.width)
        remedy = (
            "its EXIF orientation turns it; state the turned size and boxes"
            if rotated
            else "correct width and height in the annotation file"
        )
        raise ImageSizeMismatchError(
            f"image {record.path} is {width}x{height} pixels, but the annotation file states "
            f"{record.width}x{record.height}: {remedy}"
        )
    return image_rgb, image_key(data)


def make_test_input(
    image_rgb: npt.NDArray[np.uint8], *, short_side: int, max_size: int
) -> dict[str, Any]:
    """An image as the model takes it at inference.

    Args:
        image_rgb: (height, width, 3) uint8.
        short_side: pixels.
        max_size: bound on the longer side, pixels.

    Returns:
        `image` uint8 (3, H, W) BGR and the original `height` and `width`.
    """
    height, width = image_rgb.shape[:2]
    plan = GeometricPlan(
        source_size=(height, width),
        crop_xywh=(0, 0, width, height),
        size=resized_shape(height, width, short_side, max_size),
        is_flipped=False,
    )
    resized = plan_to_transforms(plan).apply_image(image_rgb)
    return {"image": to_bgr_tensor(resized), "height": height, "width": width}


def to_bgr_tensor(image_rgb: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) RGB → (3, H, W) BGR, contiguous."""
    # A copy: of an image one pixel wide, a flipped view counts as contiguous, strides below zero.
    return torch.from_numpy(image_rgb[:, :, ::-1].transpose(2, 0, 1).copy())
