"""Matching of teacher predictions to boxes, against loops written from the formulas."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.distillation.matching import (
    box_affinity,
    depth_matching_scores,
    match_predictions,
    possible_matches,
)

HEIGHT, WIDTH = 7, 9
# Whole map, a part, a single cell, and a box too small to fill a cell.
EXTENTS = torch.tensor([[0, HEIGHT, 0, WIDTH], [2, 6, 1, 5], [3, 4, 8, 9], [2, 2, 3, 3]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _cells(extent: list[int]) -> list[tuple[int, int]]:
    r0, r1, c0, c1 = extent
    return list(itertools.product(range(r0, r1), range(c0, c1)))


def test_depth_matching_scores() -> None:
    masks, edges = torch.rand(3, HEIGHT, WIDTH), torch.rand(8, HEIGHT, WIDTH) < 0.6
    scores = depth_matching_scores(masks, edges, EXTENTS)
    for (i, extent), j in itertools.product(enumerate(EXTENTS), range(3)):
        consistent = sum(
            masks[j, r, c].item() * edges[k, r, c].item()
            for r, c in _cells(extent.tolist())
            for k in range(8)
        )
        pairs = 8 * sum(masks[j, r, c].item() for r, c in _cells(extent.tolist()))
        assert scores[i, j].item() == pytest.approx(consistent / max(pairs, 1), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_box_affinity(kind: Literal["iou", "giou"]) -> None:
    corners = torch.rand(7, 2) * 20
    boxes = torch.cat((corners, corners + 1 + torch.rand(7, 2) * 15), 1)
    affinity = box_affinity(boxes[:3], boxes[3:], kind)
    for i, j in itertools.product(range(3), range(4)):
        (a, b, c, d), (e, f, g, h) = boxes[i].tolist(), boxes[3 + j].tolist()
        common = max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)
        union = (c - a) * (d - b) + (g - e) * (h - f) - common
        hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
        penalty = (hull - union) / hull if kind == "giou" else 0.0
        assert affinity[i, j].item() == pytest.approx(common / union - penalty, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("num_predictions", [0, 2, 5])
def test_matching_is_the_best_of_all_assignments(num_predictions: int) -> None:
    num_boxes = 3
    affinity = torch.rand(num_boxes, num_predictions)
    depth = torch.rand(num_boxes, num_predictions)
    confidence = torch.rand(num_predictions)
    labels = torch.tensor([0, 1, 1])
    predicted = torch.tensor([1, 0, 1, 2, 0])[:num_predictions]
    quality = 0.8 * affinity + 0.15 * depth + 0.05 * confidence
    best = 0.0
    # Every way to give each box one prediction of its class, or none.
    for choice in itertools.product(range(-1, num_predictions), repeat=num_boxes):
        chosen = [j for j in choice if j >= 0]
        if len(set(chosen)) == len(chosen) and all(
            j < 0 or labels[i] == predicted[j] for i, j in enumerate(choice)
        ):
            best = max(best, sum(quality[i, j].item() for i, j in enumerate(choice) if j >= 0))
    match = match_predictions(affinity, depth, confidence, labels, predicted, alpha=0.8, beta=0.15)
    assert match.scores.sum().item() == pytest.approx(best, rel=1e-5)
    for i, j in enumerate(match.predictions.tolist()):
        assert j < 0 or labels[i] == predicted[j]
        assert match.scores[i].item() == pytest.approx(quality[i, j].item() if j >= 0 else 0.0)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_boxes=st.integers(0, 7),
    num_predictions=st.integers(0, 30),
    num_classes=st.integers(1, 3),
    beta=st.sampled_from([0.0, 0.05, 0.2]),
    power=st.sampled_from([1, 6]),
)
def test_what_is_no_possible_match_is_never_matched(
    seed: int, num_boxes: int, num_predictions: int, num_classes: int, beta: float, power: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A high power makes few of the affinities large, as those of overlapping boxes are.
    affinity = torch.rand(num_boxes, num_predictions, generator=generator) ** power
    depth = torch.rand(num_boxes, num_predictions, generator=generator)
    confidence = torch.rand(num_predictions, generator=generator)
    labels = torch.randint(num_classes, (num_boxes,), generator=generator)
    predicted = torch.randint(num_classes, (num_predictions,), generator=generator)
    possible = possible_matches(affinity, confidence, labels, predicted, alpha=0.8, beta=beta)
    every = match_predictions(affinity, depth, confidence, labels, predicted, alpha=0.8, beta=beta)
    kept = torch.nonzero(possible)[:, 0]
    some = match_predictions(
        affinity[:, kept],
        depth[:, kept],
        confidence[kept],
        labels,
        predicted[kept],
        alpha=0.8,
        beta=beta,
    )
    in_all = torch.where(
        some.predictions >= 0, torch.cat((kept, kept[:0].new_zeros(1)))[some.predictions], -1
    )
    assert torch.equal(in_all, every.predictions)
    assert torch.equal(some.scores, every.scores)


def test_few_predictions_are_possible_matches() -> None:
    # One box; two predictions overlap it, so the eight others are out of the question.
    affinity = torch.tensor([[0.9, 0.85] + [0.1] * 8])
    confidence = torch.linspace(0, 1, 10)
    one_class = torch.zeros(10, dtype=torch.int64)
    possible = possible_matches(affinity, confidence, one_class[:1], one_class, alpha=0.8, beta=0.1)
    assert possible.tolist() == [True] * 2 + [False] * 8
