"""The order of training images, as a function of the seed and a position.

Position p of a run means: p samples were drawn before. Which image stands at p depends on the seed
and p only, so a resumed run continues exactly, whatever the number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from segtrain.errors import TrainingConfigError


@dataclass(frozen=True)
class SampleRequest:
    """Which image to load, and its position in the run, which seeds its augmentation."""

    position: int
    index: int


class ResumableBatchSampler(Sampler[list[SampleRequest]]):
    """Endless batches of one process.

    The images are shuffled anew for every pass. Consecutive positions form a global batch; each
    process takes its contiguous part.

    Args:
        num_images: size of the dataset.
        batch_size: samples per batch of this process.
        seed: of the run.
        start_position: samples that the run has already drawn, over all processes.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        start_position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_images < 1 or batch_size < 1:
            raise TrainingConfigError(
                f"cannot draw batches of {batch_size} from {num_images} images; "
                "both must be at least 1"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.start_position = start_position
        self.rank = rank
        self.world_size = world_size
        self._pass_number = -1
        self._order: list[int] = []

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        """Yield batches without end."""
        base = self.start_position
        while True:
            first = base + self.rank * self.batch_size
            yield [
                SampleRequest(position, self.index_at(position))
                for position in range(first, first + self.batch_size)
            ]
            base += self.world_size * self.batch_size

    def index_at(self, position: int) -> int:
        """Index of the image that stands at a position of the run."""
        pass_number, offset = divmod(position, self.num_images)
        if pass_number != self._pass_number:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + pass_number)
            self._order = torch.randperm(self.num_images, generator=generator).tolist()
            self._pass_number = pass_number
        return self._order[offset]
