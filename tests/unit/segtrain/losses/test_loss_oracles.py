"""Losses and targets against loops written from the formulas, and numerical gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from segtrain.distillation.teaching import reliable_dice_loss, resize_teacher_masks
from segtrain.losses.depth import depth_loss
from segtrain.losses.detector import fcos_losses
from segtrain.losses.pairwise import pairwise_losses
from segtrain.losses.projection import projection_loss
from segtrain.mask_grid.bitmasks import draw_extents
from segtrain.mask_grid.neighbours import neighbour_similarity
from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.modeling.fcos_targets import STRIDES, assign_targets

HEIGHT, WIDTH = 7, 9
NEIGHBOURS = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if (dy, dx) != (0, 0)]
# Whole map, a part, a single cell, and a box too small to fill a cell.
EXTENTS = torch.tensor([[0, HEIGHT, 0, WIDTH], [2, 6, 1, 5], [3, 4, 8, 9], [2, 2, 3, 3]])
IMAGES = torch.tensor([1, 0, 1, 0])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _logits(count: int = len(EXTENTS)) -> torch.Tensor:
    return (3 * torch.randn(count, HEIGHT, WIDTH, dtype=torch.float64)).requires_grad_()


def _cells(extent: torch.Tensor) -> list[tuple[int, int]]:
    r0, r1, c0, c1 = extent.tolist()
    return list(itertools.product(range(r0, r1), range(c0, c1)))


def _dice(prediction: list[float], target: list[float]) -> float:
    common = sum(x * t for x, t in zip(prediction, target, strict=True))
    squares = sum(x * x for x in prediction) + sum(t * t for t in target)
    return 1 - 2 * common / (squares + 1e-5)


def _assert_close(actual: torch.Tensor, expected: float, tolerance: float = 1e-6) -> None:
    assert actual.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_projection_loss() -> None:
    logits = _logits()
    expected = 0.0
    for mask, extent in zip(logits.sigmoid().tolist(), EXTENTS, strict=True):
        box = [[float((r, c) in _cells(extent)) for c in range(WIDTH)] for r in range(HEIGHT)]
        columns = [[max(m[r][c] for r in range(HEIGHT)) for c in range(WIDTH)] for m in (mask, box)]
        rows = [[max(m[r]) for r in range(HEIGHT)] for m in (mask, box)]
        expected += (_dice(*columns) + _dice(*rows)) / len(EXTENTS)
    _assert_close(projection_loss(logits, EXTENTS), expected)
    assert torch.autograd.gradcheck(lambda x: projection_loss(x, EXTENTS), (logits,))


def test_pairwise_losses() -> None:
    logits = _logits()
    edges = [torch.rand(2, 8, HEIGHT, WIDTH) < share for share in (0.4, 0.7)]
    whole = EXTENTS[:1].expand(len(EXTENTS), 4)
    extents = [EXTENTS, whole]
    expected = []
    masks = logits.sigmoid().tolist()
    for term, boxes in zip(edges, extents, strict=True):
        total, count = 0.0, 0
        for instance, extent in enumerate(boxes):
            for r, c in _cells(extent):
                for k, (dy, dx) in enumerate(NEIGHBOURS):
                    if not term[IMAGES[instance], k, r, c]:
                        continue
                    count += 1
                    # Outside the map both log-probabilities are zero: nothing is lost.
                    if 0 <= r + dy < HEIGHT and 0 <= c + dx < WIDTH:
                        p, q = masks[instance][r][c], masks[instance][r + dy][c + dx]
                        total -= math.log(p * q + (1 - p) * (1 - q))
        expected.append(total / max(count, 1))
    for actual, value in zip(
        pairwise_losses(logits, edges, IMAGES, extents), expected, strict=True
    ):
        _assert_close(actual, value)
    assert torch.autograd.gradcheck(
        lambda x: torch.stack(pairwise_losses(x, edges, IMAGES, extents)), (logits,)
    )


def test_depth_loss() -> None:
    depth = torch.rand(len(EXTENTS), HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    target = 255 * torch.rand(2, HEIGHT, WIDTH, dtype=torch.float64)
    errors = [
        (depth[i, r, c] - target[IMAGES[i], r, c] / 255).item() ** 2
        for i, extent in enumerate(EXTENTS)
        for r, c in _cells(extent)
    ]
    _assert_close(depth_loss(depth, target, IMAGES, EXTENTS), sum(errors) / len(errors))
    assert torch.autograd.gradcheck(lambda x: depth_loss(x, target, IMAGES, EXTENTS), (depth,))

    means = []
    for i, extent in enumerate(EXTENTS):
        cells = list(_cells(extent))
        own = [(depth[i, r, c] - target[IMAGES[i], r, c] / 255).item() ** 2 for r, c in cells]
        means += [sum(own) / len(own)] if own else []

    def by_instance(x: torch.Tensor) -> torch.Tensor:
        return depth_loss(x, target, IMAGES, EXTENTS, "instance")

    _assert_close(by_instance(depth), sum(means) / len(means))
    assert torch.autograd.gradcheck(by_instance, (depth,))


def test_reliable_dice_loss() -> None:
    logits = _logits(6)
    boxes = torch.tensor([0, 1, 1, 3, 2, 0])
    pseudo = torch.rand(4, HEIGHT, WIDTH, dtype=torch.float64)
    scores = torch.tensor([0.79, 0.8, 0.9, 0.0])
    distances = []
    for mask, box in zip(logits.sigmoid(), boxes.tolist(), strict=True):
        if scores[box] >= 0.8:
            inside = draw_extents(EXTENTS[box, None], (HEIGHT, WIDTH))[0]
            target = (pseudo[box] * inside).flatten().tolist()
            distances.append(_dice(mask.flatten().tolist(), target))
    assert len(distances) == 3

    def loss(x: torch.Tensor) -> torch.Tensor:
        return reliable_dice_loss(x, boxes, pseudo, scores, EXTENTS, threshold=0.8)

    _assert_close(loss(logits), sum(distances) / 3)
    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_fcos_losses(quality: str) -> None:
    num_rows, num_classes, num_positives = 12, 3, 4
    logits = (2 * torch.randn(num_rows, num_classes, dtype=torch.float64)).requires_grad_()
    labels = torch.full((num_rows,), num_classes)
    labels[[1, 4, 5, 9]] = torch.tensor([0, 2, 1, 0])
    offsets = (torch.rand(num_positives, 4, dtype=torch.float64) * 4 + 0.2).requires_grad_()
    quality_logits = torch.randn(num_positives, dtype=torch.float64, requires_grad=True)
    wanted = torch.rand(num_positives, 4, dtype=torch.float64) * 4 + 0.2
    centerness = torch.rand(num_positives, dtype=torch.float64)

    focal = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            focal -= (
                0.25 * (1 - p) ** 2 * math.log(p) if k == label else 0.75 * p**2 * math.log(1 - p)
            )
    ious, gious = [], []
    for (a, b, c, d), (e, f, g, h) in zip(offsets.tolist(), wanted.tolist(), strict=True):
        common = (min(a, e) + min(c, g)) * (min(b, f) + min(d, h))
        union = (a + c) * (b + d) + (e + g) * (f + h) - common
        hull = (max(a, e) + max(c, g)) * (max(b, f) + max(d, h))
        ious.append((common + 1) / (union + 1))
        gious.append(ious[-1] - (hull - union) / hull)
    weights = centerness.tolist() if quality == "centerness" else [1.0] * num_positives
    location = sum(w * (1 - g) for w, g in zip(weights, gious, strict=True)) / sum(weights)
    targets = centerness.tolist() if quality == "centerness" else ious
    entropy = sum(
        -t * math.log(p) - (1 - t) * math.log(1 - p)
        for t, p in zip(targets, quality_logits.sigmoid().tolist(), strict=True)
    )

    def losses(*inputs: torch.Tensor) -> list[torch.Tensor]:
        own = fcos_losses(inputs[0], labels, *inputs[1:], wanted, centerness, quality=quality)
        return list(own.values())

    inputs = (logits, offsets, quality_logits)
    for actual, value in zip(
        losses(*inputs),
        (focal / num_positives, location, entropy / num_positives),
        strict=True,
    ):
        _assert_close(actual, value)
    if quality == "centerness":
        assert torch.autograd.gradcheck(losses, inputs)
    else:
        # The IoU is a target of the quality branch: no gradient passes through it there.
        assert torch.autograd.gradcheck(lambda *x: losses(*x)[:2], inputs)
        assert torch.autograd.gradcheck(
            lambda q: losses(logits.detach(), offsets.detach(), q)[2], (quality_logits,)
        )


def test_without_instances_losses_are_zero_and_connected() -> None:
    logits = _logits(0)
    nobody, nowhere = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64)
    edges = torch.ones(1, 8, HEIGHT, WIDTH, dtype=torch.bool)
    target = torch.zeros(1, HEIGHT, WIDTH)
    pseudo, scores = torch.zeros(0, HEIGHT, WIDTH), torch.zeros(0)
    for loss in (
        projection_loss(logits, nowhere),
        *pairwise_losses(logits, [edges], nobody, [nowhere]),
        depth_loss(logits, target, nobody, nowhere),
        reliable_dice_loss(logits, nobody, pseudo, scores, nowhere, threshold=0.8),
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert gradient.shape == logits.shape


def test_neighbour_similarity() -> None:
    features = 2 * torch.randn(2, 3, HEIGHT, WIDTH)
    mask = (torch.rand(2, HEIGHT, WIDTH) > 0.3).float()
    similarity = neighbour_similarity(features, mask)
    for b, k, r, c in itertools.product(range(2), range(8), range(HEIGHT), range(WIDTH)):
        y, x = r + NEIGHBOURS[k][0], c + NEIGHBOURS[k][1]
        expected = 0.0
        if 0 <= y < HEIGHT and 0 <= x < WIDTH and mask[b, y, x]:
            expected = math.exp(-0.5 * math.dist(features[b, :, r, c], features[b, :, y, x]))
        _assert_close(similarity[b, k, r, c], expected)


@pytest.mark.parametrize("centre_on_bitmask", [False, True])
def test_fcos_targets(centre_on_bitmask: bool) -> None:
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    padded = (128, 160)
    corner = torch.rand(9, 2) * 90
    boxes = torch.cat((corner, corner + 3 + torch.rand(9, 2) * 100), 1)
    boxes[8] = boxes[7]  # equal areas: the first one wins
    classes = torch.randint(0, 5, (9,))
    targets = assign_targets(
        sizes,
        [boxes],
        [classes],
        num_classes=5,
        padded_size=padded,
        centre_on_bitmask=centre_on_bitmask,
    )
    ranges = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)]
    expected = []
    for (height, width), stride, (lower, upper) in zip(sizes, STRIDES, ranges, strict=True):
        for row, column in itertools.product(range(height), range(width)):
            x, y = column * stride + stride // 2, row * stride + stride // 2
            best, best_area = -1, math.inf
            for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
                if centre_on_bitmask:
                    centre_x = (int(x1) + min(int(x2 + 1), padded[1]) - 1) / 2
                    centre_y = (int(y1) + min(int(y2 + 1), padded[0]) - 1) / 2
                area = (x2 - x1) * (y2 - y1)
                if (
                    x1 < x < x2
                    and y1 < y < y2
                    and max(abs(x - centre_x), abs(y - centre_y)) < 1.5 * stride
                    and lower <= max(x - x1, y - y1, x2 - x, y2 - y) <= upper
                    and area < best_area - 1e-3
                ):
                    best, best_area = index, area
            expected.append(best)
    assert targets.box_indices.tolist() == expected
    positives = [index for index in expected if index >= 0]
    assert len(positives) > 20
    assert targets.labels[targets.positives].tolist() == classes[positives].tolist()
    for offsets, (x, y), level, index in zip(
        targets.offsets, targets.locations.tolist(), targets.levels, positives, strict=True
    ):
        x1, y1, x2, y2 = boxes[index].tolist()
        wanted = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / STRIDES[level]
        torch.testing.assert_close(offsets, wanted)


def test_teacher_masks_take_the_long_way_in_two_products() -> None:
    masks = torch.rand(2, 16, 24)  # stride 4 of 64×96
    fine = aligned_bilinear(masks[:, None], 4)[:, :, :50, :90]
    resized = F.interpolate(fine, size=(33, 60), mode="bilinear", align_corners=False)
    expected = F.pad(resized, (0, 4, 0, 31))[:, 0, 2::4, 2::4]
    actual = resize_teacher_masks(masks, (50, 90), (33, 60), (64, 64))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
