"""Stage one on a dask.distributed cluster: shards are tasks, each worker loads the model once.

A shard is written whole and is the same bytes whoever computes it, so a task that a killed worker
left behind is simply done again by another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker

from depthcache.errors import CacheIncompleteError, CacheMismatchError
from depthcache.format import segment_format as fmt
from depthcache.format.shard_planning import ShardPlan
from depthcache.stage_one.depth_models import DepthModel, load_with_settings
from depthcache.stage_one.settings import StageOneSettings
from depthcache.stage_one.shard_computation import ShardTarget, compute_shards
from depthcache.storage.object_store import open_store

LOCAL = "local"
_RETRIES = 3
_PLUGIN = "depthcache-model"


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What a worker needs to load the coordinator's model, and to compute as it would.

    Attributes:
        model: hub id or local folder; a folder must lie at the same path on every worker.
        settings: the run's; with several GPUs, device `cuda` gives each local worker its own.
        fingerprint: folder name that the loaded model must have.
        num_threads: torch threads, the coordinator's, so that sums are taken in the same order.
    """

    model: str
    settings: StageOneSettings
    fingerprint: str
    num_threads: int


class DepthModelPlugin(WorkerPlugin):
    """Keeps the model of a worker process. The scheduler gives it to restarted workers too."""

    name = _PLUGIN

    def __init__(self, request: ModelRequest) -> None:
        self.request = request
        self._worker_name: Any = None
        self._lock: Any = None
        self._model: DepthModel | None = None

    def setup(self, worker: Any) -> None:
        """Prepare; the model is loaded by the first task, beside the worker's event loop."""
        self._worker_name = worker.name
        self._lock = threading.Lock()

    def load(self) -> DepthModel:
        """The worker's model.

        Raises:
            CacheMismatchError: this machine has another model under that name.
        """
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> DepthModel:
        import torch

        request = self.request
        torch.set_num_threads(request.num_threads)
        device = request.settings.device
        if device == "cuda" and isinstance(self._worker_name, int):
            device = f"cuda:{self._worker_name % torch.cuda.device_count()}"
        model = load_with_settings(request.model, replace(request.settings, device=device))
        found = fmt.fingerprint_folder(model.fingerprint)
        if found != request.fingerprint:
            raise CacheMismatchError(
                f"worker {self._worker_name} loads {request.model} as {found}, the run is of "
                f"{request.fingerprint}; give all machines the same files and library versions"
            )
        return model


def compute_on_workers(
    shards: Sequence[ShardPlan],
    paths: Mapping[str, Path],
    *,
    request: ModelRequest,
    root: str,
    prefix: str,
    progress: Callable[[int], None] | None = None,
) -> set[str]:
    """Compute and write shards on a cluster.

    A shard of which no image could be read for a passing reason stays unwritten.

    Args:
        shards: those still to write.
        paths: image file by key; must be readable by every worker.
        request: the model, and how to compute.
        root: cache root, for every worker the same place.
        prefix: folder of the segment.
        progress: called with the number of contents of every shard that is done.

    Returns:
        Keys whose depth was computed.

    Raises:
        CacheIncompleteError: a task was lost with several workers in a row.
        CacheMismatchError: a worker has another model under that name.
    """
    place = root if "://" in root else str(Path(root).resolve())
    computed: set[str] = set()
    with _connected(request.settings) as client:
        client.register_plugin(DepthModelPlugin(request))
        futures = {
            client.submit(
                compute_shard,
                shard,
                {key: str(Path(paths[key]).resolve()) for key in shard.keys},
                place,
                prefix,
                request.settings,
                key=f"depth-{prefix}-{shard.bucket}-{shard.number}",
                pure=False,
                retries=_RETRIES,
            ): shard
            for shard in shards
        }
        try:
            for future in as_completed(list(futures)):
                computed.update(future.result())
                if progress is not None:
                    progress(len(futures[future].keys))
        except KilledWorker as error:
            raise CacheIncompleteError(
                f"several workers died computing one shard ({error}); give workers more memory, "
                "then run the same command again: it resumes"
            ) from error
        finally:
            client.cancel([future for future in futures if not future.done()])
    return computed


def compute_shard(
    shard: ShardPlan,
    paths: Mapping[str, str],
    root: str,
    prefix: str,
    settings: StageOneSettings,
) -> list[str]:
    """The task: read, predict and write one shard with the worker's model.

    Images that cannot be read now stay out; the coordinator reports them.

    Returns:
        Keys whose depth was computed.
    """
    outcome = compute_shards(
        [shard],
        {key: Path(path) for key, path in paths.items()},
        get_worker().plugins[_PLUGIN].load(),
        ShardTarget(
            store=open_store(root),
            prefix=prefix,
            shard_rows=settings.shard_rows,
            bits=settings.bits,
        ),
        batch_size=settings.batch_size,
        readers=2,
    )
    return sorted(outcome.computed)


@contextmanager
def _connected(settings: StageOneSettings) -> Iterator[Any]:
    if settings.scheduler != LOCAL:
        with Client(settings.scheduler, timeout="30s") as client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=2,  # one reads and writes while the other has the network
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
