"""Batches for training: dataset, mapper and sampler put into a torch DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset

from segtrain.data.coco_boxes import ImageRecord
from segtrain.data.mapper import TrainingMapper
from segtrain.data.sampler import ResumableBatchSampler, SampleRequest
from segtrain.data.settings import TrainLoaderSettings
from segtrain.errors import SegtrainError


class SampleDataset(Dataset[dict[str, Any] | SegtrainError]):
    """Maps sample requests to samples; records are kept serialised, shared by all workers.

    An error of this package is handed over as a value: torch would bury its message in the
    worker's traceback.

    Args:
        records: images of the training set.
        mapper: makes a sample of one image.
    """

    def __init__(self, records: list[ImageRecord], mapper: TrainingMapper) -> None:
        self._records = DatasetFromList(records, copy=False, serialize=True)
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, request: SampleRequest) -> dict[str, Any] | SegtrainError:
        try:
            return self._mapper(self._records[request.index], request.position)
        except SegtrainError as error:
            return error


def iterate_batches(
    records: list[ImageRecord],
    mapper: TrainingMapper,
    sampler: ResumableBatchSampler,
    settings: TrainLoaderSettings,
    *,
    pin_memory: bool = False,
    spawn_workers: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Endless batches, each a list of samples.

    Args:
        records: images of the training set.
        mapper: makes a sample of one image.
        sampler: says which images come in which order.
        settings: workers and prefetching.
        pin_memory: for faster copies to a GPU.
        spawn_workers: start workers afresh, for depth that forked ones cannot read.

    Raises:
        SegtrainError: whatever the mapper raised, in its own words.
    """
    loader = DataLoader(
        SampleDataset(records, mapper),
        batch_sampler=sampler,
        num_workers=settings.num_workers,
        collate_fn=_keep_as_list,
        worker_init_fn=_limit_worker_threads,
        prefetch_factor=settings.prefetch_batches if settings.num_workers else None,
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if spawn_workers and settings.num_workers else None,
        # Starting workers draws a seed: from the default generator, it would shift the random
        # state of a run each time that it is resumed.
        generator=torch.Generator(),
    )
    for samples in loader:
        for sample in samples:
            if isinstance(sample, SegtrainError):
                raise sample
        yield samples


def _keep_as_list(samples: list[Any]) -> list[Any]:
    return samples


def _limit_worker_threads(_worker_id: int) -> None:
    # Many workers with many threads each fight over the cores that training needs.
    torch.set_num_threads(1)
