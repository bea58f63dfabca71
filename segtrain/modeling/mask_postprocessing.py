"""From masks at stride 4 to masks of the original image, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from segtrain.data.segmentations import encode_mask
from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.modeling.fcos import Detections

MASK_THRESHOLD = 0.5
# Floating-point pixels that one chunk of masks may take at full resolution.
_PIXELS_PER_CHUNK = 16_000_000


def finish_detections(
    detections: Detections,
    mask_logits_DHW: torch.Tensor,
    image_size: Sequence[int],
    output_size: tuple[int, int],
    *,
    encode: bool,
) -> Instances:
    """Detections of a resized image as Instances of the original one.

    A box predicted in the padding may not reach into the image; those are left out.

    Args:
        detections: of the resized image.
        mask_logits_DHW: at stride 4 of its padded form.
        image_size: height and width of the resized image.
        output_size: of the original one.
        encode: masks as `pred_masks_rle` rather than `pred_masks`.
    """
    size = (int(image_size[0]), int(image_size[1]))
    boxes = Boxes(detections.boxes.clone())
    boxes.clip(size)
    boxes.scale(output_size[1] / size[1], output_size[0] / size[0])
    is_seen = boxes.nonempty()
    instances = Instances(output_size)
    instances.pred_boxes = boxes[is_seen]
    instances.scores = detections.scores[is_seen]
    instances.pred_classes = detections.classes[is_seen]
    if encode:
        instances.pred_masks_rle = encoded_masks(mask_logits_DHW[is_seen], size, output_size)
    else:
        instances.pred_masks = full_size_masks(mask_logits_DHW[is_seen], size, output_size)
    return instances


def full_size_instances(
    mask_logits_DHW: torch.Tensor,
    classes_D: torch.Tensor,
    scores_D: torch.Tensor,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    *,
    encode: bool,
) -> Instances:
    """Instances of a detector without boxes: a mask's box is its extent; empty masks are left out.

    Args:
        mask_logits_DHW: at stride 4 of the resized image.
        classes_D: of the masks.
        scores_D: of the masks.
        image_size: height and width of the resized image.
        output_size: of the original one.
        encode: masks as `pred_masks_rle` rather than `pred_masks`.
    """
    boxes, kept, codes, masks = [], [], [], []
    for chunk in mask_chunks(mask_logits_DHW, image_size, output_size):
        extents = tight_boxes(chunk)
        is_filled = extents[:, 2] > extents[:, 0]
        boxes.append(extents[is_filled])
        kept.append(is_filled)
        if encode:
            codes += [encode_mask(mask) for mask in chunk[is_filled].cpu().numpy()]
        else:
            masks.append(chunk[is_filled])
    nothing = mask_logits_DHW.new_zeros(0, *output_size, dtype=torch.bool)
    chosen = torch.cat([nothing.new_zeros(0), *kept])
    instances = Instances(output_size)
    instances.pred_boxes = Boxes(torch.cat([scores_D.new_zeros(0, 4), *boxes]))
    instances.scores = scores_D[chosen]
    instances.pred_classes = classes_D[chosen]
    if encode:
        instances.pred_masks_rle = codes
    else:
        instances.pred_masks = torch.cat([nothing, *masks])
    return instances


def tight_boxes(masks_DHW: torch.Tensor) -> torch.Tensor:
    """First and one-past-last column and row of masks: (D, 4) x1, y1, x2, y2; 0 where empty."""
    sides = []
    for dim in (1, 2):
        is_filled = masks_DHW.any(dim).int()
        first = is_filled.argmax(1)
        last = is_filled.shape[1] - is_filled.flip(1).argmax(1)
        sides.append(torch.stack((first, last), 1) * is_filled.amax(1, keepdim=True))
    return torch.stack((sides[0], sides[1]), 2).flatten(1).float()


def full_size_masks(
    mask_logits_DHW: torch.Tensor, image_size: tuple[int, int], output_size: tuple[int, int]
) -> torch.Tensor:
    """Binary masks at the original size.

    Returns:
        (D, output height, output width) bool.
    """
    result = torch.empty(
        (len(mask_logits_DHW), *output_size), dtype=torch.bool, device=mask_logits_DHW.device
    )
    start = 0
    for chunk in mask_chunks(mask_logits_DHW, image_size, output_size):
        result[start : start + len(chunk)] = chunk
        start += len(chunk)
    return result


def encoded_masks(
    mask_logits_DHW: torch.Tensor, image_size: tuple[int, int], output_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The same masks as COCO run-length codes; memory does not grow with their number."""
    return [
        encode_mask(mask)
        for chunk in mask_chunks(mask_logits_DHW, image_size, output_size)
        for mask in chunk.cpu().numpy()
    ]


def mask_chunks(
    mask_logits_DHW: torch.Tensor, image_size: tuple[int, int], output_size: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """Masks at the original size, (n, output height, output width) bool: probability above 0.5."""
    for chunk in probability_chunks(mask_logits_DHW, image_size, output_size):
        yield chunk > MASK_THRESHOLD


def probability_chunks(
    mask_logits_DHW: torch.Tensor, image_size: tuple[int, int], output_size: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """Sigmoid, aligned up-sampling to the input, crop of the padding, resize.

    Args:
        mask_logits_DHW: log-odds at stride 4 of the padded input.
        image_size: height and width of the resized image inside the padding.
        output_size: height and width of the original image.

    Yields:
        (n, output height, output width) probabilities.
    """
    pixels = max(
        16 * mask_logits_DHW.shape[1] * mask_logits_DHW.shape[2], output_size[0] * output_size[1]
    )
    size = max(_PIXELS_PER_CHUNK // pixels, 1)
    for start in range(0, len(mask_logits_DHW), size):
        probabilities = mask_logits_DHW[start : start + size, None].float().sigmoid()
        fine = aligned_bilinear(probabilities, 4)[:, :, : image_size[0], : image_size[1]]
        if image_size != output_size:
            fine = F.interpolate(fine, size=output_size, mode="bilinear", align_corners=False)
        yield fine[:, 0]
