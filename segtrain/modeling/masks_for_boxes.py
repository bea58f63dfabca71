"""A mask for every given box: which locations may predict it, which mask fits it, how sure it is.

A detector's score says whether something is there, which is known here. So of the masks of several
locations the one is taken whose extents agree best with the box, and of several views the mean.

Shape legend: G boxes of an image, K candidates of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F
from torchvision.ops import box_iou

from segtrain.losses.projection import projection_distances
from segtrain.mask_grid.bitmasks import draw_extents, filled_pixels, mask_grid_extents
from segtrain.modeling.fcos import Detections, decode_boxes
from segtrain.modeling.fcos_targets import SIZE_RANGES, STRIDES, level_locations
from segtrain.modeling.mask_postprocessing import MASK_THRESHOLD, probability_chunks

# Size of a view against the image, and whether it is mirrored.
VIEWS: tuple[tuple[float, bool], ...] = ((1.0, False), (1.0, True), (1.5, False), (0.75, True))
NUM_CANDIDATES = 8
_LEAST_IOU = 0.5


@dataclass(frozen=True)
class _Places:
    """All locations of an image, level after level, and what they predict.

    Attributes:
        levels: (L,) of each.
        cells: (L, 2) row and column on its level.
        locations: (L, 2) x, y in pixels.
        boxes: (L, 4) predicted.
        scores: (classes, L) root of class probability × quality.
    """

    levels: torch.Tensor
    cells: torch.Tensor
    locations: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor

    def take(
        self, indices: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor
    ) -> Detections:
        """Some of them as detections."""
        return Detections(
            boxes=self.boxes[indices],
            scores=scores,
            classes=classes,
            levels=self.levels[indices],
            cells=self.cells[indices],
            locations=self.locations[indices],
        )


def _list_places(
    class_logits: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    quality_logits: Sequence[torch.Tensor],
) -> _Places:
    device = class_logits[0].device
    levels, cells, locations = [], [], []
    for level, logits in enumerate(class_logits):
        height, width = logits.shape[1:]
        places = torch.arange(height * width, device=device)
        levels.append(torch.full_like(places, level))
        cells.append(torch.stack((places.div(width, rounding_mode="floor"), places % width), 1))
        locations.append(level_locations(height, width, STRIDES[level], device))
    all_levels, all_locations = torch.cat(levels), torch.cat(locations)
    probabilities = torch.cat([level.float().sigmoid().flatten(1) for level in class_logits], 1)
    quality = torch.cat([level.float().sigmoid().flatten() for level in quality_logits])
    return _Places(
        levels=all_levels,
        cells=torch.cat(cells),
        locations=all_locations,
        boxes=decode_boxes(
            all_locations, torch.cat([level.flatten(1).T for level in offsets]), all_levels
        ),
        scores=(probabilities * quality).sqrt(),
    )


def best_locations(
    class_logits: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    quality_logits: Sequence[torch.Tensor],
    boxes_G4: torch.Tensor,
    classes_G: torch.Tensor,
) -> Detections:
    """The location that predicts each given box best, by IoU × score.

    A box that no prediction overlaps takes the location nearest to its centre, with score 0.
    """
    places = _list_places(class_logits, offsets, quality_logits)
    centres = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    best, scores = [], []
    for box, label, centre in zip(boxes_G4, classes_G.tolist(), centres, strict=True):
        score, index = (box_iou(box[None], places.boxes)[0] * places.scores[label]).max(0)
        nearest = (places.locations - centre).square().sum(1).argmin()
        # Not an `if`, for which a GPU would have to be waited for.
        best.append(torch.where(score > 0, index, nearest))
        scores.append(score.clamp(min=0))
    indices = torch.stack(best) if best else classes_G.new_zeros(0)
    values = torch.stack(scores) if scores else boxes_G4.new_zeros(0)
    return places.take(indices, values, classes_G)


def candidate_locations(
    class_logits: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    quality_logits: Sequence[torch.Tensor],
    boxes_G4: torch.Tensor,
    classes_G: torch.Tensor,
) -> tuple[Detections, torch.Tensor]:
    """Locations that may predict each given box: the best by IoU × score, and the box's centre.

    Returns:
        G·K detections, box after box, the centre last; (G, K) bool, which to consider: those whose
        predicted box has IoU ≥ .5 with the given one, and the centre whatever it predicts.
    """
    places = _list_places(class_logits, offsets, quality_logits)
    limits = torch.tensor([high for _, high in SIZE_RANGES[:-1]], device=boxes_G4.device)
    # A location regresses distances to the sides, from the centre half of the box.
    levels_G = torch.bucketize((boxes_G4[:, 2:] - boxes_G4[:, :2]).amax(1) / 2, limits)
    centres = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    num = min(NUM_CANDIDATES - 1, len(places.levels))
    indices, scores, allowed = [], [], []
    for box, label, centre, level in zip(
        boxes_G4, classes_G.tolist(), centres, levels_G, strict=True
    ):
        overlaps = box_iou(box[None], places.boxes)[0]
        values = overlaps * places.scores[label]
        distance = (places.locations - centre).square().sum(1)
        middle = torch.where(places.levels == level, distance, torch.inf).argmin()
        chosen = torch.cat((values.topk(num).indices, middle[None]))
        indices.append(chosen)
        scores.append(values[chosen])
        is_allowed = overlaps[chosen] >= _LEAST_IOU
        is_allowed[-1] = True
        allowed.append(is_allowed)
    if not indices:
        empty = classes_G.new_zeros(0)
        return places.take(empty, boxes_G4.new_zeros(0), empty), empty.bool().view(0, num + 1)
    classes = classes_G.repeat_interleave(num + 1)
    return places.take(torch.cat(indices), torch.cat(scores), classes), torch.stack(allowed)


def choose_masks(
    mask_logits: torch.Tensor,
    allowed_GK: torch.Tensor,
    boxes_G4: torch.Tensor,
    image_size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask of each box whose extents agree best with it, and how good it seems.

    Agreement is 1 − the mean dice distance of the mask's and the box's profiles (the projection
    term of BoxInst); the score is agreement × mean |2p − 1| in the box.

    Args:
        mask_logits: (G·K, h, w) at stride 4, box after box.
        allowed_GK: which to consider.
        boxes_G4: in pixels of the image.
        image_size: height and width of the image.

    Returns:
        (G, h, w) log-odds, (G,) scores in [0, 1].
    """
    num_boxes, num = allowed_GK.shape
    if num_boxes == 0:
        return mask_logits, boxes_G4.new_zeros(0)
    extents = mask_grid_extents(filled_pixels(boxes_G4, image_size))
    distances = projection_distances(mask_logits, extents.repeat_interleave(num, 0))
    agreement_GK = (1 - (distances[0] + distances[1]) / 2).view(num_boxes, num)
    chosen = agreement_GK.masked_fill(~allowed_GK, -1.0).argmax(1)
    rows = torch.arange(num_boxes, device=chosen.device)
    logits = mask_logits.view(num_boxes, num, *mask_logits.shape[1:])[rows, chosen]
    inside = draw_extents(extents, logits.shape[1:])
    sureness = ((2 * logits.float().sigmoid() - 1).abs() * inside).sum((1, 2))
    confidence = sureness / inside.sum((1, 2)).clamp(min=1)
    return logits, agreement_GK[rows, chosen] * confidence


def view_image(
    image: torch.Tensor, boxes_G4: torch.Tensor, scale: float, mirrored: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, (3, H, W), and boxes in it as a view shows them."""
    height, width = image.shape[-2:]
    if scale != 1:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        image = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[
            0
        ]
        boxes_G4 = boxes_G4 * boxes_G4.new_tensor([size[1] / width, size[0] / height] * 2)
    if mirrored:
        image = image.flip(2)
        x1, y1, x2, y2 = boxes_G4.unbind(1)
        boxes_G4 = torch.stack((image.shape[2] - x2, y1, image.shape[2] - x1, y2), 1)
    return image, boxes_G4


class BoxMasks:
    """Masks of given boxes, the mean over views, in the pixels of the original image.

    Args:
        boxes_G4: in pixels of the resized image.
        image_size: height and width of that.
        output_size: of the original image.
    """

    def __init__(
        self, boxes_G4: torch.Tensor, image_size: Sequence[int], output_size: tuple[int, int]
    ) -> None:
        scale = [output_size[1] / image_size[1], output_size[0] / image_size[0]]
        self.boxes, self.output_size = boxes_G4 * boxes_G4.new_tensor(scale * 2), output_size
        self.pixels = _covering_pixels(self.boxes, output_size).tolist()
        self.sums: list[torch.Tensor] = []
        self.scores = boxes_G4.new_zeros(len(boxes_G4))
        self.num_views = 0

    def add(
        self,
        mask_logits: torch.Tensor,
        scores: torch.Tensor,
        view_size: tuple[int, int],
        mirrored: bool,
    ) -> None:
        """Take in what a view shows: log-odds at stride 4 and scores, box by box."""
        seen: list[torch.Tensor] = []
        for chunk in probability_chunks(mask_logits, view_size, self.output_size):
            for probabilities in chunk.flip(2) if mirrored else chunk:
                r0, r1, c0, c1 = self.pixels[len(seen)]
                seen.append(probabilities[r0:r1, c0:c1].clone())
        self.sums = [a + b for a, b in zip(self.sums, seen, strict=True)] if self.sums else seen
        self.scores += scores
        self.num_views += 1

    def finish(self, classes_G: torch.Tensor) -> Instances:
        """Masks cut to their boxes; an empty one becomes the filled box, with score 0."""
        scores = self.scores / max(self.num_views, 1)
        shape = (len(self.boxes), *self.output_size)
        masks = torch.zeros(shape, dtype=torch.bool, device=self.boxes.device)
        for index, ((r0, r1, c0, c1), total) in enumerate(zip(self.pixels, self.sums, strict=True)):
            masks[index, r0:r1, c0:c1] = total / self.num_views > MASK_THRESHOLD
        return keep_inside_boxes(masks, Boxes(self.boxes), classes_G, scores)


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
