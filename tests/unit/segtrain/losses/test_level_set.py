"""The Chan–Vese energy of a two-tone disc is least at the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.losses.level_set import LevelSet, boundary_length, chan_vese_energy
from segtrain.modeling.condinst import CondInst

SIZE = 40
IMAGE = torch.zeros(1, dtype=torch.int64)
BOX = torch.tensor([[8, 33, 7, 32]])


def draw_disc(radius: float, x: float = 19, y: float = 20) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (((rows - y) ** 2 + (columns - x) ** 2) <= radius**2)[None].double()


def test_energy_is_least_at_the_truth_and_zero_without_noise() -> None:
    truth = draw_disc(9)
    image = torch.stack([0.2 + 0.5 * truth, 0.9 - 0.3 * truth], 1)

    def energy(mask: torch.Tensor) -> float:
        return chan_vese_energy(mask, image, IMAGE, BOX).item()

    assert energy(truth) == pytest.approx(0.0, abs=1e-9)
    others = [draw_disc(8), draw_disc(10), draw_disc(9, x=20), torch.full_like(truth, 0.5)]
    assert min(map(energy, others)) > 1e-3
    # Turned inside out it is as uniform: which side is the object, the projection term says.
    assert energy(1 - truth) == pytest.approx(0.0, abs=1e-9)


def test_energy_of_a_noisy_disc_is_the_variance_of_the_noise() -> None:
    torch.manual_seed(0)
    truth = draw_disc(9)
    noise = 0.1 * torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    energy = chan_vese_energy(truth, truth[:, None] + noise, IMAGE, BOX).item()
    assert energy == pytest.approx(0.01, rel=0.1)


def test_energy_equals_its_definition_cell_by_cell() -> None:
    torch.manual_seed(0)
    masks = torch.rand(2, 5, 6, dtype=torch.float64)
    values = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    images, extents = torch.tensor([1, 0]), torch.tensor([[1, 4, 0, 3], [0, 5, 2, 6]])
    expected = 0.0
    for mask, image, (r0, r1, c0, c1) in zip(masks, images, extents.tolist(), strict=True):
        m = mask[r0:r1, c0:c1]
        for channel in values[image]:
            u = channel[r0:r1, c0:c1]
            c1_mean, c2_mean = (u * m).sum() / m.sum(), (u * (1 - m)).sum() / (1 - m).sum()
            deviations = m * (u - c1_mean) ** 2 + (1 - m) * (u - c2_mean) ** 2
            expected += float(deviations.mean()) / 3 / 2
    actual = chan_vese_energy(masks, values, images, extents)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_length_of_a_rectangle_by_hand() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:5, 3:7] = 1.0  # 3×4 cells in a box of 5×6
    box = torch.tensor([[1, 6, 2, 8]])
    assert boundary_length(mask, box).item() == pytest.approx((2 * 3 + 2 * 4) / 22)


def test_gradients() -> None:
    torch.manual_seed(0)
    masks = torch.rand(2, 5, 6, dtype=torch.float64, requires_grad=True)
    values = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    images, extents = torch.tensor([1, 0]), torch.tensor([[1, 4, 0, 3], [0, 5, 2, 6]])
    assert torch.autograd.gradcheck(
        lambda x: chan_vese_energy(x, values, images, extents), (masks,)
    )
    assert torch.autograd.gradcheck(lambda x: boundary_length(x, extents), (masks,))


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_a_model_takes_it_as_an_object(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    num_boxes: int,
) -> None:
    model = make_model(supervision=LevelSet(depth_weight=0.5)).train()
    losses = model(make_batch(num_boxes))
    levels = {f"loss_level_{name}" for name in ("image", "feature", "depth")}
    assert {"loss_proj", "loss_length"} | levels < set(losses)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
