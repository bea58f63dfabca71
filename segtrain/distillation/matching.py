"""Which prediction of the teacher may teach which box.

Source: arXiv 2403.01214, Eq. 7 to 9. Shape legend: G boxes of an image, J teacher predictions, H×W
the mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou, generalized_box_iou

from segtrain.mask_grid.bitmasks import draw_extents


def box_affinity(
    boxes_G4: torch.Tensor, predicted_J4: torch.Tensor, kind: Literal["iou", "giou"] = "iou"
) -> torch.Tensor:
    """Affinity of boxes and predictions, (G, J); Eq. 7. GIoU may be negative."""
    return (
        box_iou(boxes_G4, predicted_J4)
        if kind == "iou"
        else generalized_box_iou(boxes_G4, predicted_J4)
    )


def depth_matching_scores(
    masks_JHW: torch.Tensor, edges_8HW: torch.Tensor, extents_G4: torch.Tensor
) -> torch.Tensor:
    """Share of depth-consistent pairs under a mask inside a box.

    S_ij = Σ_p,k b_i m_j 1[S_pk ≥ τ] / max(Σ_p,k b_i m_j, 1). Source: Eq. 8 of arXiv 2403.01214.

    Args:
        masks_JHW: teacher masks as probabilities.
        edges_8HW: bool, the consistency map that the loss uses.
        extents_G4: filled cells of the boxes.

    Returns:
        (G, J) in [0, 1].
    """
    boxes = draw_extents(extents_G4, tuple(masks_JHW.shape[1:])).flatten(1).to(masks_JHW.dtype)
    masks = masks_JHW.flatten(1)
    consistent = edges_8HW.sum(0).flatten().to(masks_JHW.dtype)
    numerator = (boxes * consistent) @ masks.T
    denominator = 8.0 * (boxes @ masks.T)
    return numerator / denominator.clamp(min=1.0)


@dataclass(frozen=True)
class BoxMatch:
    """One-to-one assignment: prediction per box (−1 = none) and its matching score (0 = none)."""

    predictions: torch.Tensor  # (G,) int64
    scores: torch.Tensor  # (G,) float


def match_predictions(
    affinity_GJ: torch.Tensor,
    depth_scores_GJ: torch.Tensor,
    prediction_scores_J: torch.Tensor,
    box_classes_G: torch.Tensor,
    predicted_classes_J: torch.Tensor,
    *,
    alpha: float,
    beta: float,
) -> BoxMatch:
    """Assign predictions to boxes by the Hungarian algorithm.

    c_ij = α · affinity + β · depth score + (1 − α − β) · prediction score, maximised in total.
    Predictions of another class are no candidates. Source: Eq. 9 of arXiv 2403.01214.
    """
    num_boxes, num_predictions = affinity_GJ.shape
    device = affinity_GJ.device
    predictions = torch.full((num_boxes,), -1, dtype=torch.int64, device=device)
    scores = torch.zeros(num_boxes, device=device)
    if num_boxes == 0 or num_predictions == 0:
        return BoxMatch(predictions, scores)
    quality = (
        alpha * affinity_GJ + beta * depth_scores_GJ + (1.0 - alpha - beta) * prediction_scores_J
    )
    is_same_class = box_classes_G[:, None] == predicted_classes_J[None]
    # Below any real score, so that an impossible pair never displaces a possible one.
    matrix = torch.where(is_same_class, quality, -1e3).detach().cpu().double().numpy()
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    possible = matrix[rows, columns] > -1e2
    rows, columns = rows[possible].astype(np.int64), columns[possible].astype(np.int64)
    row_indices = torch.from_numpy(rows).to(device)
    column_indices = torch.from_numpy(columns).to(device)
    predictions[row_indices] = column_indices
    scores[row_indices] = quality[row_indices, column_indices].to(scores.dtype)
    return BoxMatch(predictions, scores)


def possible_matches(
    affinity_GJ: torch.Tensor,
    prediction_scores_J: torch.Tensor,
    box_classes_G: torch.Tensor,
    predicted_classes_J: torch.Tensor,
    *,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """Predictions that `match_predictions` could choose, whatever their masks are; bool (J,).

    The depth score, the only part of c_ij that needs a mask, lies in [0, 1], so without it c_ij is
    known up to β. Of n boxes of one class, the other n − 1 leave a box at least one of its n best
    predictions; an assignment that gives it one that is worse than all n can be improved. A
    prediction that for every box is surely worse than n others is therefore in no best assignment,
    and need not be drawn.
    """
    possible = torch.zeros_like(predicted_classes_J, dtype=torch.bool)
    known_GJ = alpha * affinity_GJ + (1.0 - alpha - beta) * prediction_scores_J
    for wanted in box_classes_G.unique():
        rows = torch.nonzero(box_classes_G == wanted)[:, 0]
        columns = torch.nonzero(predicted_classes_J == wanted)[:, 0]
        if len(columns) <= len(rows):
            possible[columns] = True
            continue
        known = known_GJ[rows][:, columns]
        surely_reached = known.topk(len(rows), dim=1).values[:, -1:]
        # The margin is for rounding; it can only keep more.
        possible[columns] = (known + beta + 1e-5 >= surely_reached).any(0)
    return possible
