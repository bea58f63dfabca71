"""BBTP's bags and smoothness by hand, and a model that trains with them and nothing else new."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch

from segtrain.losses.bbtp import BBTP, bag_loss, smoothness_loss
from segtrain.modeling.condinst import CondInst

EXTENTS = torch.tensor([[1, 3, 0, 2]])  # rows 1 and 2, columns 0 and 1 of 4×3 cells


def test_bags_of_a_toy_mask_by_hand() -> None:
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.1], [0.6, 0.3, 0.9], [0.2, 0.5, 0.1], [0.1, 0.1, 0.4]], dtype=torch.float64
    )
    # Rows in the box: .6, .5; rows outside: .2, .4. Columns in the box: .6, .5; outside: .9.
    positive = [0.6, 0.5, 0.6, 0.5]
    negative = [0.2, 0.4, 0.9]
    expected = -(sum(map(log, positive)) + sum(log(1 - m) for m in negative)) / 7
    actual = bag_loss(torch.logit(probabilities)[None], EXTENTS)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_a_tight_mask_has_no_loss_and_a_box_without_cells_no_bags() -> None:
    tight = torch.full((1, 4, 3), -50.0)
    tight[0, 1, 0] = tight[0, 2, 1] = 50.0
    assert bag_loss(tight, EXTENTS).item() == pytest.approx(0.0, abs=1e-6)
    wider = tight.clone()
    wider[0, 1, 2] = 50.0
    assert bag_loss(wider, EXTENTS).item() > 1
    empty = torch.tensor([[1, 1, 0, 2]])
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    loss = bag_loss(logits, empty)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert bag_loss(torch.zeros(0, 4, 3), torch.zeros(0, 4, dtype=torch.int64)).item() == 0


def test_smoothness_by_hand_and_along_links() -> None:
    masks = torch.zeros(1, 3, 3, dtype=torch.float64)
    masks[0, 0, 0] = 1.0  # its neighbours, two cells apart, are three of the eight pairs
    logits = 50 * (2 * masks - 1)
    # Pairs: 3 to the right, 3 down, 1 on each diagonal.
    assert smoothness_loss(logits).item() == pytest.approx(3 / 8)
    edges = torch.zeros(1, 8, 3, 3, dtype=torch.bool)
    edges[0, 4, 0, 0] = edges[0, 4, 1, 0] = True  # to the right, one of them over the step
    assert smoothness_loss(logits, edges).item() == pytest.approx(1 / 2)


def test_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    extents = torch.tensor([[1, 3, 0, 2], [0, 5, 2, 6]])
    assert torch.autograd.gradcheck(lambda x: bag_loss(x, extents), (logits,))
    assert torch.autograd.gradcheck(smoothness_loss, (logits,))


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_a_model_takes_it_as_an_object(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    num_boxes: int,
) -> None:
    model = make_model(supervision=BBTP(smooth_along_depth=True)).train()
    assert model.needs_depth
    losses = model(make_batch(num_boxes))
    assert {"loss_bags", "loss_smooth"} < set(losses)
    assert not {"loss_proj", "loss_color"} & set(losses)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_settings_of_the_built_in_supervision_are_refused(
    make_model: Callable[..., CondInst],
) -> None:
    with pytest.raises(ValueError, match=r"consistency.*BBTP"):
        make_model(supervision=BBTP(), consistency=True)
