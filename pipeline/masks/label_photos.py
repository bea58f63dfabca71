"""Labels of photos, drawn by this process or by several; the same labels in the same order."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.masks.photo_depth import PhotoDepth
from pipeline.masks.photo_labels import draw_objects
from segtrain.data.coco_reader import ImageRecord
from segtrain.errors import DatasetError

if TYPE_CHECKING:
    from segtrain.labeller import Labeller


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoLabels:
    """What came of a photo.

    Attributes:
        objects: as the journal takes them; empty if the photo failed.
        has_depth: whether depth was used.
        failure: why the photo could not be labelled.
    """

    objects: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    has_depth: bool = False
    failure: str | None = None


def label_photos(
    records: Sequence[ImageRecord], weights: Path, depth: PhotoDepth, num_processes: int = 1
) -> Generator[PhotoLabels, None, None]:
    """Label photos, each when it is asked for or, by several processes, ahead.

    Args:
        records: photos with boxes.
        weights: of the labeller.
        depth: of the photos.
        num_processes: on GPUs at most one each.

    Yields:
        Labels in the order of `records`.

    Raises:
        PipelineError: a process was killed.
    """
    num_processes = min(num_processes, len(records))
    if num_processes <= 1:
        labeller = _load(weights, depth)
        yield from (_label(labeller, depth, record) for record in records)
        return
    import torch

    # Spawned, not forked: threads of torch or OpenMP may be running here.
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in range(num_processes):
        places.put(place)
    num_threads = max(torch.get_num_threads() // num_processes, 1)
    pool = ProcessPoolExecutor(
        num_processes,
        mp_context=context,
        initializer=_start,
        initargs=(weights, depth, num_threads, places),
    )
    try:
        yield from pool.map(_label_in_process, records)
    except BrokenProcessPool as error:
        raise PipelineError(
            f"one of {num_processes} processes that label was killed or could not start; often "
            "memory ran out. Take fewer --processes; the same command goes on from the photos that "
            "are labelled"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _load(weights: Path, depth: PhotoDepth, device: Any = None) -> Labeller:
    from segtrain.labeller import load_labeller

    return load_labeller(weights, uses_depth=depth.mode in ("input", "both"), device=device)


def _label(labeller: Labeller, depth: PhotoDepth, record: ImageRecord) -> PhotoLabels:
    from segtrain.data.mapper import read_image

    try:
        image_rgb, key = read_image(record)
    except DatasetError as error:
        return PhotoLabels(failure=str(error))
    objects, has_depth = draw_objects(labeller, record, image_rgb, key, depth)
    return PhotoLabels(objects=objects, has_depth=has_depth)


# What a process of the pool labels with, from its start on.
_label_here: list[Callable[[ImageRecord], PhotoLabels]] = []


def _start(weights: Path, depth: PhotoDepth, num_threads: int, places: Any) -> None:
    import torch

    # Ctrl-C is for the process that waits; it lets this one finish its photo.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    place = places.get()
    device = torch.device("cuda", place) if torch.cuda.is_available() else None
    _label_here.append(functools.partial(_label, _load(weights, depth, device), depth))


def _label_in_process(record: ImageRecord) -> PhotoLabels:
    return _label_here[0](record)
