"""Stage one: depth of many images into one sealed segment, resumable at every shard."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from depthcache.cache_reader import DepthCache
from depthcache.errors import CacheNotFoundError, CacheUnreachableError
from depthcache.format import segment_format as fmt
from depthcache.format.shard_planning import SegmentPlan, ShardPlan, plan_segment
from depthcache.image_decoding import name_dataset
from depthcache.segments.fingerprint import write_fingerprint
from depthcache.segments.writer import hold_segment, seal_segment, write_shard
from depthcache.stage_one.depth_models import DepthModel, MapShapes, load_with_settings
from depthcache.stage_one.image_contents import ImageContents, read_contents
from depthcache.stage_one.settings import StageOneSettings
from depthcache.stage_one.shard_computation import ShardOutcome, ShardTarget, compute_shards
from depthcache.storage.object_store import ObjectStore, open_store

log = logging.getLogger(__name__)

_DEFAULTS = StageOneSettings()
_BYTES_PER_BIT = 0.08


@dataclass(kw_only=True)
class PrecomputeSummary:
    """What a run of stage one did.

    Attributes:
        cache_url: folder of the model's maps.
        fingerprint: its name.
        num_images: files given.
        num_unique: different contents among the readable ones.
        num_present: contents whose depth a cache had already.
        num_computed: contents computed by this call.
        num_failed: files without depth.
        failures: {"path", "reason"} of each.
        seconds: duration.
    """

    cache_url: str
    fingerprint: str
    num_images: int
    num_unique: int = 0
    num_present: int = 0
    num_computed: int = 0
    num_failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(kw_only=True)
class DepthPlan:
    """What a run would do: counts, shards still to write, estimated bytes."""

    cache_url: str
    fingerprint: str
    segment_id: str
    num_images: int
    num_unique: int
    num_present: int
    num_to_compute: int
    num_failed: int
    num_shards: int
    estimated_bytes: int


@dataclass(kw_only=True)
class _Job:
    model: DepthModel
    store: ObjectStore
    fingerprint: str
    contents: ImageContents
    num_present: int
    plan: SegmentPlan
    source: str
    root: str
    settings: StageOneSettings

    @property
    def prefix(self) -> str:
        return fmt.segment_prefix(self.fingerprint, self.plan.segment_id)

    @property
    def cache_url(self) -> str:
        return f"{self.root.rstrip('/')}/{self.fingerprint}"

    @property
    def target(self) -> ShardTarget:
        return ShardTarget(
            store=self.store,
            prefix=self.prefix,
            shard_rows=self.settings.shard_rows,
            bits=self.settings.bits,
        )

    @property
    def num_planned(self) -> int:
        return sum(len(keys) for keys in self.plan.buckets.values())

    def missing_shards(self) -> list[ShardPlan]:
        present = self.store.list_objects(self.prefix)
        return [s for s in self.plan.shards if s.maps_object not in present]


def precompute_depth(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    settings: StageOneSettings = _DEFAULTS,
    *,
    progress: Callable[[int, int, int], None] | None = None,
    reading_progress: Callable[[int, int, int], None] | None = None,
) -> PrecomputeSummary:
    """Compute the depth that the cache lacks. The same call again resumes a killed one.

    Args:
        images: image files.
        model: hub id or local folder in HuggingFace format.
        root: path or s3:// address of the cache root.
        settings: how.
        progress: called with (done, total) contents, and how many failed, after every batch.
        reading_progress: the same of files, while they are hashed before that: `read_contents`.

    Raises:
        CacheMismatchError: the model is no depth model, or the folder is another fingerprint's.
    """
    start = monotonic()
    job = _prepare(images, model, root, settings, reading_progress)
    write_fingerprint(job.store, job.fingerprint, job.model.fingerprint)
    outcome = ShardOutcome()
    if job.num_planned:
        with hold_segment(job.store, job.prefix):
            if fmt.SEALED in job.store.list_objects(job.prefix):  # by a run that was waited for
                job.num_present += job.num_planned
            else:
                outcome = _fill_segment(job, progress)
    failures = _collect_failures(job, {**outcome.passing, **outcome.failed})
    return PrecomputeSummary(
        cache_url=job.cache_url,
        fingerprint=job.fingerprint,
        num_images=len(images),
        num_unique=job.contents.num_unique,
        num_present=job.num_present,
        num_computed=len(outcome.computed),
        num_failed=len(failures),
        failures=[{"path": str(path), "reason": why} for path, why in failures.items()],
        seconds=monotonic() - start,
    )


def plan_depth(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    settings: StageOneSettings = _DEFAULTS,
) -> DepthPlan:
    """What `precompute_depth` with the same arguments would do; writes nothing."""
    job = _prepare(images, model, root, settings)
    shards = job.missing_shards()
    num_cells = sum(len(s.keys) * s.shape[0] * s.shape[1] for s in shards)
    return DepthPlan(
        cache_url=job.cache_url,
        fingerprint=job.fingerprint,
        segment_id=job.plan.segment_id,
        num_images=len(images),
        num_unique=job.contents.num_unique,
        num_present=job.num_present,
        num_to_compute=sum(len(s.keys) for s in shards),
        num_failed=len(job.contents.failures),
        num_shards=len(shards),
        estimated_bytes=int(num_cells * _BYTES_PER_BIT * settings.bits),
    )


def _fill_segment(job: _Job, progress: Callable[[int, int, int], None] | None) -> ShardOutcome:
    """Compute what the segment lacks, and seal it."""
    outcome = ShardOutcome()
    done = job.num_planned - sum(len(shard.keys) for shard in job.missing_shards())

    def count(num_keys: int) -> None:
        nonlocal done
        done += num_keys
        if progress is not None:
            num_failed = len(job.contents.failures) + len(outcome.failed) + len(outcome.passing)
            progress(done, job.num_planned, num_failed)

    count(0)
    target = job.target
    computed = _compute_on_cluster(job, count) if job.settings.scheduler is not None else set()
    compute_shards(
        job.missing_shards(),
        job.contents.paths,
        job.model,
        target,
        batch_size=job.settings.batch_size,
        readers=job.settings.workers,
        progress=count,
        outcome=outcome,
    )
    outcome.computed |= computed
    # A segment of which nothing was resolved would be planned again and taken for done.
    if len(outcome.unresolved) < len(job.plan.shards):
        for shard in outcome.unresolved:
            write_shard(
                job.store, job.prefix, shard, {}, {}, shard_rows=target.shard_rows, bits=target.bits
            )
        seal_segment(job.store, job.prefix, job.plan, bits=target.bits, provenance=_provenance(job))
    return outcome


def _collect_failures(job: _Job, reasons: dict[str, str]) -> dict[Path, str]:
    """Why each file has no depth: this run's reasons, and those that segments record."""
    cache = DepthCache.open(job.root, fingerprint=job.fingerprint, store=job.store)
    known = {**cache.failures(), **reasons}
    for key in cache.missing(key for keys in job.plan.buckets.values() for key in keys):
        known.setdefault(key, "a run that was killed could not read it; run again")
    failures = dict(job.contents.failures)
    for key, reason in known.items():
        failures.update(dict.fromkeys(job.contents.files_of(key), reason))
    return failures


def _prepare(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    settings: StageOneSettings,
    reading_progress: Callable[[int, int, int], None] | None = None,
) -> _Job:
    loaded = load_with_settings(model, settings)
    name = fmt.fingerprint_folder(loaded.fingerprint)
    store = open_store(root)
    contents = read_contents(images, progress=reading_progress)
    failed, present = _known_keys(contents.sizes, store, root, name, settings.upstreams)
    present -= failed
    shape_of = MapShapes(loaded)
    shapes: dict[str, tuple[int, int]] = {}
    for key, size in contents.sizes.items():
        if key not in failed and key not in present:
            shape = shape_of(size)
            if isinstance(shape, str):
                contents.failures.update(dict.fromkeys(contents.files_of(key), shape))
            else:
                shapes[key] = shape
    contents.sizes.clear()  # the plan is all that later steps need
    return _Job(
        model=loaded,
        store=store,
        fingerprint=name,
        contents=contents,
        num_present=len(present),
        plan=plan_segment(shapes, fingerprint=name, shard_rows=settings.shard_rows),
        source=str(model),
        root=str(root),
        settings=settings,
    )


def _known_keys(
    keys: Iterable[str], store: ObjectStore, root: str, name: str, upstreams: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Which of the keys the cache records as failures, and which it or an upstream has."""
    failed: set[str] = set()
    present: set[str] = set()
    wanted = list(keys)
    for address in (root, *upstreams):
        own_store = store if address == root else None
        try:
            cache = DepthCache.open(address, fingerprint=name, store=own_store)
            missing = set(cache.missing(wanted))
        except CacheNotFoundError:
            continue
        except CacheUnreachableError as error:
            if address == root:
                raise
            log.warning("upstream: %s; what it may have is computed here instead", error)
            continue
        present.update(key for key in wanted if key not in missing)
        if address == root:
            failed.update(cache.failures())
        wanted = [key for key in wanted if key in missing]
    return failed, present


def _compute_on_cluster(job: _Job, progress: Callable[[int], None]) -> set[str]:
    """Let a cluster write the missing shards; returns the keys that it computed."""
    import torch

    from depthcache.stage_one.distributed import ModelRequest, compute_on_workers

    shards = job.missing_shards()
    if not shards:
        return set()
    folder = Path(job.source)
    request = ModelRequest(
        model=str(folder.resolve()) if folder.is_dir() else job.source,
        settings=replace(job.settings, device=job.model.device),
        fingerprint=job.fingerprint,
        num_threads=torch.get_num_threads(),
    )
    return compute_on_workers(
        shards,
        job.contents.paths,
        request=request,
        root=job.root,
        prefix=job.prefix,
        progress=progress,
    )


def _provenance(job: _Job) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "model_source": job.source,
        "dataset": name_dataset(job.contents.paths.values()),
        "host": platform.node(),
        "device": job.model.device,
        "libraries": {
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
