"""Crops around boxes: where they lie, and what is in them.

Shape legend: I crops, S their side in pixels, H×W the mask grid at stride 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.mask_lab.scenes import Scenes

CROP_SIZE = 96
STRIDE = 2
"""Pixels of a crop per cell of the mask grid: a neighbour step is 4 pixels, 1/15 of a usual box."""
GRID = CROP_SIZE // STRIDE
MARGINS = (0.05, 0.55)


@dataclasses.dataclass(kw_only=True, frozen=True)
class Views:
    """Where crops lie.

    Attributes:
        objects_I7: rows of `Scenes.objects`.
        windows_I4: x1, y1, x2, y2 in pixels of the scene (ends exclusive); resized to a square
            whatever their aspect.
        flips_I: mirrored or not.
        gains_I: contrast.
        offsets_I: brightness, in levels.
    """

    objects_I7: npt.NDArray[np.int64]
    windows_I4: npt.NDArray[np.int64]
    flips_I: npt.NDArray[np.bool_]
    gains_I: npt.NDArray[np.float32]
    offsets_I: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.objects_I7)

    def __getitem__(self, chosen: slice) -> Views:
        fields = dataclasses.fields(self)
        return Views(**{field.name: getattr(self, field.name)[chosen] for field in fields})


def draw_views(rng: np.random.Generator, scenes: Scenes, num_per_object: int) -> Views:
    """Random margins on every side, mirroring, brightness and contrast."""
    objects = np.repeat(scenes.objects, num_per_object, axis=0)
    count = len(objects)
    return Views(
        objects_I7=objects,
        windows_I4=_windows(scenes, objects, rng.uniform(*MARGINS, (count, 4))),
        flips_I=rng.uniform(size=count) < 0.5,
        gains_I=rng.uniform(0.8, 1.25, count).astype(np.float32),
        offsets_I=rng.normal(0, 12, count).astype(np.float32),
    )


def centred_views(scenes: Scenes, margin: float) -> Views:
    """One crop of every object, with the same margin on all sides."""
    count = len(scenes.objects)
    return Views(
        objects_I7=scenes.objects,
        windows_I4=_windows(scenes, scenes.objects, np.full((count, 4), margin)),
        flips_I=np.zeros(count, bool),
        gains_I=np.ones(count, np.float32),
        offsets_I=np.zeros(count, np.float32),
    )


def cut_images(scenes: Scenes, views: Views) -> torch.Tensor:
    """(I, 3, S, S) float32 RGB, 0..255."""
    pixels = torch.from_numpy(
        _cut(_of_scenes(scenes.images_SHW3, views), views, CROP_SIZE)
    ).permute(0, 3, 1, 2)
    gains, offsets = (
        torch.from_numpy(part)[:, None, None, None] for part in (views.gains_I, views.offsets_I)
    )
    return ((pixels - 127) * gains + 127 + offsets).clamp_(0, 255)


def cut_inverse_depth(inverse_depth_255_SHW: npt.NDArray[np.float32], views: Views) -> torch.Tensor:
    """(I, S, S) float32, on the scale of the whole scene."""
    return torch.from_numpy(_cut(_of_scenes(inverse_depth_255_SHW, views), views, CROP_SIZE))


def cut_masks(scenes: Scenes, views: Views) -> torch.Tensor:
    """(I, H, W) bool: true masks, for ceilings and for counting."""
    owned = (
        (scenes.owners_SHW[scene] == number + 1).astype(np.float32)
        for scene, number in views.objects_I7[:, :2]
    )
    return torch.from_numpy(_cut(owned, views, GRID) > 0.5)


def box_extents(views: Views) -> torch.Tensor:
    """(I, 4) cells that each box fills: row start, row stop, column start, column stop."""
    x1, y1, x2, y2 = views.windows_I4.T
    bx1, by1, bx2, by2 = views.objects_I7[:, 2:6].T
    rows = np.stack((by1 - y1, by2 - y1)) * GRID / (y2 - y1)
    columns = np.stack((bx1 - x1, bx2 - x1)) * GRID / (x2 - x1)
    columns = np.where(views.flips_I, GRID - columns[::-1], columns)
    return torch.from_numpy(np.rint(np.concatenate((rows, columns)).T).astype(np.int64))


def _windows(
    scenes: Scenes, objects: npt.NDArray[np.int64], margins_I4: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Boxes with margins (left, top, right, bottom, in widths and heights), cut at the picture."""
    height, width = scenes.owners_SHW.shape[1:]
    x1, y1, x2, y2 = objects[:, 2:6].T
    left, top, right, bottom = margins_I4.T
    windows = (
        np.clip(x1 - left * (x2 - x1), 0, None),
        np.clip(y1 - top * (y2 - y1), 0, None),
        np.clip(x2 + right * (x2 - x1), None, width),
        np.clip(y2 + bottom * (y2 - y1), None, height),
    )
    return np.asarray(np.rint(np.stack(windows, axis=1)), np.int64)


def _cut(maps: Iterable[npt.NDArray[Any]], views: Views, size: int) -> npt.NDArray[np.float32]:
    """Each crop out of its own map (H, W) or (H, W, C), resized to a square."""
    cut = []
    for whole, (x1, y1, x2, y2), flip in zip(maps, views.windows_I4, views.flips_I, strict=True):
        part = whole[y1:y2, x1:x2]
        how = cv2.INTER_AREA if min(part.shape[:2]) > size else cv2.INTER_LINEAR
        part = cv2.resize(part, (size, size), interpolation=how)
        cut.append(part[:, ::-1] if flip else part)
    return np.stack(cut).astype(np.float32)


def _of_scenes(maps_SHW: npt.NDArray[Any], views: Views) -> Iterator[npt.NDArray[Any]]:
    return (maps_SHW[scene] for scene in views.objects_I7[:, 0])
