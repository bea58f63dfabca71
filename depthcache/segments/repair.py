"""Rebuilds a damaged segment: intact maps are copied byte by byte, only lost ones are computed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheCorruptError, CacheIncompleteError, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import dequantise, quantise
from depthcache.format.seal import make_seal, summarise_object
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.reader import read_seal
from depthcache.segments.writer import segment_metadata
from depthcache.storage.local_folder import LocalStore

Shape = tuple[int, int]
ComputeMaps = Callable[[Iterable[str]], Mapping[str, npt.NDArray[np.float32]]]


@dataclass(kw_only=True)
class SegmentRepair:
    """What `repair_segment` did: objects removed, maps computed."""

    num_removed: int
    num_computed: int


def repair_segment(
    store: LocalStore,
    prefix: str,
    *,
    fingerprint: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    compute: ComputeMaps,
    provenance: Mapping[str, Any],
) -> SegmentRepair:
    """Replace what is damaged, remove what is stray; intact maps stay readable all the time.

    Rows come from the segment's own index. When that is damaged, the plan of the images given is
    used, if it is the plan that the segment's name was made from.

    Args:
        store: the root.
        prefix: `<fingerprint>/segments/<id>`.
        fingerprint: the folder's document.
        shapes: image key → (H, W) of its map, of the images that can be computed.
        compute: gives maps of keys.
        provenance: for the seal, when its own is lost.

    Raises:
        CacheIncompleteError: a map is lost whose image was not given, or the index is damaged and
            the images do not reproduce it; nothing was changed.
    """
    segment = _DamagedSegment(store, prefix)
    segment.find_layout(fingerprint, shapes)
    shards = [
        segment.read_shard(shape, number)
        for shape, rows in segment.num_rows.items()
        for number in range(-(-rows // segment.shard_rows))
    ]
    damaged = [shard for shard in shards if not shard.is_intact]
    lost = {key: shard.shape for shard in damaged for key in shard.lost.values()}
    absent = sorted(lost.keys() - shapes.keys())
    if absent:
        raise CacheIncompleteError(
            f"{prefix}: {len(lost)} maps are damaged, and the images of {len(absent)} of them were "
            f"not given; nothing was changed. Their sha256: {', '.join(absent[:20])}"
        )
    computed = compute(lost)
    for key, shape in lost.items():
        if key not in computed or computed[key].shape != shape:
            raise CacheIncompleteError(
                f"{prefix}: no map of image {key} could be computed; nothing was changed"
            )
    objects = dict(segment.failures)
    for shard in damaged:
        objects.update(_encode_shard(shard, computed, segment))
    buckets = sorted(segment.num_rows)
    entries = sorted((key, buckets.index(shape), row) for (shape, row), key in segment.keys.items())
    num_rows = {shape: segment.num_rows[shape] for shape in buckets}
    objects.update(
        segment_metadata(num_rows, entries, shard_rows=segment.shard_rows, bits=segment.bits)
    )
    summaries = {name: summarise_object(data) for name, data in objects.items()}
    for shard in shards:
        summaries.update(shard.intact)
    present = store.list_objects(prefix)
    for name, data in objects.items():
        if name not in present or store.get(f"{prefix}/{name}") != data:
            store.put(f"{prefix}/{name}", data)
    if segment.seal is not None:
        provenance = segment.seal["provenance"]
    store.put(f"{prefix}/{fmt.SEALED}", make_seal(summaries, provenance))
    strays = [name for name in present if name not in summaries and name != fmt.SEALED]
    for name in strays:
        (store.root / prefix / name).unlink()
    return SegmentRepair(num_removed=len(strays), num_computed=len(lost))


def has_index(store: LocalStore, prefix: str) -> bool:
    """Whether every map and the index were written, so that at most the seal is missing."""
    return "index/row/zarr.json" in store.list_objects(prefix)


@dataclass(kw_only=True)
class _Shard:
    """One shard: either intact, or the chunks and ranges that are left and the keys that are not.

    Row numbers count from the start of the shard.
    """

    shape: Shape
    number: int
    intact: dict[str, dict[str, Any]] = field(default_factory=dict)
    chunks: dict[int, bytes] = field(default_factory=dict)
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)

    @property
    def is_intact(self) -> bool:
        return bool(self.intact)

    @property
    def names(self) -> tuple[str, str]:
        bucket = fmt.bucket_name(self.shape)
        return fmt.maps_object(bucket, self.number), fmt.ranges_object(bucket, self.number)


class _DamagedSegment:
    """What can still be trusted of a segment: objects that equal the seal, checksummed chunks."""

    def __init__(self, store: LocalStore, prefix: str) -> None:
        self.store = store
        self.prefix = prefix
        self.seal: dict[str, Any] | None = None
        with contextlib.suppress(DepthCacheError):
            self.seal = read_seal(store, prefix)
        self.shard_rows = self.bits = 0
        self.num_rows: dict[Shape, int] = {}
        self.keys: dict[tuple[Shape, int], str] = {}
        self.failures: dict[str, bytes] = {}

    def find_layout(self, fingerprint: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
        """Find out which rows there are, and whose they are."""
        present = self.store.list_objects(self.prefix)
        listed = [*present, *(self.seal["objects"] if self.seal else ())]
        names = [name.split("/")[1] for name in listed if re.match(r"maps/\d+x\d+/", name)]
        buckets = sorted({fmt.parse_bucket_name(name) for name in names})
        for kind in ("ranges", "maps"):
            for shape in buckets:
                metadata = self._json(f"{kind}/{fmt.bucket_name(shape)}/zarr.json")
                if metadata is not None:
                    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
                    self.shard_rows = int(grid[0])
                    self.num_rows[shape] = int(metadata["shape"][0])
        if not self.shard_rows:
            root = self._json("zarr.json")
            if root is None:
                raise CacheIncompleteError(f"{self.prefix}: all its metadata is damaged")
            self.shard_rows = int(root["attributes"]["depthcache"]["shard_rows"])
        self.bits = int(fingerprint["encoding"]["bits"])
        for name in present:
            if name.startswith("failures/") and self._json(name) is not None:
                self.failures[name] = self.store.get(f"{self.prefix}/{name}")
        try:
            digests = self._array("index/digests/c/0/0", "u1").reshape(-1, 32)
            places = self._array("index/bucket/c/0", "<u2").tolist()
            rows = self._array("index/row/c/0", "<u4").tolist()
            for digest, place, row in zip(digests, places, rows, strict=True):
                self.keys[buckets[place], row] = digest.tobytes().hex()
        except (DepthCacheError, ValueError, IndexError):
            self._take_plan(shapes)
        for shape, row in self.keys:
            self.num_rows[shape] = max(self.num_rows.get(shape, 0), row + 1)

    def read_shard(self, shape: Shape, number: int) -> _Shard:
        """Check every map of a shard."""
        shard = _Shard(shape=shape, number=number)
        first = number * self.shard_rows
        keys = {
            local: self.keys[shape, first + local]
            for local in range(self.shard_rows)
            if (shape, first + local) in self.keys
        }
        try:
            data, ranges_data = (self.store.get(f"{self.prefix}/{name}") for name in shard.names)
            tail = data[-fmt.shard_index_bytes(self.shard_rows) :]
            index = fmt.decode_shard_index(tail, self.shard_rows, self.prefix)
            ranges = self._array(shard.names[1], "<f4").reshape(self.shard_rows, 2)
        except (DepthCacheError, ValueError):
            shard.lost = keys
            return shard
        for local, key in keys.items():
            start, length = (int(value) for value in index[local])
            low, high = (float(value) for value in ranges[local])
            chunk = data[start : start + length] if start < len(data) else b""
            try:
                codes = fmt.decode_map(chunk, shape, self.bits, self.prefix)
                dequantise(codes, (low, high), self.bits)
            except (CacheCorruptError, ValueError):
                shard.lost[local] = key
                continue
            shard.chunks[local], shard.ranges[local] = chunk, (low, high)
        contents = dict(zip(shard.names, (data, ranges_data), strict=True))
        if not shard.lost and all(self._is_listed(name, text) for name, text in contents.items()):
            shard.intact = {name: summarise_object(text) for name, text in contents.items()}
            shard.chunks, shard.ranges = {}, {}
        return shard

    def _take_plan(self, shapes: Mapping[str, Shape]) -> None:
        fingerprint, _, segment_id = self.prefix.split("/")
        failed = {key for data in self.failures.values() for key in json.loads(data)}
        candidates = [dict(shapes)]
        with contextlib.suppress(DepthCacheError, ValueError):
            digests = self._array("index/digests/c/0/0", "u1").reshape(-1, 32)
            known = {digest.tobytes().hex() for digest in digests} | failed
            candidates.append({key: shape for key, shape in shapes.items() if key in known})
        for candidate in candidates:
            plan = plan_segment(candidate, fingerprint=fingerprint, shard_rows=self.shard_rows)
            if plan.segment_id == segment_id:
                break
        else:
            raise CacheIncompleteError(
                f"{self.prefix}: its index is damaged, and the images given are not those that it "
                "was made from, so nobody knows which map is whose; nothing was changed. Give "
                "exactly these images, or delete the folder and compute them again"
            )
        self.num_rows = {shape: len(keys) for shape, keys in plan.buckets.items()}
        self.keys = {
            (shape, row): key
            for shape, keys in plan.buckets.items()
            for row, key in enumerate(keys)
            if key not in failed
        }

    def _is_listed(self, name: str, data: bytes) -> bool:
        if self.seal is None:
            return True
        return bool(self.seal["objects"].get(name) == summarise_object(data))

    def _array(self, name: str, dtype: str) -> npt.NDArray[Any]:
        return np.frombuffer(fmt.strip_crc(self.store.get(f"{self.prefix}/{name}"), name), dtype)

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            data = self.store.get(f"{self.prefix}/{name}")
            document = json.loads(data)
        except (DepthCacheError, ValueError):
            return None
        is_trusted = self._is_listed(name, data) and fmt.canonical_json(document) == data
        return document if isinstance(document, dict) and is_trusted else None


def _encode_shard(
    shard: _Shard, computed: Mapping[str, npt.NDArray[np.float32]], segment: _DamagedSegment
) -> dict[str, bytes]:
    chunks: list[bytes | None] = [None] * segment.shard_rows
    ranges = np.zeros((segment.shard_rows, 2), dtype="<f4")
    for row, chunk in shard.chunks.items():
        chunks[row], ranges[row] = chunk, shard.ranges[row]
    for row, key in shard.lost.items():
        codes, ranges[row] = quantise(computed[key], segment.bits)
        chunks[row] = fmt.encode_map(codes, segment.bits)
    maps_name, ranges_name = shard.names
    return {
        ranges_name: fmt.add_crc(ranges.tobytes()),
        maps_name: fmt.encode_shard(chunks, segment.shard_rows),
    }
