"""Composites: what is asked for is where the target says, and is hinted at by its box."""

from __future__ import annotations

import torch

from segtrain.labeller.crop_network import BOX_HINT
from segtrain.labeller.pasted_objects import paste_objects

SIZE, GRID = 64, 32


def draw_crops(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain grounds 0.1, 0.2, … with a square of −0.1, −0.2, …; its mask."""
    levels = 0.1 * (1 + torch.arange(num))[:, None, None, None]
    rgb = levels.expand(num, 3, SIZE, SIZE).clone()
    rgb[:, :, 16:48, 16:48] *= -1
    masks = torch.zeros(num, GRID, GRID)
    masks[:, 8:24, 8:24] = 0.95
    return rgb, masks


def test_the_target_covers_one_object_and_nothing_else() -> None:
    rgb, masks = draw_crops(6)
    crops = paste_objects(rgb, masks, 40, torch.Generator().manual_seed(0))
    assert crops.rgb.shape == (40, 3, SIZE, SIZE)
    levels = set()
    for picture, target in zip(crops.rgb[:, 0, ::2, ::2], crops.target, strict=True):
        inside = picture[target > 0.99]
        assert len(inside) > 20
        assert (inside < 0).all()
        assert float(inside.max() - inside.min()) < 0.05  # levels are 0.1 apart
        levels.add(round(float(inside.mean()), 1))
    assert len(levels) >= 3


def test_half_of_the_targets_are_hidden_in_part() -> None:
    rgb, masks = draw_crops(6)
    crops = paste_objects(rgb, masks, 200, torch.Generator().manual_seed(1))
    is_behind = torch.tensor([bool(((t > 0) <= (masks[0] > 0.5)).all()) for t in crops.target])
    whole = torch.tensor([float((t > 0.5).sum()) > 0.99 * 16 * 16 for t in crops.target])
    assert 0.25 < float((is_behind & ~whole).float().mean()) < 0.75


def test_the_hint_is_the_box_around_the_target() -> None:
    rgb, masks = draw_crops(4)
    crops = paste_objects(rgb, masks, 30, torch.Generator().manual_seed(2))
    for hint, target in zip(crops.hints[:, BOX_HINT, ::2, ::2], crops.target, strict=True):
        rows, columns = (target > 0.5).any(1).nonzero(), (target > 0.5).any(0).nonzero()
        box = torch.full_like(hint, -1.0)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
        assert torch.equal(hint, box)


def test_unsure_and_tiny_objects_are_not_pasted() -> None:
    rgb, masks = draw_crops(4)
    masks[1:] = 0
    masks[1, 10, 10] = 1.0
    masks[2, 8:24, 8:24] = 0.45
    crops = paste_objects(rgb, masks, 50, torch.Generator().manual_seed(3))
    sure = crops.target.flatten(1).sum(1) > 20
    pictures = crops.rgb[sure, 0, ::2, ::2]
    inside = [p[t > 0.99].mean() for p, t in zip(pictures, crops.target[sure], strict=True)]
    assert torch.allclose(torch.stack(inside), torch.tensor(-0.1), atol=1e-3)
