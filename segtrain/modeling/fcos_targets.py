"""Which location predicts which box.

Shape legend: L locations of all levels, B images, M boxes of an image. Flattened predictions are
ordered by level, then image, then row-major location.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segtrain.mask_grid.bitmasks import filled_centres, filled_pixels

STRIDES = (8, 16, 32, 64, 128)
SIZE_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
_FAR = 1e8


@dataclass(frozen=True, kw_only=True)
class FCOSTargets:
    """Targets of all locations in flattened order (level, image, location)."""

    labels: torch.Tensor  # (N,) int64, num_classes = background
    box_indices: torch.Tensor  # (N,) int64 into the batch's concatenated boxes, −1 = background
    positives: torch.Tensor  # (P,) int64 flattened indices
    offsets: torch.Tensor  # (P, 4) l, t, r, b in units of the level's stride
    centerness: torch.Tensor  # (P,) in [0, 1]
    image_indices: torch.Tensor  # (P,) int64
    levels: torch.Tensor  # (P,) int64
    locations: torch.Tensor  # (P, 2) x, y in pixels
    cells: torch.Tensor  # (P, 2) row, column on the level's map


def level_locations(
    height: int, width: int, stride: int, device: torch.device | None = None
) -> torch.Tensor:
    """Image positions of a level's cells, row-major.

    Returns:
        (height · width, 2) float x, y in pixels: cell · stride + stride // 2.
    """
    xs = torch.arange(width, device=device) * stride + stride // 2
    ys = torch.arange(height, device=device) * stride + stride // 2
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack((grid_x.reshape(-1), grid_y.reshape(-1)), dim=1).float()


def centerness_from_offsets(offsets_P4: torch.Tensor) -> torch.Tensor:
    """sqrt(min(l, r) / max(l, r) · min(t, b) / max(t, b)). Source: FCOS, arXiv 1904.01355."""
    left, top, right, bottom = offsets_P4.unbind(1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()


def assign_targets(
    level_sizes: Sequence[tuple[int, int]],
    boxes: Sequence[torch.Tensor],
    classes: Sequence[torch.Tensor],
    *,
    num_classes: int,
    padded_size: tuple[int, int],
    centre_on_bitmask: bool,
    sampling_radius: float = 1.5,
) -> FCOSTargets:
    """Assign every location to at most one box.

    A location is a candidate when it is strictly inside the box and within 1.5 strides of its
    centre, and the farthest side is in the level's size range; ties go to the smallest box, then to
    the first. Source: FCOS, arXiv 1904.01355, with centre sampling.

    Args:
        level_sizes: height and width of each level.
        boxes: (M, 4) x1, y1, x2, y2 in pixels of each image.
        classes: (M,) int64 of each image.
        num_classes: also the label of the background.
        padded_size: height and width of the batch in pixels.
        centre_on_bitmask: centre = centroid of the box's filled pixels, as BoxInst trains; else
            the box's own centre.
        sampling_radius: in strides.
    """
    device = boxes[0].device
    first_box = 0
    first_boxes = []
    for image_boxes in boxes:
        first_boxes.append(first_box)
        first_box += len(image_boxes)
    centres = [
        filled_centres(filled_pixels(image_boxes, padded_size), image_boxes)
        if centre_on_bitmask
        else (image_boxes[:, :2] + image_boxes[:, 2:]) / 2
        for image_boxes in boxes
    ]
    labels, indices, offsets, image_indices, levels, points, cells = [], [], [], [], [], [], []
    for level, (height, width) in enumerate(level_sizes):
        stride = STRIDES[level]
        locations = level_locations(height, width, stride, device)
        for image, (image_boxes, image_classes) in enumerate(zip(boxes, classes, strict=True)):
            matched, distances = _match_level(
                locations, image_boxes, centres[image], level, sampling_radius
            )
            is_positive = matched >= 0
            level_labels = torch.full_like(matched, num_classes)
            level_labels[is_positive] = image_classes[matched[is_positive]]
            labels.append(level_labels)
            indices.append(torch.where(is_positive, matched + first_boxes[image], -1))
            chosen = torch.nonzero(is_positive)[:, 0]
            offsets.append(distances[chosen] / stride)
            image_indices.append(torch.full_like(chosen, image))
            levels.append(torch.full_like(chosen, level))
            points.append(locations[chosen])
            cells.append(torch.stack((chosen.div(width, rounding_mode="floor"), chosen % width), 1))
    all_offsets = torch.cat(offsets)
    box_indices = torch.cat(indices)
    return FCOSTargets(
        labels=torch.cat(labels),
        box_indices=box_indices,
        positives=torch.nonzero(box_indices >= 0)[:, 0],
        offsets=all_offsets,
        centerness=centerness_from_offsets(all_offsets),
        image_indices=torch.cat(image_indices),
        levels=torch.cat(levels),
        locations=torch.cat(points),
        cells=torch.cat(cells),
    )


def _match_level(
    locations_L2: torch.Tensor,
    boxes_M4: torch.Tensor,
    centres_M2: torch.Tensor,
    level: int,
    sampling_radius: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Box index per location (−1 = none) and its four distances in pixels."""
    num_locations = len(locations_L2)
    if len(boxes_M4) == 0:
        nothing = torch.full((num_locations,), -1, dtype=torch.int64, device=locations_L2.device)
        return nothing, locations_L2.new_zeros(num_locations, 4)
    radius = sampling_radius * STRIDES[level]
    lower, upper = SIZE_RANGES[level]
    xs, ys = locations_L2[:, 0, None], locations_L2[:, 1, None]
    x1, y1, x2, y2 = boxes_M4.unbind(1)
    core_x1 = torch.maximum(centres_M2[:, 0] - radius, x1)
    core_y1 = torch.maximum(centres_M2[:, 1] - radius, y1)
    core_x2 = torch.minimum(centres_M2[:, 0] + radius, x2)
    core_y2 = torch.minimum(centres_M2[:, 1] + radius, y2)
    is_inside = (xs > core_x1) & (xs < core_x2) & (ys > core_y1) & (ys < core_y2)
    farthest = torch.maximum(torch.maximum(xs - x1, x2 - xs), torch.maximum(ys - y1, y2 - ys))
    is_candidate = is_inside & (farthest >= lower) & (farthest <= upper)
    areas = ((x2 - x1) * (y2 - y1)).expand(num_locations, -1)
    smallest, matched = torch.where(is_candidate, areas, _FAR).min(dim=1)
    matched = torch.where(smallest < _FAR, matched, -1)
    own = boxes_M4[matched.clamp(min=0)]
    distances = torch.cat((locations_L2 - own[:, :2], own[:, 2:] - locations_L2), dim=1)
    return matched, distances
