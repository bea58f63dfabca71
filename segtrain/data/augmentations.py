"""Geometric augmentations that an image and its depth map share.

An augmentation is drawn once, as a plan of three steps: crop, resize, flip. The plan is then
applied to the image, to the boxes, to the depth map and, at another size, to the teacher's image.
Depth is only ever moved, never changed in value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import transforms
from torch.nn import functional

from segtrain.data.settings import AugmentationSettings

Image = npt.NDArray[np.uint8]
DepthMap = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GeometricPlan:
    """One drawn augmentation: crop, then resize, then flip.

    Attributes:
        source_size: (height, width) of the image before anything.
        crop_xywh: x0, y0, width, height in source pixels.
        size: (height, width) after the resize.
        is_flipped: whether left and right are exchanged at the end.
    """

    source_size: tuple[int, int]
    crop_xywh: tuple[int, int, int, int]
    size: tuple[int, int]
    is_flipped: bool

    @property
    def is_cropped(self) -> bool:
        """Whether the crop leaves anything out."""
        height, width = self.source_size
        return self.crop_xywh != (0, 0, width, height)

    def at_short_side(self, short_side: int, max_size: int) -> GeometricPlan:
        """The same crop and flip at another size: what the teacher sees.

        Args:
            short_side: pixels.
            max_size: bound on the longer side, pixels.
        """
        _, _, width, height = self.crop_xywh
        return replace(self, size=resized_shape(height, width, short_side, max_size))


def draw_plan(
    source_size: tuple[int, int], settings: AugmentationSettings, random: np.random.Generator
) -> GeometricPlan:
    """Draw one augmentation.

    Args:
        source_size: (height, width) of the image in pixels.
        settings: what may be drawn.
        random: the only source of randomness.

    Returns:
        The plan; the same generator state gives the same plan.
    """
    height, width = source_size
    crop_height = crop_width = 0
    x0 = y0 = 0
    crop_height, crop_width = height, width
    if settings.crop_fraction < 1:
        low = settings.crop_fraction
        crop_height = max(1, round(height * random.uniform(low, 1)))
        crop_width = max(1, round(width * random.uniform(low, 1)))
        y0 = int(random.integers(0, height - crop_height + 1))
        x0 = int(random.integers(0, width - crop_width + 1))
    short_side = int(random.choice(np.asarray(settings.short_sides)))
    return GeometricPlan(
        source_size=source_size,
        crop_xywh=(x0, y0, crop_width, crop_height),
        size=resized_shape(crop_height, crop_width, short_side, settings.max_size),
        is_flipped=bool(random.random() < settings.flip_probability),
    )


def resized_shape(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Size after a resize to a short side, as detectron2's ResizeShortestEdge gives it.

    A thin image keeps at least one pixel each way.

    Returns:
        (height, width) in pixels.
    """
    shape = transforms.ResizeShortestEdge.get_output_shape(height, width, short_side, max_size)
    return max(1, int(shape[0])), max(1, int(shape[1]))


def plan_to_transforms(plan: GeometricPlan) -> transforms.TransformList:
    """The plan as detectron2 transforms, which also move boxes and bitmasks."""
    x0, y0, width, height = plan.crop_xywh
    steps: list[transforms.Transform] = []
    if plan.is_cropped:
        steps.append(transforms.CropTransform(x0, y0, width, height))
    steps.append(transforms.ResizeTransform(height, width, *plan.size))
    if plan.is_flipped:
        steps.append(transforms.HFlipTransform(plan.size[1]))
    return transforms.TransformList(steps)


def apply_plan_to_inverse_depth(
    plan: GeometricPlan, read_inverse_depth: Callable[[tuple[int, int]], DepthMap]
) -> DepthMap:
    """Move a depth map as the image is moved, and scale it to 0..255.

    Minimum and maximum are those of the whole image, so a crop does not change a pixel's value.
    Without a crop the map is read at its final size, in one resize.

    Args:
        plan: the drawn augmentation.
        read_inverse_depth: gives the whole image's map, larger = nearer, at any (height, width).

    Returns:
        (height, width) float32 of `plan.size`, 0..255, larger = nearer; zeros for a flat map.
    """
    if plan.is_cropped:
        x0, y0, width, height = plan.crop_xywh
        whole = scale_to_255(read_inverse_depth(plan.source_size))
        moved = resize_map(whole[y0 : y0 + height, x0 : x0 + width], plan.size)
    else:
        moved = scale_to_255(read_inverse_depth(plan.size))
    if plan.is_flipped:
        moved = moved[:, ::-1]
    return moved.copy()  # a flipped view one pixel wide counts as contiguous, strides below zero


def scale_to_255(inverse_depth: DepthMap) -> DepthMap:
    """Min–max scale a map to 0..255, the scale of the paper's pseudo-depth pictures.

    Args:
        inverse_depth: (height, width), finite.

    Returns:
        Same shape, float32, 0..255; zeros when all values are equal.
    """
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    if high <= low:
        return np.zeros_like(inverse_depth, dtype=np.float32)
    scaled = (inverse_depth.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.clip(scaled, 0, 255).astype(np.float32)


def resize_map(values: DepthMap, size: tuple[int, int]) -> DepthMap:
    """Resize a float map bilinearly, pixel centres aligned as images are resized.

    Args:
        values: (height, width) float32.
        size: (height, width) wanted.
    """
    if values.shape == size:
        return values
    resized = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(values))[None, None],
        size=size,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    result: DepthMap = resized[0, 0].numpy()
    return result
