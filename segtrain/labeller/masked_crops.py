"""Crops of objects whose masks are known: of a set of salient objects, or approved by a reviewer.

They are learned beside the boxes: known masks say what an outline is, boxes say what is asked for.
Source: BoxCaseg, arXiv 2104.01526, which trains on boxes and salient objects jointly.

Shape legend: N crops, S crop side, G = S / 2 mask side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from segtrain.errors import DatasetError
from segtrain.labeller.crop_batches import KnownCrops, change_light, cut_photo
from segtrain.labeller.crop_network import BOX_HINT, MASK_STRIDE, NetworkDescription
from segtrain.labeller.object_crops import (
    box_coverage,
    boxes_in_crops,
    crop_windows,
    cut_crops,
    draw_margins,
)
from segtrain.labeller.settings import LabellerSettings


@dataclass(frozen=True, kw_only=True)
class MaskedObject:
    """An object with its mask; pixels are read when they are needed.

    Attributes:
        name: for messages.
        load_image: gives (H, W, 3) uint8 RGB, upright.
        load_mask: gives (H, W), not 0 where the object is.
    """

    name: str
    load_image: Callable[[], npt.NDArray[np.uint8]]
    load_mask: Callable[[], npt.NDArray[np.generic]]


class MaskedCrops:
    """Draws the crops of an iteration; seed and iteration say everything about them.

    Args:
        objects: at least one.
        settings: margins, sizes, `salient_share`, seed.
        description: of the network that will see the crops.
        num: crops of an iteration; None for `salient_share` of a batch, at least one.

    Raises:
        DatasetError: no object; when drawn, one without a mask or with one of another size.
    """

    def __init__(
        self,
        objects: Sequence[MaskedObject],
        settings: LabellerSettings,
        description: NetworkDescription,
        num: int | None = None,
    ) -> None:
        if not objects:
            raise DatasetError("there is no object with a mask to learn from")
        self.objects, self.settings, self.description = objects, settings, description
        share = round(settings.salient_share * settings.batch_size)
        self.num = max(share, 1) if num is None else num

    def __call__(self, iteration: int) -> KnownCrops:
        """Crops of this iteration: every object once per epoch, each epoch in its own order."""
        settings = self.settings
        rng = np.random.default_rng((settings.seed, iteration, 2))
        crops = []
        for position in range(iteration * self.num, (iteration + 1) * self.num):
            epoch, place = divmod(position, len(self.objects))
            order = np.random.default_rng((settings.seed, epoch, 3)).permutation(len(self.objects))
            crops.append(self._cut(self.objects[int(order[place])], rng))
        rgb, valid, hints, target = (torch.cat(parts) for parts in zip(*crops, strict=True))
        return KnownCrops(change_light(rgb, valid, settings, rng), hints, target)

    def _cut(
        self, found: MaskedObject, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels (1, 3, S, S), inside (1, 1, S, S), hints (1, 2, S, S) and target (1, G, G)."""
        settings, size = self.settings, self.settings.crop_size
        image_rgb = found.load_image()
        mask = torch.from_numpy(np.asarray(found.load_mask()) != 0)
        if mask.shape != image_rgb.shape[:2] or not mask.any():
            raise DatasetError(
                f"the mask of {found.name} has {int(mask.sum())} pixels in {tuple(mask.shape)}, "
                f"its image is {image_rgb.shape[:2]}; correct it, or take it out"
            )
        rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
        box_14 = torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))[None].float()
        margins_14 = draw_margins(rng, 1, settings.margin_low, settings.margin_high)
        window_14 = crop_windows(box_14, torch.from_numpy(margins_14))
        layers = cut_photo(image_rgb, None, window_14, size, self.description)
        alpha = cut_crops(mask[None].float(), window_14, size)
        hints = torch.zeros(1, 2, size, size)
        if rng.uniform() < settings.box_hint_share:
            inner_14 = boxes_in_crops(box_14, window_14, size)
            hints[:, BOX_HINT] = box_coverage(inner_14, size, size) * 2 - 1
        parts = (layers[:, :3], layers[:, 4:], hints, F.avg_pool2d(alpha, MASK_STRIDE)[:, 0])
        if rng.uniform() < 0.5:
            parts = (parts[0].flip(3), parts[1].flip(3), parts[2].flip(3), parts[3].flip(2))
        return parts
