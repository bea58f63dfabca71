"""Objects of photos laid over other photos: crops whose masks are known, made of what is at hand.

Wherever the teacher's mask of an object is wrong, the mask of its pasted copy is right: it is what
was pasted. So composites teach how masks follow edges between real things, and what hides what.

Shape legend: N crops, M composites, S crop side, G = S / 2 mask side.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from segtrain.labeller.crop_batches import KnownCrops
from segtrain.labeller.crop_network import BOX_HINT, MASK_STRIDE

_LEAST_AREA = 0.04  # share of a crop that a pasted object must cover
_LEAST_LEFT = 0.35  # share of an object that must still be seen behind a pasted one


def paste_objects(
    rgb_N3SS: torch.Tensor, masks_NGG: torch.Tensor, num: int, generator: torch.Generator
) -> KnownCrops:
    """Lay the surest objects of a batch over its other crops.

    In half of the composites the pasted object is asked for, in the others the one behind it.

    Args:
        rgb_N3SS: crops, 0 outside the photo.
        masks_NGG: probabilities of their objects, 0 outside the boxes.
        num: M.
        generator: of the CPU.

    Returns:
        M crops with the box around what is to be found as hint.
    """
    total, size, device = len(rgb_N3SS), rgb_N3SS.shape[-1], rgb_N3SS.device
    solid_NGG = (masks_NGG > 0.5).float()
    area_N = solid_NGG.mean((1, 2))
    sureness_N = (masks_NGG * solid_NGG).sum((1, 2)) / solid_NGG.sum((1, 2)).clamp(min=1)
    sureness_N = sureness_N * (area_N > _LEAST_AREA)
    surest = sureness_N.topk(max(total // 2, 1)).indices
    front_M = surest[torch.randint(len(surest), (num,), generator=generator).to(device)]
    step_M = torch.randint(1, max(total, 2), (num,), generator=generator).to(device)
    back_M = (front_M + step_M) % total
    is_behind_M = (torch.rand(num, generator=generator) < 0.5).to(device)

    theta_M23 = _draw_moves(num, generator).to(device)
    near, far = theta_M23[:, 0], theta_M23[:, 1]
    grid = F.affine_grid(
        torch.where(is_behind_M[:, None, None], far, near),
        [num, 1, size, size],
        align_corners=False,
    )
    alpha_N1SS = F.interpolate(
        solid_NGG[:, None], size=(size, size), mode="bilinear", align_corners=False
    )
    layers = torch.cat((rgb_N3SS, alpha_N1SS), 1)[front_M]
    layers = F.grid_sample(layers, grid, mode="bilinear", align_corners=False)
    alpha = layers[:, 3:4]
    rgb = rgb_N3SS[back_M] * (1 - alpha) + layers[:, :3] * alpha
    front = F.avg_pool2d(alpha, MASK_STRIDE)[:, 0]
    left = solid_NGG[back_M] * (1 - front)
    is_usable_M = (left.mean((1, 2)) > _LEAST_LEFT * area_N[back_M]) & (
        area_N[back_M] > _LEAST_AREA
    )
    target = torch.where((is_behind_M & is_usable_M)[:, None, None], left, front)
    hints = torch.zeros(num, 2, size, size, device=device)
    box = (
        _fill_between(target.amax(2) > 0.5)[:, :, None]
        * _fill_between(target.amax(1) > 0.5)[:, None]
    )
    hints[:, BOX_HINT] = F.interpolate(box[:, None], size=(size, size))[:, 0] * 2 - 1
    return KnownCrops(rgb, hints, target)


def _draw_moves(num: int, generator: torch.Generator) -> torch.Tensor:
    """(M, 2, 2, 3) affine maps: about where it was, and smaller and to a side."""

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(num, generator=generator)

    moves = torch.zeros(num, 2, 2, 3)
    angle = draw(0, 6.2832)
    for k, (zoom, distance) in enumerate(
        ((draw(0.75, 1.15), draw(0, 0.25)), (draw(0.4, 0.9), draw(0.4, 1.0)))
    ):
        mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
        x, y = distance * angle.cos(), distance * angle.sin()
        moves[:, k, 0, 0], moves[:, k, 1, 1] = mirror / zoom, 1 / zoom
        moves[:, k, 0, 2], moves[:, k, 1, 2] = -x * mirror / zoom, -y / zoom
    return moves


def _fill_between(touched_MG: torch.Tensor) -> torch.Tensor:
    """1 from the first touched cell to the last."""
    touched = touched_MG.float()
    return touched.cummax(1).values * touched.flip(1).cummax(1).values.flip(1)
