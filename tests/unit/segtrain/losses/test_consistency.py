"""Links by depth: of level planes, of slanted ones, and over a step."""

from __future__ import annotations

import torch

from segtrain.losses.consistency import DepthLinks, depth_similarity, slant_similarity
from segtrain.mask_grid.neighbours import HALF_DIRECTIONS, NEIGHBOUR_OFFSETS, pair_slices

SIZE = (12, 16)
VALID = torch.ones(1, *SIZE)


def _slanted_planes_with_a_step() -> torch.Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in SIZE), indexing="ij")
    plane = 40.0 + 3.0 * columns + 2.0 * rows
    return (plane + 60.0 * (columns >= 8))[None]


def test_slanted_planes_are_linked_by_second_differences_only_and_a_step_by_neither() -> None:
    depth = _slanted_planes_with_a_step()
    level = DepthLinks().edges(depth, VALID)
    slanted = DepthLinks(slant_invariant=True).edges(depth, VALID)
    columns = torch.arange(SIZE[1])
    for direction in HALF_DIRECTIONS:
        (rows_p, columns_p), _ = pair_slices(*SIZE, direction)
        step = NEIGHBOUR_OFFSETS[direction][1]
        own = columns[columns_p]
        crosses = (own >= 8) != (own + step >= 8)
        # At the upper and lower border a diagonal pair may lack the third pixel that it needs.
        found = slanted[0, direction, rows_p, columns_p][2:-2]
        assert not found[:, crosses].any()
        assert found[:, ~crosses].all()
        assert not level[0, direction, rows_p, columns_p].any()


def test_slant_similarity_is_symmetric_and_equals_its_definition() -> None:
    torch.manual_seed(0)
    depth = 10 * torch.rand(2, *SIZE)
    valid = (torch.rand(2, *SIZE) > 0.2).float()
    similarity = slant_similarity(depth, valid)

    def second(b: int, r: int, c: int, dy: int, dx: int) -> float:
        cells = [(r - dy, c - dx), (r, c), (r + dy, c + dx)]
        if any(not (0 <= y < SIZE[0] and 0 <= x < SIZE[1]) or not valid[b, y, x] for y, x in cells):
            return torch.inf
        before, here, after = (depth[b, y, x].item() for y, x in cells)
        return abs(before - 2 * here + after)

    for b in range(2):
        for k, (dy, dx) in enumerate(NEIGHBOUR_OFFSETS):
            for r in range(SIZE[0]):
                for c in range(SIZE[1]):
                    smaller = min(second(b, r, c, dy, dx), second(b, r + dy, c + dx, dy, dx))
                    expected = torch.exp(torch.tensor(-0.5 * smaller))
                    torch.testing.assert_close(
                        similarity[b, k, r, c], expected, rtol=1e-4, atol=1e-6
                    )


def test_depth_similarity_of_a_pair_by_hand() -> None:
    depth = torch.zeros(1, 3, 3)
    depth[0, 0, 2] = 1.4
    similarity = depth_similarity(depth, torch.ones(1, 3, 3))
    torch.testing.assert_close(similarity[0, 4, 0, 0], torch.exp(torch.tensor(-0.7)))
