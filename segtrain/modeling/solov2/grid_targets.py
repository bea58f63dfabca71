"""Which cells of which grid are to predict which object.

Shape legend: G objects, S cells along a side of a grid, N cells of a batch over all grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segtrain.mask_grid.validity import MASK_STRIDE


@dataclass(frozen=True, kw_only=True)
class GridTargets:
    """Cells in the order of grids, images, rows and columns."""

    labels: torch.Tensor  # (N,) class of each cell, K = background
    positives: torch.Tensor  # (P,) cells that predict an object
    box_indices: torch.Tensor  # (P,) which, into the boxes of the batch
    image_indices: torch.Tensor  # (P,) in which image


def mass_centres(masks_GHW: torch.Tensor, boxes_G4: torch.Tensor) -> torch.Tensor:
    """Centres of mass of masks, (G, 2) x, y in pixels; the box's centre where a mask is empty.

    Args:
        masks_GHW: bool on the mask grid.
        boxes_G4: x1, y1, x2, y2 in pixels.
    """
    across, down = masks_GHW.sum(1).float(), masks_GHW.sum(2).float()  # (G, W), (G, H)
    area_G = down.sum(1)
    middle = MASK_STRIDE // 2
    xs = torch.arange(across.shape[1], device=across.device) * MASK_STRIDE + middle
    ys = torch.arange(down.shape[1], device=down.device) * MASK_STRIDE + middle
    centres = torch.stack(((across * xs).sum(1), (down * ys).sum(1)), 1)
    centres = centres / area_G.clamp(min=1)[:, None]
    return torch.where(area_G[:, None] > 0, centres, (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2)


def assign_cells(
    boxes: Sequence[torch.Tensor],
    classes: Sequence[torch.Tensor],
    centres: Sequence[torch.Tensor],
    *,
    num_classes: int,
    padded_size: tuple[int, int],
    grid_numbers: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    centre_share: float,
) -> GridTargets:
    """Assign objects to cells of one or two grids.

    An object of √(width · height) within a grid's range belongs to that grid; positive are the
    cells that its centre region touches: `centre_share` of the box's sides around the mask's centre
    of mass. Of several objects the smallest box takes a cell. Source: SOLO, arXiv 1912.04488.

    Args:
        boxes: (g, 4) x1, y1, x2, y2 in pixels, of each image.
        classes: (g,) of each image.
        centres: (g, 2) x, y in pixels, of each image.
        num_classes: K.
        padded_size: height and width of the padded batch, over which the grids lie.
        grid_numbers: S of each grid.
        scale_ranges: least and largest scale in pixels of each grid, both inclusive.
        centre_share: ε.
    """
    height, width = padded_size
    device = boxes[0].device
    labels, owners = [], []
    for cells, (low, high) in zip(grid_numbers, scale_ranges, strict=True):
        scale = torch.tensor((cells / width, cells / height), device=device)
        rank = torch.arange(cells, device=device)
        first_box = 0
        for own_boxes, own_classes, own_centres in zip(boxes, classes, centres, strict=True):
            sides = (own_boxes[:, 2:] - own_boxes[:, :2]).clamp(min=0)
            area_g = sides.prod(1)
            half = sides * (centre_share / 2)
            start = ((own_centres - half) * scale).floor()
            stop = torch.maximum(((own_centres + half) * scale).ceil(), start + 1)
            touched = (rank >= start[..., None]) & (rank < stop[..., None])  # (g, 2, S)
            of_scale = (area_g.sqrt() >= low) & (area_g.sqrt() <= high)
            inside = touched[:, 1, :, None] & touched[:, 0, None, :] & of_scale[:, None, None]
            label = torch.full((cells, cells), num_classes, device=device)
            owner = torch.full((cells, cells), -1, device=device)
            if len(own_boxes):
                contest = torch.where(inside, area_g[:, None, None], torch.inf)
                least, smallest = contest.min(0)
                is_taken = torch.isfinite(least)
                label = torch.where(is_taken, own_classes[smallest], label)
                owner = torch.where(is_taken, smallest + first_box, owner)
            labels.append(label.flatten())
            owners.append(owner.flatten())
            first_box += len(own_boxes)
    all_owners = torch.cat(owners)
    positives = torch.nonzero(all_owners >= 0)[:, 0]
    box_indices = all_owners[positives]
    counts = torch.tensor([len(own) for own in boxes], device=device)
    images = torch.arange(len(boxes), device=device).repeat_interleave(counts)
    return GridTargets(
        labels=torch.cat(labels),
        positives=positives,
        box_indices=box_indices,
        image_indices=images[box_indices],
    )
