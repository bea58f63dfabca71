"""Stage one: depth of many images into one sealed segment, resumable at every shard."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.cache_reader import DepthCache
from depthcache.errors import (
    CacheMismatchError,
    CacheNotFoundError,
    CacheUnreachableError,
    ImageDecodeError,
)
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import ALL_BITS, DEFAULT_BITS, describe_encoding
from depthcache.format.shard_planning import SegmentPlan, ShardPlan, plan_segment
from depthcache.segments.writer import hold_segment, seal_segment, write_shard
from depthcache.stage_one.depth_models import PRECISIONS, DepthModel, load_depth_model
from depthcache.stage_one.image_contents import ImageContents, read_contents
from depthcache.stage_one.shard_computation import (
    ShardOutcome,
    ShardTarget,
    compute_shards,
    load_image,
    predict_maps,
)
from depthcache.storage.object_stores import ObjectStore, open_store

log = logging.getLogger(__name__)

DEFAULT_SHARD_ROWS = 64
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
    bits: int
    plan: SegmentPlan

    @property
    def prefix(self) -> str:
        return f"{self.fingerprint}/segments/{self.plan.segment_id}"

    @property
    def num_planned(self) -> int:
        return sum(len(keys) for keys in self.plan.buckets.values())

    def missing_shards(self) -> list[ShardPlan]:
        present = self.store.list_objects(self.prefix)
        return [s for s in self.plan.shards if f"maps/{s.bucket}/c/{s.number}/0/0" not in present]


def precompute_depth(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    *,
    revision: str | None = None,
    batch_size: int = 4,
    precision: str = "fp32",
    device: str | None = None,
    bits: int = DEFAULT_BITS,
    shard_rows: int | None = None,
    workers: int = 2,
    scheduler: str | None = None,
    upstreams: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> PrecomputeSummary:
    """Compute the depth that the cache lacks. The same call again resumes a killed one.

    Args:
        images: image files.
        model: hub id or local folder in HuggingFace format.
        root: path or s3:// address of the cache root.
        revision: of a hub model.
        batch_size: images per forward pass.
        precision: fp32, bf16 or fp16.
        device: torch device; None takes cuda when there is one.
        bits: significant bits of a stored map, 2 to 16; 32 keeps float32.
        shard_rows: maps per shard; None takes 64.
        workers: threads that read, decode and preprocess beside the forward pass; with
            scheduler="local" the number of worker processes.
        scheduler: address of a dask scheduler whose workers see the same files, or "local";
            None computes in this process. The cache's maps and index are the same bytes.
        upstreams: further cache roots whose maps need not be computed.
        progress: called with (done, total) contents after every batch.

    Raises:
        CacheMismatchError: the model is no depth model, or the folder is another fingerprint's.
        ValueError: a setting is out of range.
    """
    start = monotonic()
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size={batch_size} and workers={workers} must be positive")
    job = _prepare(images, model, root, revision, precision, device, bits, shard_rows, upstreams)
    _write_fingerprint(job)
    outcome = ShardOutcome()
    if job.num_planned:
        with hold_segment(job.store, job.prefix):
            if fmt.SEALED in job.store.list_objects(job.prefix):  # by a run that was waited for
                job.num_present += job.num_planned
            else:
                outcome = _fill_segment(
                    job, str(model), root, revision, batch_size, workers, scheduler, progress
                )
    failures = _collect_failures(job, root, {**outcome.passing, **outcome.failed})
    return PrecomputeSummary(
        cache_url=f"{str(root).rstrip('/')}/{job.fingerprint}",
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
    *,
    revision: str | None = None,
    batch_size: int = 4,
    precision: str = "fp32",
    device: str | None = None,
    bits: int = DEFAULT_BITS,
    shard_rows: int | None = None,
    workers: int = 2,
    scheduler: str | None = None,
    upstreams: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> DepthPlan:
    """What `precompute_depth` with the same arguments would do; writes nothing."""
    del batch_size, workers, scheduler, progress
    job = _prepare(images, model, root, revision, precision, device, bits, shard_rows, upstreams)
    shards = job.missing_shards()
    return DepthPlan(
        cache_url=f"{str(root).rstrip('/')}/{job.fingerprint}",
        fingerprint=job.fingerprint,
        segment_id=job.plan.segment_id,
        num_images=len(images),
        num_unique=job.contents.num_unique,
        num_present=job.num_present,
        num_to_compute=sum(len(s.keys) for s in shards),
        num_failed=len(job.contents.failures),
        num_shards=len(shards),
        estimated_bytes=int(
            sum(len(s.keys) * s.shape[0] * s.shape[1] for s in shards) * _BYTES_PER_BIT * bits
        ),
    )


def _fill_segment(
    job: _Job,
    model: str,
    root: str,
    revision: str | None,
    batch_size: int,
    workers: int,
    scheduler: str | None,
    progress: Callable[[int, int], None] | None,
) -> ShardOutcome:
    """Compute what the segment lacks, and seal it."""
    done = job.num_planned - sum(len(shard.keys) for shard in job.missing_shards())

    def count(num_keys: int) -> None:
        nonlocal done
        done += num_keys
        if progress is not None:
            progress(done, job.num_planned)

    count(0)
    computed: set[str] = set()
    if scheduler is not None:
        computed = _compute_on_cluster(
            job, model, root, revision, batch_size, scheduler, workers, count
        )
    outcome = compute_shards(
        job.missing_shards(),
        job.contents.paths,
        job.model,
        ShardTarget(
            store=job.store, prefix=job.prefix, shard_rows=job.plan.shard_rows, bits=job.bits
        ),
        batch_size=batch_size,
        readers=workers,
        progress=count,
    )
    outcome.computed |= computed
    # A segment of which nothing was resolved would be planned again and taken for done.
    if len(outcome.unresolved) < len(job.plan.shards):
        for shard in outcome.unresolved:
            write_shard(
                job.store, job.prefix, shard, {}, {}, shard_rows=job.plan.shard_rows, bits=job.bits
            )
        seal_segment(
            job.store, job.prefix, job.plan, bits=job.bits, provenance=_provenance(model, job)
        )
    return outcome


def _collect_failures(job: _Job, root: str, reasons: dict[str, str]) -> dict[Path, str]:
    """Why each file has no depth: this run's reasons, and those that segments record."""
    cache = DepthCache.open(root, fingerprint=job.fingerprint, store=job.store)
    known = {**cache.failures(), **reasons}
    for key in cache.missing(key for keys in job.plan.buckets.values() for key in keys):
        known.setdefault(key, "a run that was killed could not read it; run again")
    failures = dict(job.contents.failures)
    for key, reason in known.items():
        failures.update(dict.fromkeys(job.contents.files_of(key), reason))
    return failures


class ImageDepths:
    """Maps of given images, computed when asked for: what repair needs of stage one.

    Args:
        images: image files; those that cannot be read are left out.
        model: depth model.
        folder: name of the cache folder; its hash tells precision and encoding.
        revision: of a hub model.
        device: torch device; None takes cuda when there is one.
        batch_size: images per forward pass.

    Raises:
        CacheMismatchError: the folder is another model's.
    """

    def __init__(
        self,
        images: Sequence[Path],
        model: str | Path,
        folder: str,
        *,
        revision: str | None = None,
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        device = _choose_device(device)
        loaded = load_depth_model(model, revision=revision, device=device)
        precision, bits = _find_settings(loaded.fingerprint, folder)
        if precision != loaded.precision or bits != DEFAULT_BITS:
            loaded = load_depth_model(
                model, revision=revision, device=device, precision=precision, bits=bits
            )
        self._model = loaded
        self._batch_size = batch_size
        self.source = str(model)
        self.fingerprint = self._model.fingerprint
        contents = read_contents(images)
        self._paths = contents.paths
        shape_of = _MapShapes(self._model)
        self.shapes = {key: shape_of(size) for key, size in contents.sizes.items()}

    def compute(self, keys: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Maps of these images; those that fail are absent."""
        wanted = list(keys)
        maps: dict[str, npt.NDArray[np.float32]] = {}
        for start in range(0, len(wanted), self._batch_size):
            pixels = {}
            for key in wanted[start : start + self._batch_size]:
                with contextlib.suppress(ImageDecodeError, OSError):
                    pixels[key] = load_image(self._model, self._paths[key], key)
            found = predict_maps(self._model, pixels)
            maps.update({key: m for key, m in found.items() if np.isfinite(m).all()})
        return maps


def _find_settings(fingerprint: dict[str, Any], folder: str) -> tuple[str, int]:
    """Precision and bits with which a model's folder has this name."""
    for precision in PRECISIONS:
        for bits in ALL_BITS:
            document = {**fingerprint, "precision": precision, "encoding": describe_encoding(bits)}
            if fmt.fingerprint_folder(document).rpartition("-")[2] == folder.rpartition("-")[2]:
                return precision, bits
    raise CacheMismatchError(
        f"{folder} is not of this model, whose folder in fp32 is "
        f"{fmt.fingerprint_folder(fingerprint)}; give the model that made it"
    )


def _prepare(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    revision: str | None,
    precision: str,
    device: str | None,
    bits: int,
    shard_rows: int | None,
    upstreams: Sequence[str],
) -> _Job:
    loaded = load_depth_model(
        model, revision=revision, device=_choose_device(device), precision=precision, bits=bits
    )
    name = fmt.fingerprint_folder(loaded.fingerprint)
    store = open_store(root)
    contents = read_contents(images)
    failed, present = _known_keys(contents.sizes, store, root, name, upstreams)
    present -= failed
    shape_of = _MapShapes(loaded)
    shapes = {
        key: shape_of(size)
        for key, size in contents.sizes.items()
        if key not in failed and key not in present
    }
    contents.sizes.clear()  # the plan is all that later steps need
    plan = plan_segment(shapes, fingerprint=name, shard_rows=shard_rows or DEFAULT_SHARD_ROWS)
    return _Job(
        model=loaded,
        store=store,
        fingerprint=name,
        contents=contents,
        num_present=len(present),
        bits=bits,
        plan=plan,
    )


def _choose_device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


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


class _MapShapes:
    """Shape of the map of an image of a given size, found out once per network input shape."""

    def __init__(self, model: DepthModel) -> None:
        self._model = model
        self._inputs: dict[tuple[int, int], tuple[int, int]] = {}
        self._outputs: dict[tuple[int, ...], tuple[int, int]] = {}

    def __call__(self, size: tuple[int, int]) -> tuple[int, int]:
        if size not in self._inputs:
            pixels = self._model.preprocess(np.zeros((*size, 3), np.uint8))
            shape = tuple(pixels.shape)
            if shape not in self._outputs:
                height, width = self._model.predict([pixels])[0].shape
                self._outputs[shape] = (height, width)
            self._inputs[size] = self._outputs[shape]
        return self._inputs[size]


def _compute_on_cluster(
    job: _Job,
    model: str,
    root: str,
    revision: str | None,
    batch_size: int,
    scheduler: str,
    workers: int,
    progress: Callable[[int], None],
) -> set[str]:
    """Let a cluster write the missing shards; returns the keys that it computed."""
    import torch

    from depthcache.stage_one.distributed import ModelRequest, compute_on_workers

    shards = job.missing_shards()
    if not shards:
        return set()
    folder = Path(model)
    request = ModelRequest(
        model=str(folder.resolve()) if folder.is_dir() else model,
        revision=revision,
        device=job.model.device,
        precision=job.model.precision,
        bits=job.bits,
        fingerprint=job.fingerprint,
        num_threads=torch.get_num_threads(),
    )
    return compute_on_workers(
        shards,
        job.contents.paths,
        request=request,
        root=root,
        prefix=job.prefix,
        shard_rows=job.plan.shard_rows,
        batch_size=batch_size,
        scheduler=scheduler,
        workers=workers,
        progress=progress,
    )


def _write_fingerprint(job: _Job) -> None:
    path = f"{job.fingerprint}/{fmt.FINGERPRINT}"
    text = fmt.canonical_json(job.model.fingerprint)
    try:
        existing = job.store.get(path)
    except CacheNotFoundError:
        job.store.put(path, text)
        return
    if existing != text:
        raise CacheMismatchError(f"{path} belongs to another fingerprint; use another root")


def _provenance(model: str | Path, job: _Job) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "model_source": str(model),
        "host": platform.node(),
        "device": job.model.device,
        "libraries": {
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
