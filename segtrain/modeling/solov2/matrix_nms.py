"""Scores of overlapping masks, decayed in one step, and what those scores are made of.

Shape legend: D masks of an image, H×W the mask grid.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

Decay = Literal["gaussian", "linear"]


def matrix_nms(
    masks_DHW: torch.Tensor,
    classes_D: torch.Tensor,
    scores_D: torch.Tensor,
    *,
    decay: Decay = "gaussian",
    sigma: float = 0.5,
) -> torch.Tensor:
    """Decay the score of each mask by the better masks of its class that it overlaps.

    s_j ← s_j · min_i f(iou_ij) / f(max_k iou_ki) over the better masks i of j's class, where k runs
    over those better than i: a mask that is likely suppressed itself suppresses less. f is
    exp(−iou² / σ) or 1 − iou. Source: SOLOv2, arXiv 2003.10152, Matrix NMS.

    Args:
        masks_DHW: bool, best first.
        classes_D: of the masks.
        scores_D: in [0, 1], descending.
        decay: which f.
        sigma: σ of the Gaussian.

    Returns:
        (D,) decayed scores.
    """
    if len(masks_DHW) == 0:
        return scores_D
    flat = masks_DHW.flatten(1).float()
    intersection = flat @ flat.T
    area = flat.sum(1)
    iou = intersection / (area[:, None] + area[None] - intersection).clamp(min=1)
    suppresses = (classes_D[:, None] == classes_D[None]).triu(1)  # row suppresses column
    iou = iou * suppresses
    most = iou.amax(0)[:, None]
    if decay == "gaussian":
        factors = torch.exp((most.square() - iou.square()) / sigma)
    else:
        factors = (1 - iou) / (1 - most).clamp(min=1e-6)
    return scores_D * torch.where(suppresses, factors, 1.0).amin(0).clamp(max=1.0)


def maskness(probabilities_DHW: torch.Tensor) -> torch.Tensor:
    """Mean probability of the cells above 1/2, (D,); 0 for an empty mask.

    It tells how sure a mask is of itself and weighs the score of its class.
    """
    inside = probabilities_DHW > 0.5
    return (probabilities_DHW * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def suppress_neighbours(scores_BKSS: torch.Tensor) -> torch.Tensor:
    """Keep a cell's score where it is the largest of itself, its left, upper and upper left one.

    Neighbouring cells predict the same object; this leaves fewer masks to compute.
    """
    largest = F.max_pool2d(F.pad(scores_BKSS, (1, 0, 1, 0)), 2, stride=1)
    return scores_BKSS * (scores_BKSS == largest)
