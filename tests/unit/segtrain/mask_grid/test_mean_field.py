"""The mean field against naive loops, and what it restores from pictures and from depth."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
import torch

from segtrain.mask_grid.mean_field import gaussian_kernels, mean_field

DILATIONS = [1, 2]


def _refine(
    noisy: torch.Tensor, features: list[tuple[torch.Tensor, float]], extents: torch.Tensor
) -> torch.Tensor:
    size = noisy.shape[1:]
    kernels = gaussian_kernels(
        features, torch.ones(1, *size), dilations=DILATIONS, position_width=3.0
    )
    images = torch.zeros(len(noisy), dtype=torch.int64)
    settings = {"dilations": DILATIONS, "weight": 1.0, "num_iterations": 5}
    return mean_field(noisy, kernels, images, extents, **settings)  # type: ignore[arg-type]


def test_one_update_equals_naive_loops() -> None:
    torch.manual_seed(0)
    height, width = 5, 6
    values = 3 * torch.randn(1, 2, height, width, dtype=torch.float64)
    validity = torch.ones(1, height, width, dtype=torch.float64)
    validity[0, :, 5] = 0
    masks = torch.rand(1, height, width, dtype=torch.float64)
    box = (1, 5, 0, 4)
    kernels = gaussian_kernels([(values, 2.0)], validity, dilations=DILATIONS, position_width=1.5)
    actual = mean_field(
        masks,
        kernels,
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([box]),
        dilations=DILATIONS,
        weight=0.7,
        num_iterations=1,
    )

    def belief(row: int, column: int) -> float:
        inside = box[0] <= row < box[1] and box[2] <= column < box[3]
        return 2 * masks[0, row, column].item() * inside - 1

    steps = [
        (dy * d, dx * d) for d in DILATIONS for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx
    ]
    for row in range(height):
        for column in range(width):
            expected = 0.0
            if box[0] <= row < box[1] and box[2] <= column < box[3]:
                total = torch.logit(masks[0, row, column]).item()
                for dy, dx in steps:
                    y, x = row + dy, column + dx
                    if 0 <= y < height and 0 <= x < 5:
                        change = values[0, :, row, column] - values[0, :, y, x]
                        colour = float(change.square().sum()) / 8.0
                        kernel = exp(-colour - (dy**2 + dx**2) / 4.5)
                        total += 0.7 * kernel * belief(y, x)
                expected = 1 / (1 + exp(-total))
            assert actual[0, row, column].item() == pytest.approx(expected, abs=1e-9)


def _noisy_disc() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A disc, a teacher that is wrong in a fifth of the cells, and their box."""
    rows, columns = np.mgrid[:32, :32]
    disc = torch.as_tensor((rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 100)[None]
    random = torch.Generator().manual_seed(0)
    is_wrong = torch.rand(1, 32, 32, generator=random) < 0.2
    noisy = torch.where(disc ^ is_wrong, 0.8, 0.2)
    return disc, noisy, torch.tensor([[5, 27, 5, 27]])


def _iou(mask: torch.Tensor, truth: torch.Tensor) -> float:
    mask = mask > 0.5
    return float((mask & truth).sum() / (mask | truth).sum())


def test_a_two_tone_picture_restores_a_noisy_mask() -> None:
    disc, noisy, extents = _noisy_disc()
    tones = torch.where(disc, 70.0, 30.0)[:, None].expand(1, 3, 32, 32)
    assert _iou(noisy, disc) < 0.7
    assert _iou(_refine(noisy, [(tones, 6.0)], extents), disc) == 1.0
    # Where the picture tells nothing, the smoothing alone loses the outline.
    assert _iou(_refine(noisy, [(torch.zeros_like(tones), 6.0)], extents), disc) < 0.95


def test_depth_restores_what_a_flat_picture_cannot() -> None:
    disc, noisy, extents = _noisy_disc()
    flat, depth = torch.zeros(1, 3, 32, 32), torch.where(disc, 140.0, 100.0)[:, None]
    both = [(flat, 6.0), (depth, 4.0)]
    assert _iou(_refine(noisy, both, extents), disc) == 1.0


def test_nothing_leaves_the_box_and_many_masks_are_as_one() -> None:
    _, noisy, extents = _noisy_disc()
    tones = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 20
    one = _refine(noisy, [(tones, 6.0)], extents)
    assert one[:, :5].max() == one[:, :, 27:].max() == 0
    # More than one chunk of them.
    many = _refine(noisy.expand(40, 32, 32), [(tones, 6.0)], extents.expand(40, 4))
    torch.testing.assert_close(many, one.expand(40, 32, 32))
    assert _refine(noisy[:0], [(tones, 6.0)], extents[:0]).shape == (0, 32, 32)
