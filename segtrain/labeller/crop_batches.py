"""Batches of crops for the adaptation: which boxes, with which margins, seen how.

Iteration and seed say everything about a batch, so a resumed run draws the same ones, and so do
several processes that draw a part each.

Shape legend: N crops, S crop side, G = S / 2 mask side.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from depthcache import DepthCacheError
from segtrain.errors import DatasetError, SegtrainError
from segtrain.labeller.crop_network import BOX_HINT, DEPTH_HINT, MASK_STRIDE, NetworkDescription
from segtrain.labeller.object_crops import (
    box_coverage,
    boxes_in_crops,
    cell_extents,
    clip_boxes,
    crop_windows,
    cut_crops,
    draw_margins,
)
from segtrain.labeller.settings import LabellerSettings

logger = logging.getLogger(__name__)

# Pixels and inverse depth of a photo.
_Decoded = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]


@dataclass(frozen=True, kw_only=True)
class BoxedPhoto:
    """A photo with boxes; pixels and depth are read when they are needed.

    Attributes:
        name: for messages.
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        load_image: gives (H, W, 3) uint8 RGB, upright.
        load_inverse_depth: gives (H, W) float32, larger = nearer, or None where it is missing.
    """

    name: str
    boxes: npt.NDArray[np.float32]
    load_image: Callable[[], npt.NDArray[np.uint8]]
    load_inverse_depth: Callable[[], npt.NDArray[np.float32] | None] | None = None


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """Crops and what supervises them.

    Attributes:
        rgb: (N, 3, S, S) normalised pixels with changed brightness, 0 outside the photo.
        plain_rgb: (N, 3, S, S) the same without the change, for the teacher.
        hints: (N, 2, S, S) box and depth, where they are known.
        colour: (N, 3, G, G) RGB in 0..255 on the mask grid.
        depth_255: (N, 1, G, G) inverse depth in 0..255 on the mask grid, scaled per crop.
        valid: (N, G, G) 1 inside the photo.
        has_depth: (N,) bool, which crops have depth.
        extents: (N, 4) cells of the box on the mask grid.
    """

    rgb: torch.Tensor
    plain_rgb: torch.Tensor
    hints: torch.Tensor
    colour: torch.Tensor
    depth_255: torch.Tensor
    valid: torch.Tensor
    has_depth: torch.Tensor
    extents: torch.Tensor

    def to(self, device: torch.device) -> CropBatch:
        """The same on another device."""
        return CropBatch(**{name: value.to(device) for name, value in vars(self).items()})


class KnownCrops(NamedTuple):
    """Crops whose masks are known.

    Attributes:
        rgb: (N, 3, S, S) normalised pixels.
        hints: (N, 2, S, S) box and depth, where they are shown.
        target: (N, G, G) share of every mask cell that is object.
    """

    rgb: torch.Tensor
    hints: torch.Tensor
    target: torch.Tensor


def normalise_pixels(
    image_rgb: npt.NDArray[np.uint8], description: NetworkDescription
) -> torch.Tensor:
    """(H, W, 3) uint8 → (3, H, W) float as the encoder was trained."""
    mean = torch.tensor(description.pixel_mean)[:, None, None]
    deviation = torch.tensor(description.pixel_deviation)[:, None, None]
    pixels = torch.from_numpy(np.ascontiguousarray(image_rgb)).permute(2, 0, 1).float()
    return (pixels - mean) / deviation


def scale_depth(depth_N1SS: torch.Tensor, valid_N1SS: torch.Tensor) -> torch.Tensor:
    """Inverse depth of every crop brought to −1..1; 0 outside the photo and where it is flat."""
    inside = valid_N1SS > 0.5
    flat = depth_N1SS.flatten(1)
    low = flat.masked_fill(~inside.flatten(1), torch.inf).amin(1)
    high = flat.masked_fill(~inside.flatten(1), -torch.inf).amax(1)
    span = high - low
    usable = torch.isfinite(span) & (span > 1e-6)
    low, span = torch.where(usable, low, 0.0), torch.where(usable, span, 1.0)
    scaled = (depth_N1SS - low[:, None, None, None]) / span[:, None, None, None] * 2 - 1
    return torch.where(inside & usable[:, None, None, None], scaled, 0.0)


class CropSource:
    """Draws batches out of photos; keeps decoded photos up to a number of bytes.

    Every crop has random numbers of its own, so that threads may draw several batches at once and
    processes parts of one. Decoded photos are shared by threads.

    Args:
        photos: at least one box among them.
        settings: margins, sizes, seed.
        description: of the network that will see the crops.
        rank: which part of every batch to draw.
        num_parts: parts of a batch.

    Raises:
        DatasetError: no box at all.
    """

    def __init__(
        self,
        photos: Sequence[BoxedPhoto],
        settings: LabellerSettings,
        description: NetworkDescription,
        *,
        rank: int = 0,
        num_parts: int = 1,
    ) -> None:
        self.photos, self.settings, self.description = photos, settings, description
        self.index = [(p, b) for p, photo in enumerate(photos) for b in range(len(photo.boxes))]
        if not self.index:
            raise DatasetError(
                f"{len(photos)} photos hold no box: the labeller needs boxes to adapt to"
            )
        share = settings.batch_size // num_parts
        self._own = range(rank * share, (rank + 1) * share)
        self.unreadable: dict[str, str] = {}
        self._decoded: OrderedDict[int, _Decoded] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def draw(self, iteration: int) -> CropBatch:
        """The batch of an iteration, or this process's part of it.

        Raises:
            DatasetError: no photo can be read.
        """
        settings = self.settings
        crops, lights = [], []
        for place in self._own:
            rng = np.random.default_rng((settings.seed, iteration, place))
            chosen = self._at(iteration * settings.batch_size + place)
            crop = self._cut(chosen, rng)
            while crop is None:
                if len(self.unreadable) == len({self.photos[p].name for p, _ in self.index}):
                    raise DatasetError(
                        f"none of {len(self.photos)} photos can be used, the first because of: "
                        f"{next(iter(self.unreadable.values()))}"
                    )
                crop = self._cut(int(rng.integers(len(self.index))), rng)
            crops.append(crop)
            lights.append(change_light(crop[0][:, :3], crop[0][:, 4:], settings, rng))
        stack_N5SS = torch.cat([crop for crop, _, _ in crops])
        boxes_N4 = torch.cat([box for _, box, _ in crops])
        has_depth_N = torch.tensor([has_depth for _, _, has_depth in crops])
        return self._finish(stack_N5SS, boxes_N4, has_depth_N, torch.cat(lights))

    def _at(self, position: int) -> int:
        """Every box once per epoch, each epoch in its own order."""
        epoch, place = divmod(position, len(self.index))
        return int(_shuffle(len(self.index), self.settings.seed, epoch)[place])

    def _cut(
        self, place: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
        settings = self.settings
        photo, box = self.index[place]
        margins_14 = torch.from_numpy(
            draw_margins(rng, 1, settings.margin_low, settings.margin_high)
        )
        is_flipped = rng.uniform() < 0.5
        decoded = self._read(photo)
        if decoded is None:
            return None
        image_rgb, inverse_depth = decoded
        height, width = image_rgb.shape[:2]
        box_14 = clip_boxes(
            torch.from_numpy(self.photos[photo].boxes[box : box + 1]), height, width
        )
        window_14 = crop_windows(box_14, margins_14)
        crop = cut_photo(image_rgb, inverse_depth, window_14, settings.crop_size, self.description)
        inner_14 = boxes_in_crops(box_14, window_14, settings.crop_size)
        if is_flipped:
            crop = crop.flip(3)
            inner_14 = torch.stack(
                (
                    settings.crop_size - inner_14[:, 2],
                    inner_14[:, 1],
                    settings.crop_size - inner_14[:, 0],
                    inner_14[:, 3],
                ),
                1,
            )
        return crop, inner_14, inverse_depth is not None

    def _finish(
        self,
        stack_N5SS: torch.Tensor,
        boxes_N4: torch.Tensor,
        has_depth_N: torch.Tensor,
        rgb_N3SS: torch.Tensor,
    ) -> CropBatch:
        settings = self.settings
        size, grid = settings.crop_size, settings.crop_size // MASK_STRIDE
        plain, depth, valid = stack_N5SS[:, :3], stack_N5SS[:, 3:4], stack_N5SS[:, 4:5]
        num = len(plain)
        depth = scale_depth(depth, valid) * has_depth_N[:, None, None, None]
        hints_N2SS = torch.zeros(num, 2, size, size)
        hints_N2SS[:, BOX_HINT] = box_coverage(boxes_N4, size, size) * 2 - 1
        if settings.has_depth_hint:
            hints_N2SS[:, DEPTH_HINT] = depth[:, 0]
        mean = torch.tensor(self.description.pixel_mean)[:, None, None]
        deviation = torch.tensor(self.description.pixel_deviation)[:, None, None]
        coarse = F.avg_pool2d(torch.cat((plain, depth, valid), 1), MASK_STRIDE)
        return CropBatch(
            rgb=rgb_N3SS,
            plain_rgb=plain,
            hints=hints_N2SS,
            colour=(coarse[:, :3] * deviation + mean).clamp(0, 255),
            depth_255=(coarse[:, 3:4] + 1) * 127.5,
            valid=(coarse[:, 4] > 0.5).float(),
            has_depth=has_depth_N,
            extents=cell_extents(boxes_N4 / MASK_STRIDE, grid),
        )

    def _read(self, index: int) -> _Decoded | None:
        photo = self.photos[index]
        with self._lock:
            if index in self._decoded:
                self._decoded.move_to_end(index)
                return self._decoded[index]
            if photo.name in self.unreadable:
                return None
        try:
            image_rgb = photo.load_image()
            inverse_depth = None
            if self.settings.depth != "off" and photo.load_inverse_depth is not None:
                inverse_depth = photo.load_inverse_depth()
        except (OSError, ValueError, DepthCacheError, SegtrainError) as error:
            with self._lock:
                if photo.name not in self.unreadable:
                    self.unreadable[photo.name] = str(error)
                    logger.warning("%s is left out of the adaptation: %s", photo.name, error)
            return None
        decoded = image_rgb, inverse_depth
        with self._lock:
            if index not in self._decoded:
                self._decoded[index] = decoded
                self._bytes += _size_of(decoded)
            while self._bytes > self.settings.photo_cache_bytes and len(self._decoded) > 1:
                self._bytes -= _size_of(self._decoded.popitem(last=False)[1])
        return decoded


@functools.lru_cache(maxsize=2)
def _shuffle(num: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch, 1)).permutation(num)


def change_light(
    rgb_N3SS: torch.Tensor,
    valid_N1SS: torch.Tensor,
    settings: LabellerSettings,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Crops in another brightness and tint each; 0 outside the photo."""
    num, strength = len(rgb_N3SS), settings.light_strength
    gain = torch.from_numpy(
        np.exp(
            strength * (rng.normal(0, 0.12, (num, 1, 1, 1)) + rng.normal(0, 0.05, (num, 3, 1, 1)))
        )
    )
    shift = torch.from_numpy(strength * rng.normal(0, 0.09, (num, 1, 1, 1)))
    return ((rgb_N3SS * gain + shift) * valid_N1SS).float()


def cut_photo(
    image_rgb: npt.NDArray[np.uint8],
    inverse_depth: npt.NDArray[np.float32] | None,
    windows_N4: torch.Tensor,
    size: int,
    description: NetworkDescription,
) -> torch.Tensor:
    """Crops of a photo: normalised RGB, inverse depth as it is (0 without), 1 inside the photo.

    Only the part of the photo that the windows touch is converted.

    Returns:
        (N, 5, S, S).
    """
    height, width = image_rgb.shape[:2]
    low = windows_N4[:, :2].amin(0).floor().long() - 1
    high = windows_N4[:, 2:].amax(0).ceil().long() + 1
    c0, r0 = int(low[0].clamp(0, width - 1)), int(low[1].clamp(0, height - 1))
    c1, r1 = int(high[0].clamp(c0 + 1, width)), int(high[1].clamp(r0 + 1, height))
    pixels = normalise_pixels(image_rgb[r0:r1, c0:c1], description)
    layers = torch.zeros(5, r1 - r0, c1 - c0)
    layers[:3] = pixels
    if inverse_depth is not None:
        layers[3] = torch.from_numpy(np.ascontiguousarray(inverse_depth[r0:r1, c0:c1]))
    layers[4] = 1.0
    moved = windows_N4 - torch.tensor([c0, r0, c0, r0])
    return cut_crops(layers, moved, size)


def _size_of(decoded: _Decoded) -> int:
    return decoded[0].nbytes + (0 if decoded[1] is None else decoded[1].nbytes)
