"""Objects of one class divide the pixels that both of their boxes hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segtrain.labeller.shared_pixels import SeenObject, paste_among_rivals


def _seen(pixels: tuple[int, int, int, int], *probabilities: float) -> SeenObject:
    """An object whose views are equally sure everywhere."""
    r0, r1, c0, c1 = pixels
    window = torch.tensor([c0, r0, c1, r1], dtype=torch.float32)
    return SeenObject(
        pixels=pixels,
        probabilities=[torch.full((4, 4), value) for value in probabilities],
        windows=[window] * len(probabilities),
        spill=0.0,
    )


def test_the_shared_pixels_are_divided_by_odds() -> None:
    one, rival = _seen((0, 4, 0, 6), 0.5, 0.8), _seen((2, 8, 4, 9), 0.6, 0.9)
    views = paste_among_rivals(one, [rival])
    expected = np.stack([np.full((4, 6), 0.5), np.full((4, 6), 0.8)])
    rival_odds = 0.75 / 0.25
    for view, own_odds in zip(expected, (1.0, 4.0), strict=True):
        odds = own_odds / (1 + 0.3 * rival_odds)
        view[2:4, 4:6] = odds / (1 + odds)
    np.testing.assert_allclose(views, expected, rtol=1e-5)


def test_rivals_that_share_no_pixel_change_nothing() -> None:
    one = _seen((0, 4, 0, 6), 0.5)
    np.testing.assert_array_equal(
        paste_among_rivals(one, [_seen((0, 4, 6, 9), 1.0), _seen((4, 5, 0, 6), 1.0)]),
        one.paste(one.pixels),
    )


def test_a_large_rival_is_sampled_and_spread() -> None:
    """Boxes of a thousand pixels: as every pixel would say it, within what is between samples."""
    gradient = torch.linspace(0.1, 0.9, 32).expand(32, 32).contiguous()
    window = torch.tensor([0.0, 0.0, 1003.0, 701.0])
    rival = SeenObject(
        pixels=(0, 701, 0, 1003), probabilities=[gradient], windows=[window], spill=0.0
    )
    one = _seen((300, 690, 5, 900), 0.5)
    found = paste_among_rivals(one, [rival])[0]
    joint = rival.paste((300, 690, 5, 900))[0]
    np.testing.assert_allclose(found, 1 / (2 + 0.3 * joint / (1 - joint)), atol=2e-3)


def test_rivals_add_up() -> None:
    one, rival = _seen((0, 2, 0, 2), 0.7), _seen((0, 2, 0, 2), 0.6)
    first = paste_among_rivals(one, [rival])
    assert (paste_among_rivals(one, [rival, rival]) < first).all()
    assert (first < 0.7).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certainty_stays_finite(value: float) -> None:
    one, rival = _seen((0, 2, 0, 2), value), _seen((0, 2, 0, 2), 1.0)
    assert np.isfinite(paste_among_rivals(one, [rival])).all()


def test_a_box_that_is_there_twice_keeps_its_sure_pixels() -> None:
    """Annotators do that; neither of the two is to lose its mask."""
    one = _seen((0, 2, 0, 2), 0.9)
    assert (paste_among_rivals(one, [one]) > 0.4).all()
