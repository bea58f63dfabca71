"""From an experiment's records to the batches of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.utils import comm

from depthcache import DepthCache
from segtrain.data.coco_boxes import BoxDataset
from segtrain.data.loader import iterate_batches
from segtrain.data.mapper import TeacherView, TrainingMapper
from segtrain.data.sampler import ResumableBatchSampler
from segtrain.depth_source import describe_fill_command
from segtrain.run.experiment import Experiment
from segtrain.run.train_settings import distillation_start

Batch = list[dict[str, Any]]


def iterate_training_batches(
    experiment: Experiment,
    dataset: BoxDataset,
    depth: DepthCache | None,
    *,
    start_iteration: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """This process's batches from an iteration on; positions follow from seed and iteration."""
    settings = experiment.train
    loader_settings = experiment.train_loader
    teacher_view = None
    start = distillation_start(settings)
    if start is not None:
        teacher_view = TeacherView(
            first_position=start * settings.batch_size,
            short_side=settings.teacher_short_side,
            max_size=settings.teacher_max_size,
        )
    mapper = TrainingMapper(
        loader_settings.augmentation,
        seed=settings.seed,
        depth=depth,
        depth_command=describe_fill_command(
            experiment.depth, experiment.data.train_json, experiment.data.train_images
        ),
        teacher_view=teacher_view,
        use_masks=experiment.data.use_masks,
        keep_in_memory=loader_settings.keep_in_memory,
    )
    sampler = ResumableBatchSampler(
        len(dataset.records),
        batch_size=settings.batch_size // settings.accumulation // comm.get_world_size(),
        seed=settings.seed,
        start_position=start_iteration * settings.batch_size,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return iterate_batches(
        dataset.records,
        mapper,
        sampler,
        loader_settings,
        pin_memory=pin_memory,
        spawn_workers=depth is not None and not depth.survives_fork,
    )
