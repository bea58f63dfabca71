"""What the memory returns of itself, forgets, and teaches; bins against plain sampling."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from segtrain.distillation.object_memory import BoxBins, ObjectMemory


def _objects(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num, 32, 25, generator=random)
    return features, (torch.rand(num, 25, generator=random) > 0.5).float()


def test_the_memory_returns_its_own_entry() -> None:
    features, masks = _objects(3)
    classes = torch.tensor([0, 2, 1])
    memory = ObjectMemory(num_classes=4, num_entries=2, temperature=0.02)
    assert memory.transfer(features, classes).abs().max() == 0
    memory.add(features, masks, classes)
    torch.testing.assert_close(memory.transfer(features, classes), 2 * masks - 1, atol=0.01, rtol=0)
    # Whatever the scale and the order of its bins.
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    moved = memory.transfer(3 * features[:, :, order], classes)
    torch.testing.assert_close(moved, 2 * masks[:, order] - 1, atol=0.01, rtol=0)
    # A class without entries says nothing, and another class's objects say nothing of this one.
    assert memory.transfer(features, torch.tensor([3, 3, 3])).abs().max() == 0
    assert (memory.transfer(features, torch.tensor([2, 1, 0])) - (2 * masks - 1)).abs().mean() > 0.5


def test_the_oldest_are_forgotten_and_all_that_is_left_have_their_say() -> None:
    features, masks = _objects(5)
    memory = ObjectMemory(num_classes=2, num_entries=2, temperature=0.02)
    classes = torch.ones(5, dtype=torch.int64)
    memory.add(features[:1], masks[:1], classes[:1])
    memory.add(features[1:], masks[1:], classes[1:])  # more at once than there are places
    last = memory.transfer(features, classes)
    own = 2 * masks - 1
    # Each of the last two by half its own entry and by half, with less trust, by the other.
    for index in (3, 4):
        assert ((last[index] * own[index]) > 0.2).float().mean() > 0.9
    assert ((last[0] * own[0]) > 0.2).float().mean() < 0.7
    assert torch.equal(memory.state_dict()["counts"], torch.tensor([0, 5]))
    again = ObjectMemory(num_classes=2, num_entries=2, temperature=0.02)
    again.load_state_dict(memory.state_dict())
    again.add(features[:2], masks[:2], classes[:2])
    memory.add(features[:2], masks[:2], classes[:2])
    assert torch.equal(again.transfer(features, classes), memory.transfer(features, classes))
    memory.add(features[:0], masks[:0], classes[:0])
    assert torch.equal(again.transfer(features, classes), memory.transfer(features, classes))


def test_corresponding_features_are_made_alike() -> None:
    features, masks = _objects(2)
    classes = torch.zeros(2, dtype=torch.int64)
    memory = ObjectMemory(num_classes=1, num_entries=4, temperature=0.1)
    student = torch.randn(1, 32, 25, requires_grad=True)
    args = (features[:1], masks[:1], classes[:1])
    assert memory.contrast(student, *args).item() == 0
    memory.add(*args)
    before = memory.contrast(student, *args)
    (gradient,) = torch.autograd.grad(before, student)
    is_object = masks[0] > 0.5
    assert gradient[0][:, ~is_object].abs().max() == 0
    assert (gradient[0][:, is_object].norm(dim=0) > 0).all()
    after = memory.contrast(student - 5 * gradient, *args)
    assert after < before
    assert memory.contrast(features[:1], *args) < 0.1
    nothing = memory.contrast(student, features[:1], torch.zeros(1, 25), classes[:1])
    assert nothing.item() == 0


def test_bins_read_as_plain_sampling_and_draw_what_they_read() -> None:
    maps = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 8.0, 90.0, 56.0], [0.0, 0.0, 128.0, 96.0]])
    bins = BoxBins(boxes, 5)
    read = bins.read(maps, stride=8)
    shares = (torch.arange(5) + 0.5) / 5
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        x, y = x1 + shares * (x2 - x1), y1 + shares * (y2 - y1)
        # From pixels to −1 … 1 over the outer borders of the cells.
        grid = torch.stack(torch.meshgrid(y / 96 * 2 - 1, x / 128 * 2 - 1, indexing="ij")[::-1], 2)
        expected = F.grid_sample(
            maps[index][None], grid[None], padding_mode="border", align_corners=False
        )
        torch.testing.assert_close(read[index], expected[0].flatten(1))
    ramp = torch.linspace(-1, 1, 5).expand(2, 5, 5).flatten(1)
    drawn = bins.draw(ramp, (24, 32), stride=4)
    assert drawn.shape == (2, 24, 32)
    torch.testing.assert_close(bins.read(drawn[:, None], stride=4)[:, 0], ramp, atol=0.06, rtol=0)
    assert BoxBins(boxes[:0], 5).read(maps[:0], stride=8).shape == (0, 3, 25)
