"""Stage one: depth of many images into one sealed segment, resumable at every shard."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache import segment_format as fmt
from depthcache.cache_reader import DepthCache
from depthcache.depth_models import DepthModel, load_depth_model
from depthcache.errors import CacheMismatchError, CacheNotFoundError, ImageDecodeError
from depthcache.image_decoding import decode_image, image_key, read_image_size
from depthcache.object_stores import ObjectStore, open_store
from depthcache.quantisation import DEFAULT_BITS
from depthcache.segment_writer import seal_segment, write_shard
from depthcache.shard_planning import SegmentPlan, ShardPlan, plan_segment

DEFAULT_SHARD_ROWS = 64
_BYTES_PER_CELL = 0.95


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
    paths: dict[str, Path]
    files_of: dict[str, list[Path]]
    failures: dict[Path, str]
    num_present: int
    plan: SegmentPlan

    @property
    def prefix(self) -> str:
        return f"{self.fingerprint}/segments/{self.plan.segment_id}"


def precompute_depth(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    *,
    revision: str | None = None,
    batch_size: int = 4,
    precision: str = "fp32",
    device: str | None = None,
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
    job = _prepare(images, model, root, revision, precision, device, shard_rows, upstreams)
    _write_fingerprint(job)
    num_total = sum(len(keys) for keys in job.plan.buckets.values())
    tried: set[str] = set()
    if scheduler is not None and num_total:
        tried |= _compute_on_cluster(
            job, str(model), root, revision, batch_size, scheduler, workers, progress
        )
    present = set(job.store.list_objects(job.prefix)) if num_total else set()
    reasons: dict[str, str] = {}
    passing: dict[str, str] = {}
    unresolved: list[ShardPlan] = []
    done = 0
    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(1) as writer:
        pending: list[Future[dict[str, str]]] = []
        shards = [s for s in job.plan.shards if _shard_name(s) not in present]
        done = num_total - sum(len(s.keys) for s in shards)
        if progress is not None and num_total:
            progress(done, num_total)
        batches = [
            (shard, shard.keys[i : i + batch_size])
            for shard in shards
            for i in range(0, len(shard.keys), batch_size)
        ]
        ahead = max(2, -(-2 * workers // batch_size))
        loads: dict[int, list[Future[Any]]] = {}
        maps: dict[str, npt.NDArray[np.float32]] = {}
        failed: dict[str, str] = {}
        for number, (shard, keys) in enumerate(batches):
            for coming in range(number, min(number + ahead + 1, len(batches))):
                if coming not in loads:
                    loads[coming] = [
                        readers.submit(_load, job.model, job.paths[key], key)
                        for key in batches[coming][1]
                    ]
            pixels = _take_loaded(keys, loads.pop(number), failed, passing)
            maps.update(_predict(job.model, pixels))
            done += len(keys)
            tried.update(pixels)
            if progress is not None:
                progress(done, num_total)
            if keys[-1] != shard.keys[-1]:
                continue
            if not maps and not failed:
                unresolved.append(shard)
            else:
                if len(pending) > 1:
                    reasons.update(pending.pop(0).result())
                pending.append(
                    writer.submit(
                        write_shard,
                        job.store,
                        job.prefix,
                        shard,
                        maps,
                        failed,
                        shard_rows=job.plan.shard_rows,
                        bits=DEFAULT_BITS,
                    )
                )
                maps, failed = {}, {}
        for future in pending:
            reasons.update(future.result())
    # A segment of which nothing was resolved would be planned again and taken for done.
    if num_total and len(unresolved) < len(job.plan.shards):
        _seal(job, unresolved, _provenance(model, job))
    failures = _collect_failures(job, root, {**passing, **reasons})
    return PrecomputeSummary(
        cache_url=f"{str(root).rstrip('/')}/{job.fingerprint}",
        fingerprint=job.fingerprint,
        num_images=len(images),
        num_unique=len(job.files_of),
        num_present=job.num_present,
        num_computed=len(tried - reasons.keys()),
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
    shard_rows: int | None = None,
    workers: int = 2,
    scheduler: str | None = None,
    upstreams: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> DepthPlan:
    """What `precompute_depth` with the same arguments would do; writes nothing."""
    del batch_size, workers, scheduler, progress
    job = _prepare(images, model, root, revision, precision, device, shard_rows, upstreams)
    present = set(job.store.list_objects(job.prefix))
    shards = [s for s in job.plan.shards if _shard_name(s) not in present]
    return DepthPlan(
        cache_url=f"{str(root).rstrip('/')}/{job.fingerprint}",
        fingerprint=job.fingerprint,
        segment_id=job.plan.segment_id,
        num_images=len(images),
        num_unique=len(job.files_of),
        num_present=job.num_present,
        num_to_compute=sum(len(s.keys) for s in shards),
        num_failed=len(job.failures),
        num_shards=len(shards),
        estimated_bytes=int(
            sum(len(s.keys) * s.shape[0] * s.shape[1] * _BYTES_PER_CELL for s in shards)
        ),
    )


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


def _seal(job: _Job, unresolved: Sequence[ShardPlan], provenance: dict[str, Any]) -> None:
    rows = job.plan.shard_rows
    for shard in unresolved:
        write_shard(job.store, job.prefix, shard, {}, {}, shard_rows=rows, bits=DEFAULT_BITS)
    seal_segment(job.store, job.prefix, job.plan, bits=DEFAULT_BITS, provenance=provenance)


def _collect_failures(job: _Job, root: str, reasons: dict[str, str]) -> dict[Path, str]:
    """Why each file has no depth: this run's reasons, and those that segments record."""
    cache = DepthCache.open(root, fingerprint=job.fingerprint, store=job.store)
    known = {**cache.failures(), **reasons}
    for key in cache.missing(key for keys in job.plan.buckets.values() for key in keys):
        known.setdefault(key, "a run that was killed could not read it; run again")
    failures = dict(job.failures)
    for key, reason in known.items():
        failures.update(dict.fromkeys(job.files_of.get(key, []), reason))
    return failures


class ImageDepths:
    """Maps of given images, computed when asked for: what repair needs of stage one.

    Args:
        images: image files; those that cannot be read are left out.
        model: depth model.
        options: `revision`, `precision`, `device` and `batch_size` of `precompute_depth`.
    """

    def __init__(
        self,
        images: Sequence[Path],
        model: str | Path,
        *,
        revision: str | None = None,
        precision: str = "fp32",
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        self._model = load_depth_model(
            model, revision=revision, device=_choose_device(device), precision=precision
        )
        self._batch_size = batch_size
        self.source = str(model)
        self.fingerprint = self._model.fingerprint
        contents = _read_images(images)
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
                    pixels[key] = _load(self._model, self._paths[key], key)
            found = _predict(self._model, pixels)
            maps.update({key: m for key, m in found.items() if np.isfinite(m).all()})
        return maps


def _prepare(
    images: Sequence[Path],
    model: str | Path,
    root: str,
    revision: str | None,
    precision: str,
    device: str | None,
    shard_rows: int | None,
    upstreams: Sequence[str],
) -> _Job:
    loaded = load_depth_model(
        model, revision=revision, device=_choose_device(device), precision=precision
    )
    name = fmt.fingerprint_folder(loaded.fingerprint)
    store = open_store(root)
    contents = _read_images(images)
    known = _known_keys(store, root, name, upstreams)
    wanted = {key: size for key, size in contents.sizes.items() if key not in known[1]}
    missing = {key: size for key, size in wanted.items() if key not in known[0]}
    shape_of = _MapShapes(loaded)
    plan = plan_segment(
        {key: shape_of(size) for key, size in missing.items()},
        fingerprint=name,
        shard_rows=shard_rows or DEFAULT_SHARD_ROWS,
    )
    return _Job(
        model=loaded,
        store=store,
        fingerprint=name,
        paths=contents.paths,
        files_of=contents.files_of,
        failures=contents.failures,
        num_present=len(wanted) - len(missing),
        plan=plan,
    )


@dataclass(kw_only=True)
class _Contents:
    """Different image contents: key → first path, all paths, (H, W); path → why it has no size."""

    paths: dict[str, Path] = field(default_factory=dict)
    files_of: dict[str, list[Path]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)


def _read_images(images: Sequence[Path]) -> _Contents:
    contents = _Contents()
    unreadable: dict[str, str] = {}
    for path in dict.fromkeys(Path(p) for p in images):
        try:
            data = path.read_bytes()
        except OSError as error:
            contents.failures[path] = f"cannot be read: {error.strerror or error}"
            continue
        key = image_key(data)
        contents.files_of.setdefault(key, []).append(path)
        if key in contents.paths or key in unreadable:
            continue
        try:
            contents.sizes[key] = read_image_size(data)
            contents.paths[key] = path
        except ImageDecodeError as error:
            unreadable[key] = str(error)
    for key, reason in unreadable.items():
        contents.failures.update(dict.fromkeys(contents.files_of[key], reason))
    return contents


def _choose_device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _known_keys(
    store: ObjectStore, root: str, name: str, upstreams: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Keys with depth in the own or an upstream cache, and keys recorded as failures."""
    present: set[str] = set()
    failed: set[str] = set()
    for address in (root, *upstreams):
        try:
            if address == root:
                cache = DepthCache.open(address, fingerprint=name, store=store)
            else:
                cache = DepthCache.open(address, fingerprint=name)
        except CacheNotFoundError:
            continue
        present.update(cache.keys())
        if address == root:
            failed.update(cache.failures())
    return present, failed


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
    progress: Callable[[int, int], None] | None,
) -> set[str]:
    """Let a cluster write the missing shards; returns the keys that it computed."""
    import torch

    from depthcache.distributed import ModelRequest, compute_shards

    present = set(job.store.list_objects(job.prefix))
    shards = [s for s in job.plan.shards if _shard_name(s) not in present]
    if not shards:
        return set()
    num_total = sum(len(keys) for keys in job.plan.buckets.values())
    done = num_total - sum(len(s.keys) for s in shards)

    def count(num_keys: int) -> None:
        nonlocal done
        done += num_keys
        if progress is not None:
            progress(done, num_total)

    folder = Path(model)
    request = ModelRequest(
        model=str(folder.resolve()) if folder.is_dir() else model,
        revision=revision,
        device=job.model.device,
        precision=job.model.precision,
        fingerprint=job.fingerprint,
        num_threads=torch.get_num_threads(),
    )
    return compute_shards(
        shards,
        job.paths,
        request=request,
        root=root,
        prefix=job.prefix,
        shard_rows=job.plan.shard_rows,
        batch_size=batch_size,
        scheduler=scheduler,
        workers=workers,
        progress=count,
    )


def _load(model: DepthModel, path: Path, key: str) -> Any:
    data = path.read_bytes()
    if image_key(data) != key:
        raise OSError(f"{path} changed while the run was reading it")
    return model.preprocess(decode_image(data))


def _predict(model: DepthModel, pixels: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for key, tensor in pixels.items():
        groups.setdefault(tuple(tensor.shape), []).append(key)
    maps: dict[str, npt.NDArray[np.float32]] = {}
    for keys in groups.values():
        maps.update(zip(keys, model.predict([pixels[k] for k in keys]), strict=True))
    return maps


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


def _shard_name(shard: ShardPlan) -> str:
    return f"maps/{shard.bucket}/c/{shard.number}/0/0"
