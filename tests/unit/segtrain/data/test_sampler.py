"""The order of images is a function of seed and position."""

from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.data.sampler import ResumableBatchSampler
from segtrain.errors import TrainingConfigError


@given(
    num_images=st.integers(1, 20),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 5),
    num_done=st.integers(0, 12),
)
def test_resumed_order_continues(
    num_images: int, batch_size: int, seed: int, num_done: int
) -> None:
    whole = list(islice(ResumableBatchSampler(num_images, batch_size=batch_size, seed=seed), 20))
    rest = ResumableBatchSampler(
        num_images, batch_size=batch_size, seed=seed, start_position=num_done * batch_size
    )
    assert list(islice(rest, 20 - num_done)) == whole[num_done:]


@given(num_images=st.integers(1, 20), world_size=st.integers(1, 4))
def test_processes_share_the_joint_batch(num_images: int, world_size: int) -> None:
    joint = list(islice(ResumableBatchSampler(num_images, batch_size=2 * world_size, seed=1), 9))
    parts = [
        list(
            islice(
                ResumableBatchSampler(
                    num_images, batch_size=2, seed=1, rank=rank, world_size=world_size
                ),
                9,
            )
        )
        for rank in range(world_size)
    ]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == joint


def test_each_pass_shows_every_image_once_in_another_order() -> None:
    sampler = ResumableBatchSampler(30, batch_size=30, seed=0)
    first, second = ([request.index for request in batch] for batch in islice(sampler, 2))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_seed_changes_the_order() -> None:
    orders = [
        [r.index for r in next(iter(ResumableBatchSampler(30, batch_size=30, seed=seed)))]
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_empty_dataset_is_refused() -> None:
    with pytest.raises(TrainingConfigError):
        ResumableBatchSampler(0, batch_size=2, seed=0)
