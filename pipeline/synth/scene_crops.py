"""Crops of generated scenes to learn masks from: processes draw, the device that learns cuts.

Drawing is slow and cutting is fast, so every scene is cut many times: drawers write chunks of
scenes as files (`scene_chunks`), and a `ScenePool` reads them onto the device while it learns.

Shape legend: P scenes, N crops, s crop side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from segtrain.labeller.crop_batches import KnownCrops, scale_depth
from segtrain.labeller.crop_network import BOX_HINT, DEPTH_HINT, MASK_STRIDE, NetworkDescription
from segtrain.labeller.object_crops import box_coverage, boxes_in_crops, crop_windows


class ScenePool:
    """Scenes on a device; the oldest make room for new ones.

    Args:
        capacity: P, scenes that are kept; 0.4 MB each.
        device: where.
        description: of the network that learns.
        generator: of the device; decides which crops are cut.
    """

    def __init__(
        self,
        capacity: int,
        device: torch.device,
        description: NetworkDescription,
        generator: torch.Generator,
    ) -> None:
        self.capacity, self.device, self.generator = capacity, device, generator
        self.mean = torch.tensor(description.pixel_mean, device=device)[:, None, None]
        self.deviation = torch.tensor(description.pixel_deviation, device=device)[:, None, None]
        self.black = -self.mean / self.deviation
        self.white = (255 - self.mean) / self.deviation
        self.arrays: dict[str, torch.Tensor] = {}
        self.num_added = 0
        self._read: set[str] = set()

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    def read_folder(self, folder: Path, *, most_chunks: int = 4, delete: bool = False) -> int:
        """Take in chunks that were not read before; returns how many."""
        new = sorted(path for path in folder.glob("*.npz") if path.name not in self._read)
        for path in new[:most_chunks]:
            with np.load(path) as chunk:
                self.add(dict(chunk))
            self._read.add(path.name)
            if delete:
                path.unlink()
        return len(new[:most_chunks])

    def add(self, chunk: dict[str, npt.NDArray[Any]]) -> None:
        """Take in packed scenes."""
        num = len(chunk["counts"])
        if not self.arrays:
            self.arrays = {
                name: torch.zeros(
                    (self.capacity, *value.shape[1:]),
                    dtype=torch.from_numpy(value).dtype,
                    device=self.device,
                )
                for name, value in chunk.items()
            }
        slots = (torch.arange(num) + self.num_added) % self.capacity
        for name, value in chunk.items():
            self.arrays[name][slots.to(self.device)] = torch.from_numpy(value).to(self.device)
        self.num_added += num

    def draw(self, num: int, size: int) -> KnownCrops:
        """Crops of random objects, seen with random margins, light and hints."""
        device, arrays = self.device, self.arrays
        scene_N = self._integers(num, len(self))
        count_N = arrays["counts"][scene_N]
        object_N = (self._uniform(num) * count_N).long().minimum(count_N - 1)
        boxes_N4 = arrays["boxes"][scene_N, object_N]
        jitter_N4 = 0.015 * self._normal(num, 4) * (self._uniform(num, 1) < 0.5)
        sides_N4 = (boxes_N4[:, 2:] - boxes_N4[:, :2]).repeat(1, 2)
        boxes_N4 = boxes_N4 + jitter_N4 * sides_N4  # boxes of people are not exact
        windows_N4 = crop_windows(boxes_N4, 0.05 + 0.5 * self._uniform(num, 4))
        owner_N = arrays["owners"][scene_N, object_N]
        images = arrays["images"][scene_N].permute(0, 3, 1, 2).float()
        layers = torch.cat(
            (
                (images - self.mean) / self.deviation,
                arrays["depths"][scene_N].float()[:, None],
                torch.ones_like(images[:, :1]),
                (arrays["maps"][scene_N] == owner_N[:, None, None])[:, None].float(),
            ),
            1,
        )
        rois = torch.cat((torch.arange(num, device=device)[:, None], windows_N4), 1)
        crops = roi_align(layers, rois, size, 1.0, -1, aligned=True)
        flip_N = self._uniform(num) < 0.5
        inner_N4 = boxes_in_crops(boxes_N4, windows_N4, size)
        box_hint = box_coverage(inner_N4, size, size) * 2 - 1
        depth_hint = scale_depth(crops[:, 3:4], crops[:, 4:5])[:, 0]
        hints = torch.zeros(num, 2, size, size, device=device)
        hints[:, BOX_HINT] = box_hint * (self._uniform(num, 1, 1) < 0.7)
        hints[:, DEPTH_HINT] = depth_hint * (self._uniform(num, 1, 1) < 0.5)
        rgb = self._relight(self._coarsen(crops[:, :3])) * crops[:, 4:5]
        target = F.avg_pool2d(crops[:, 5:6], MASK_STRIDE)[:, 0]
        flip = flip_N[:, None, None, None]
        return KnownCrops(
            torch.where(flip, rgb.flip(3), rgb),
            torch.where(flip, hints.flip(3), hints),
            torch.where(flip[:, 0], target.flip(2), target),
        )

    def _relight(self, rgb_N3ss: torch.Tensor) -> torch.Tensor:
        num = len(rgb_N3ss)
        gain = (0.15 * self._normal(num, 1, 1, 1) + 0.06 * self._normal(num, 3, 1, 1)).exp()
        lit = rgb_N3ss * gain + 0.1 * self._normal(num, 1, 1, 1)
        return lit.maximum(self.black).minimum(self.white)

    def _coarsen(self, rgb_N3ss: torch.Tensor) -> torch.Tensor:
        """Show an eighth of the crops as a small object would be: few pixels, enlarged."""
        size, num = rgb_N3ss.shape[-1], len(rgb_N3ss) // 8
        if not num:
            return rgb_N3ss
        least = int(18 + 46 * float(torch.rand(())))
        small = F.interpolate(rgb_N3ss[:num], size=(least, least), mode="area")
        enlarged = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
        return torch.cat((enlarged, rgb_N3ss[num:]))

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=self.device, generator=self.generator)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, generator=self.generator)

    def _integers(self, num: int, below: int) -> torch.Tensor:
        return torch.randint(below, (num,), device=self.device, generator=self.generator)
