"""Soft Dice, and the projection term of box supervision."""

from __future__ import annotations

import torch

from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.precision import widen
from segtrain.process_group import joint_normaliser


def dice_distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − 2 Σxt / (Σx² + Σt² + 1e-5) per row.

    Args:
        prediction: (I, ...) in [0, 1].
        target: same shape, 0 to 1.

    Returns:
        (I,) in [0, 1].
    """
    x, t = prediction.flatten(1), target.flatten(1)
    return 1 - 2 * (x * t).sum(1) / ((x * x).sum(1) + (t * t).sum(1) + 1e-5)


def projection_distances(
    mask_logits_IHW: torch.Tensor, extents_I4: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice distances of the column and row profiles of masks and boxes.

    The maximum is taken of the logits: the sigmoid is monotone, so it is needed on profiles only.

    Returns:
        (I,) after the maximum over rows, (I,) after the maximum over columns.
    """
    height, width = mask_logits_IHW.shape[1:]
    over_rows = widen(mask_logits_IHW.max(dim=1).values).sigmoid()
    over_columns = widen(mask_logits_IHW.max(dim=2).values).sigmoid()
    start_r, stop_r, start_c, stop_c = extents_I4.unbind(1)
    is_empty = ((stop_r <= start_r) | (stop_c <= start_c))[:, None]
    columns = draw_extents(
        torch.stack((torch.zeros_like(start_r), torch.ones_like(stop_r), start_c, stop_c), 1),
        (1, width),
    )[:, 0]
    rows = draw_extents(
        torch.stack((start_r, stop_r, torch.zeros_like(start_c), torch.ones_like(stop_c)), 1),
        (height, 1),
    )[:, :, 0]
    return (
        dice_distance(over_rows, (columns & ~is_empty).to(over_rows.dtype)),
        dice_distance(over_columns, (rows & ~is_empty).to(over_columns.dtype)),
    )


def projection_loss(mask_logits_IHW: torch.Tensor, extents_I4: torch.Tensor) -> torch.Tensor:
    """Penalise masks whose extents differ from their boxes.

    Source: BoxInst, arXiv 2012.02310, the projection term.

    Args:
        mask_logits_IHW: log-odds on the mask grid.
        extents_I4: filled cells of each instance's box, see `bitmasks.mask_grid_extents`.

    Returns:
        Scalar in [0, 2], mean over I; graph-connected zero when I = 0.

    Raises:
        ValueError: the numbers of masks and boxes differ.
    """
    num_instances = len(mask_logits_IHW)
    if num_instances != len(extents_I4):
        raise ValueError(f"{num_instances} masks but {len(extents_I4)} boxes")
    normaliser = joint_normaliser(mask_logits_IHW.new_tensor(float(num_instances)))
    if num_instances == 0:
        return mask_logits_IHW.sum() * 0.0
    columns, rows = projection_distances(mask_logits_IHW, extents_I4)
    return (columns + rows).sum() / normaliser
