"""Crops of objects whose masks somebody looked at and left: they teach beside the boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from segtrain.data.segmentations import decode_segmentation
from segtrain.errors import DatasetError
from segtrain.labeller.crop_batches import BoxedPhoto, KnownCrops, cut_photo
from segtrain.labeller.crop_network import BOX_HINT, MASK_STRIDE, NetworkDescription
from segtrain.labeller.object_crops import (
    box_coverage,
    boxes_in_crops,
    clip_boxes,
    crop_windows,
    draw_margins,
)
from segtrain.labeller.settings import LabellerSettings


class ApprovedCrops:
    """Draws crops with their masks; iteration and seed say everything about a draw.

    Args:
        photos: with the boxes of approved masks only.
        masks: their segmentations, in the order of the boxes.
        settings: margins, crop size, seed.
        description: of the network that learns.
        num: crops per draw.

    Raises:
        DatasetError: no mask at all.
    """

    def __init__(
        self,
        photos: Sequence[BoxedPhoto],
        masks: Sequence[Sequence[Mapping[str, Any]]],
        settings: LabellerSettings,
        description: NetworkDescription,
        num: int,
    ) -> None:
        self.photos, self.masks = photos, masks
        self.settings, self.description, self.num = settings, description, num
        self.index = [(p, b) for p, photo in enumerate(photos) for b in range(len(photo.boxes))]
        if not self.index:
            raise DatasetError("no mask is left that could teach: all are to be drawn anew")

    def __call__(self, iteration: int) -> KnownCrops:
        """The crops of an iteration."""
        rng = np.random.default_rng((self.settings.seed, iteration, 2))
        chosen = rng.integers(len(self.index), size=self.num)
        places = [self.index[k] for k in chosen]
        crops = [self._cut(photo, box, rng) for photo, box in places]
        return KnownCrops(*(torch.cat(parts) for parts in zip(*crops, strict=True)))

    def _cut(self, photo: int, box: int, rng: np.random.Generator) -> KnownCrops:
        settings, size = self.settings, self.settings.crop_size
        image_rgb = self.photos[photo].load_image()
        height, width = image_rgb.shape[:2]
        mask = decode_segmentation(self.masks[photo][box], height, width).astype(np.float32)
        box_14 = clip_boxes(
            torch.from_numpy(self.photos[photo].boxes[box : box + 1]), height, width
        )
        margins_14 = draw_margins(rng, 1, settings.margin_low, settings.margin_high)
        window_14 = crop_windows(box_14, torch.from_numpy(margins_14))
        crop = cut_photo(image_rgb, mask, window_14, size, self.description)
        hints = torch.zeros(1, 2, size, size)
        inner_14 = boxes_in_crops(box_14, window_14, size)
        hints[:, BOX_HINT] = box_coverage(inner_14, size, size) * 2 - 1
        rgb, target = crop[:, :3], F.avg_pool2d(crop[:, 3:4], MASK_STRIDE)[:, 0]
        if rng.uniform() < 0.5:
            rgb, hints, target = rgb.flip(3), hints.flip(3), target.flip(2)
        return KnownCrops(rgb, hints, target)
