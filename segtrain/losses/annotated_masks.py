"""Annotated masks on the mask grid, and what teaches them where the config says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Instances

from segtrain.losses.projection import dice_distance
from segtrain.losses.supervision import MaskBatch
from segtrain.mask_grid.validity import sample_mask_grid
from segtrain.process_group import joint_normaliser


def annotated_mask_loss(masks: MaskBatch, supervision: str) -> tuple[torch.Tensor, MaskBatch]:
    """Mean dice distance of the masks whose box has an annotated one, and the other masks."""
    masks_GHW, has_mask_G = annotated_masks(masks.entries, masks.padded_size, supervision)
    has_mask_I = has_mask_G.to(masks.device)[masks.box_indices]
    with_mask = torch.nonzero(has_mask_I)[:, 0]
    target = masks_GHW.to(masks.device)[masks.box_indices[with_mask]].float()
    logits = masks.mask_logits[with_mask]
    normaliser = joint_normaliser(logits.new_tensor(float(len(with_mask))))
    loss = dice_distance(logits.sigmoid(), target).sum() / normaliser
    return loss, masks.select(torch.nonzero(~has_mask_I)[:, 0])


def annotated_masks(
    batched_inputs: Sequence[dict[str, Any]], padded_size: tuple[int, int], supervision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Annotated masks of the batch on the mask grid, (G, H, W) bool, and which boxes have one.

    An object whose `gt_has_mask` says that it has none is no empty object: its box alone teaches.
    """
    masks, has_mask = [], []
    for entry in batched_inputs:
        instances: Instances = entry["instances"]
        count = len(instances)
        grid = torch.zeros(count, padded_size[0] // 4, padded_size[1] // 4, dtype=torch.bool)
        if not instances.has("gt_masks"):
            if supervision == "masks" and count:
                raise ValueError(
                    f"supervision='masks' but {entry.get('file_name', 'an image')} has no gt_masks;"
                    " let the dataloader keep them, or train from boxes"
                )
            own = torch.zeros(count, dtype=torch.bool)
        else:
            sampled = sample_mask_grid(torch.as_tensor(instances.gt_masks.tensor).cpu())
            grid[:, : sampled.shape[1], : sampled.shape[2]] = sampled
            own = (
                instances.gt_has_mask.cpu().bool()
                if instances.has("gt_has_mask")
                else torch.ones(count, dtype=torch.bool)
            )
        masks.append(grid)
        has_mask.append(own)
    return torch.cat(masks), torch.cat(has_mask)
