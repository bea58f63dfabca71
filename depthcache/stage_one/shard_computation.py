"""Computes shards with one model: reading, the forward pass, and writing overlap.

Reader threads decode and preprocess the coming batches, the calling thread runs the network, and a
writer thread fetches its output, quantises and writes. One process, a dask task and repair all go
this way, with the same batches, so that they give the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.errors import ImageDecodeError
from depthcache.format.shard_planning import ShardPlan
from depthcache.image_decoding import decode_image, image_key
from depthcache.segments.writer import write_shard
from depthcache.stage_one.depth_models import DepthModel
from depthcache.storage.object_store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class ShardTarget:
    """Where shards go: store, folder of the segment, rows of a full shard, significant bits."""

    store: ObjectStore
    prefix: str
    shard_rows: int
    bits: int


@dataclass(kw_only=True)
class ShardOutcome:
    """What became of the images of some shards.

    Attributes:
        computed: keys that have a map now.
        failed: key → reason, recorded for good.
        passing: key → reason why this run could not read the file.
        unresolved: shards that were not written, since none of their images could be read.
    """

    computed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    passing: dict[str, str] = field(default_factory=dict)
    unresolved: list[ShardPlan] = field(default_factory=list)


@dataclass(kw_only=True)
class _OpenShard:
    plan: ShardPlan
    maps: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def compute_shards(
    shards: Sequence[ShardPlan],
    paths: Mapping[str, Path],
    model: DepthModel,
    target: ShardTarget,
    *,
    batch_size: int,
    readers: int,
    progress: Callable[[int], None] | None = None,
    outcome: ShardOutcome | None = None,
) -> ShardOutcome:
    """Compute and write shards, one after the other.

    Args:
        shards: those to write. A shard of which no image can be read is left out.
        paths: image file by key.
        model: the network.
        target: where they go.
        batch_size: images per forward pass; batches never cross shards.
        readers: threads that read, decode and preprocess.
        progress: called with the number of contents of every batch that is done.
        outcome: filled shard by shard and returned, for `progress` to look at.
    """
    outcome = outcome or ShardOutcome()
    batches = [
        (number, shard.keys[start : start + batch_size])
        for number, shard in enumerate(shards)
        for start in range(0, len(shard.keys), batch_size)
    ]
    num_ahead = max(2, -(-2 * readers // batch_size))
    # Writing a shard takes a while, in which the forward passes of the next one go on.
    num_behind = 2 + -(-target.shard_rows // batch_size)
    loads: deque[list[Future[Any]]] = deque()
    behind: deque[tuple[int, Future[None]]] = deque()

    def finish_oldest() -> None:
        num_keys, future = behind.popleft()
        future.result()
        if progress is not None:
            progress(num_keys)

    with (
        _torch_threads_for(model),
        ThreadPoolExecutor(readers) as reading,
        ThreadPoolExecutor(1) as writing,
    ):
        opened = _OpenShard(plan=shards[0]) if shards else None
        coming = 0
        for number, (position, keys) in enumerate(batches):
            while coming < min(number + num_ahead + 1, len(batches)):
                wanted = batches[coming][1]
                loads.append([reading.submit(load_image, model, paths[k], k) for k in wanted])
                coming += 1
            if opened is None or opened.plan is not shards[position]:
                opened = _OpenShard(plan=shards[position])
            pixels = _take_loaded(keys, loads.popleft(), opened.failed, outcome.passing)
            predicted = [(ks, model.forward([pixels[k] for k in ks])) for ks in _by_shape(pixels)]
            is_last = number + 1 == len(batches) or batches[number + 1][0] != position
            task = writing.submit(
                _finish_batch, opened, predicted, model, target if is_last else None, outcome
            )
            behind.append((len(keys), task))
            while behind and (len(behind) > num_behind or behind[0][1].done()):
                finish_oldest()
        while behind:
            finish_oldest()
    return outcome


@contextmanager
def _torch_threads_for(model: DepthModel) -> Iterator[None]:
    """With the network on a GPU, torch's CPU threads serve the readers alone: one for each.

    Else every reader's resampling asks for as many threads as there are cores.
    """
    import torch

    before = torch.get_num_threads()
    if model.device != "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_image(model: DepthModel, path: Path, key: str) -> Any:
    """The network's input for one image file.

    Raises:
        ImageDecodeError: it can never be decoded.
        OSError: it cannot be read now, or has other bytes than its key says.
    """
    data = path.read_bytes()
    if image_key(data) != key:
        raise OSError(f"{path} changed while the run was reading it")
    return model.preprocess(decode_image(data))


def predict_maps(
    model: DepthModel, pixels: Mapping[str, Any]
) -> dict[str, npt.NDArray[np.float32]]:
    """Maps of one batch of preprocessed images, which may differ in shape."""
    maps: dict[str, npt.NDArray[np.float32]] = {}
    for keys in _by_shape(pixels):
        maps.update(zip(keys, model.predict([pixels[key] for key in keys]), strict=True))
    return maps


def _by_shape(pixels: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for key, tensor in pixels.items():
        groups.setdefault(tuple(tensor.shape), []).append(key)
    return list(groups.values())


def _take_loaded(
    keys: Sequence[str],
    futures: Sequence[Future[Any]],
    failed: dict[str, str],
    passing: dict[str, str],
) -> dict[str, Any]:
    """Preprocessed images; the others go to `failed` for good, or to `passing` for this run."""
    pixels = {}
    for key, future in zip(keys, futures, strict=True):
        try:
            pixels[key] = future.result()
        except ImageDecodeError as error:
            failed[key] = str(error)
        except OSError as error:
            passing[key] = f"cannot be read: {error.strerror or error}; run again"
    return pixels


def _finish_batch(
    opened: _OpenShard,
    predicted: Sequence[tuple[list[str], Any]],
    model: DepthModel,
    target: ShardTarget | None,
    outcome: ShardOutcome,
) -> None:
    """Fetch a batch's maps; with a target the shard is complete and is written."""
    for keys, output in predicted:
        opened.maps.update(zip(keys, model.fetch(output), strict=True))
    if target is None:
        return
    if not opened.maps and not opened.failed:
        outcome.unresolved.append(opened.plan)
        return
    failed = write_shard(
        target.store,
        target.prefix,
        opened.plan,
        opened.maps,
        opened.failed,
        shard_rows=target.shard_rows,
        bits=target.bits,
    )
    outcome.computed.update(opened.maps.keys() - failed.keys())
    outcome.failed.update(failed)
    opened.maps = {}
