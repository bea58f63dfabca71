"""A mask for every given box: which location predicts it best, and the mask inside the box.

Shape legend: G boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_iou

from segtrain.modeling.fcos import Detections, decode_boxes
from segtrain.modeling.fcos_targets import STRIDES, level_locations
from segtrain.modeling.mask_postprocessing import full_size_masks


def best_locations(
    class_logits: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    quality_logits: Sequence[torch.Tensor],
    boxes_G4: torch.Tensor,
    classes_G: torch.Tensor,
) -> tuple[Detections, torch.Tensor]:
    """The location that predicts each given box best, and its score."""
    device = boxes_G4.device
    levels, cells, locations = [], [], []
    for level, logits in enumerate(class_logits):
        height, width = logits.shape[1:]
        places = torch.arange(height * width, device=device)
        levels.append(torch.full_like(places, level))
        cells.append(torch.stack((places.div(width, rounding_mode="floor"), places % width), 1))
        locations.append(level_locations(height, width, STRIDES[level], device))
    all_levels, all_locations = torch.cat(levels), torch.cat(locations)
    predicted = decode_boxes(
        all_locations, torch.cat([level.flatten(1).T for level in offsets]), all_levels
    )
    probabilities = torch.cat([level.float().sigmoid().flatten(1) for level in class_logits], 1)
    quality = torch.cat([level.float().sigmoid().flatten() for level in quality_logits])
    centres = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    best, scores = [], []
    for box, label, centre in zip(boxes_G4, classes_G.tolist(), centres, strict=True):
        own = (probabilities[label] * quality).sqrt()
        score, index = (box_iou(box[None], predicted)[0] * own).max(0)
        nearest = (all_locations - centre).square().sum(1).argmin()
        # Not an `if`, for which a GPU would have to be waited for.
        best.append(torch.where(score > 0, index, nearest))
        scores.append(score.clamp(min=0))
    indices = torch.stack(best) if best else torch.zeros(0, dtype=torch.int64, device=device)
    values = torch.stack(scores) if scores else boxes_G4.new_zeros(0)
    found = Detections(
        boxes=predicted[indices],
        scores=values,
        classes=classes_G,
        levels=all_levels[indices],
        cells=torch.cat(cells)[indices],
        locations=all_locations[indices],
    )
    return found, values


def cut_to_boxes(
    mask_logits: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    scores: torch.Tensor,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Instances:
    """Masks of given boxes at the original size, each cut to its box.

    Args:
        mask_logits: (G, H, W) at stride 4 of the padded image.
        boxes: (G, 4) in pixels of the resized image.
        classes: (G,).
        scores: (G,) in [0, 1].
        image_size: height and width of the resized image.
        output_size: of the original one.
    """
    scaled = Boxes(boxes.clone())
    scaled.scale(output_size[1] / image_size[1], output_size[0] / image_size[0])
    masks = full_size_masks(mask_logits, image_size, output_size)
    return keep_inside_boxes(masks, scaled, classes, scores)


def keep_inside_boxes(
    masks: torch.Tensor, boxes: Boxes, classes: torch.Tensor, scores: torch.Tensor
) -> Instances:
    """Instances of given boxes; a mask that is empty in its box becomes the filled box, score 0.

    Args:
        masks: (G, H, W) bool at the original size; changed in place.
        boxes: G boxes in its pixels.
        classes: (G,).
        scores: (G,) in [0, 1].
    """
    size = (int(masks.shape[1]), int(masks.shape[2]))
    scores = scores.clone()
    for index, (r0, r1, c0, c1) in enumerate(_covering_pixels(boxes.tensor, size).tolist()):
        inside = masks[index, r0:r1, c0:c1].clone()
        masks[index] = False
        if not inside.any():
            scores[index] = 0.0
            inside = torch.ones_like(inside)
        masks[index, r0:r1, c0:c1] = inside
    instances = Instances(size)
    instances.pred_boxes = boxes
    instances.pred_classes = classes
    instances.scores = scores
    instances.pred_masks = masks
    return instances


def _covering_pixels(boxes_G4: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels that a box touches, at least one: row start, row stop, column start, column stop."""
    height, width = size
    x1, y1, x2, y2 = boxes_G4.unbind(1)
    r0 = y1.floor().long().clamp(0, height - 1)
    c0 = x1.floor().long().clamp(0, width - 1)
    r1 = torch.maximum(y2.ceil().long().clamp(0, height), r0 + 1)
    c1 = torch.maximum(x2.ceil().long().clamp(0, width), c0 + 1)
    return torch.stack((r0, r1, c0, c1), dim=1)
