"""Which positive locations are trained on masks."""

from __future__ import annotations

import torch

from segtrain.modeling.fcos_targets import FCOSTargets


@torch.no_grad()
def choose_positives(
    targets: FCOSTargets,
    flat_logits_NK: torch.Tensor,
    quality_logits_P: torch.Tensor,
    num_images: int,
    limit: int,
) -> torch.Tensor:
    """Indices into the positives that are trained on masks.

    An image with more positives than `limit` shares them among its boxes: each keeps its positives
    of the highest class × quality score, at least one.
    """
    best_class = flat_logits_NK[targets.positives].float().sigmoid().amax(1)
    scores = best_class * quality_logits_P.float().sigmoid()
    positive_boxes = targets.box_indices[targets.positives]
    kept = []
    for image in range(num_images):
        own = torch.nonzero(targets.image_indices == image)[:, 0]
        if len(own) <= limit:
            kept.append(own)
            continue
        boxes = positive_boxes[own]
        share = max(limit // len(boxes.unique()), 1)
        order = torch.argsort(scores[own], descending=True, stable=True)
        order = order[torch.argsort(boxes[order], stable=True)]
        sorted_boxes = boxes[order]
        first = torch.searchsorted(sorted_boxes, sorted_boxes)
        rank = torch.arange(len(order), device=order.device) - first
        kept.append(own[order[rank < share]])
    return torch.cat(kept)
