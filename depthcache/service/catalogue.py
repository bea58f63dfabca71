"""What a cache root holds, kept up to date with what local runs and uploads add to it."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheNotFoundError, CacheUnreachableError, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.format.seal import is_segment_id, parse_seal
from depthcache.segments.fingerprint import is_cache_name
from depthcache.segments.reader import SegmentReader
from depthcache.service.roots import ServedRoot

CATALOGUE_VERSION = 1
_DIGEST = np.dtype("S32")

log = logging.getLogger("depthcache.service")


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object that may be read: `path` from the root; no `segment_id` for a fingerprint."""

    cache: str
    segment_id: str | None
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SealedSegment:
    """A published segment; `objects` maps paths inside it to what is stored."""

    cache: str
    segment_id: str
    objects: dict[str, StoredObject]
    seal: dict[str, Any]
    num_bytes: int
    sealed_time: float

    @property
    def prefix(self) -> str:
        """Its folder in the root."""
        return fmt.segment_prefix(self.cache, self.segment_id)


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One fingerprint folder."""

    name: str
    fingerprint: dict[str, Any]
    fingerprint_object: StoredObject
    segments: dict[str, SealedSegment]
    damaged_segments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where one image's map is."""

    segment_id: str
    bucket: str
    row: int


@dataclass(kw_only=True)
class _CacheIndex:
    segment_ids: tuple[str, ...]
    digests: npt.NDArray[np.bytes_]
    segments: npt.NDArray[np.int32]
    buckets: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    bucket_names: list[str]
    num_failed: int
    newest_first: npt.NDArray[np.intp]


@dataclass
class _Snapshot:
    caches: dict[str, CacheEntry] = field(default_factory=dict)


class Catalogue:
    """The caches and sealed segments under a root.

    Readers see one consistent snapshot; `refresh` replaces it. All methods may be called from any
    thread.

    Args:
        root: the cache root.
    """

    def __init__(self, root: ServedRoot) -> None:
        self.root = root
        self._snapshot = _Snapshot()
        self._refreshed = float("-inf")
        self._scan_lock = threading.Lock()
        self._index_lock = threading.Lock()
        self._indices: dict[str, _CacheIndex] = {}
        self._readers: dict[tuple[str, str], SegmentReader] = {}

    @property
    def caches(self) -> dict[str, CacheEntry]:
        """By folder name."""
        return self._snapshot.caches

    def refresh(self, *, force: bool = False) -> bool:
        """Look at the root again, unless forced only when the last listing is too old.

        Returns:
            Whether it was looked at.
        """
        if not force and self._is_fresh():
            return False
        with self._scan_lock:
            if not force and self._is_fresh():
                return True
            self._snapshot = _Snapshot(_scan_root(self.root, self._snapshot.caches))
            self._refreshed = time.monotonic()
        return True

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._refreshed < self.root.refresh_seconds

    def cache(self, name: str) -> CacheEntry | None:
        """The cache of a folder name."""
        return self._snapshot.caches.get(name)

    def segment(self, cache: str, segment_id: str) -> SealedSegment | None:
        """A sealed segment."""
        entry = self._snapshot.caches.get(cache)
        return entry.segments.get(segment_id) if entry else None

    def all_segments(self) -> list[SealedSegment]:
        """Every sealed segment of every cache."""
        return [s for entry in self._snapshot.caches.values() for s in entry.segments.values()]

    def find_object(self, url_path: str) -> StoredObject | None:
        """The object of `/{cache}/segments/{id}/{object}` or `/{cache}/fingerprint.json`.

        The path is looked up among the names that manifests list; it is never joined to a folder.
        """
        parts = url_path.removeprefix("/").split("/", 3)
        entry = self._snapshot.caches.get(parts[0])
        if entry is None:
            return None
        if len(parts) == 2 and parts[1] == fmt.FINGERPRINT:
            return entry.fingerprint_object
        if len(parts) != 4 or parts[1] != fmt.SEGMENTS:
            return None
        segment = entry.segments.get(parts[2])
        return segment.objects.get(parts[3]) if segment else None

    def locate(self, cache: str, digests: Sequence[str]) -> list[Location | None]:
        """Where the maps of these images are; None for absent ones, in the given order."""
        index = self._cache_index(cache)
        found, positions = _search(index, digests)
        return [
            Location(
                segment_id=index.segment_ids[index.segments[position]],
                bucket=index.bucket_names[index.buckets[position]],
                row=int(index.rows[position]),
            )
            if is_found
            else None
            for is_found, position in zip(found, positions, strict=True)
        ]

    def lookup_document(self, cache: str, digests: Sequence[str]) -> dict[str, Any]:
        """The same as `locate` as a compact JSON document.

        `locations[i]` is null, or [index into `segments`, index into `buckets`, row].
        """
        index = self._cache_index(cache)
        found, positions = _search(index, digests)
        if len(index.digests):
            triples = np.stack(
                [index.segments[positions], index.buckets[positions], index.rows[positions]], axis=1
            ).tolist()
        else:
            triples = [None] * len(digests)
        return {
            "num_digests": len(digests),
            "num_present": int(found.sum()),
            "segments": list(index.segment_ids),
            "buckets": index.bucket_names,
            "locations": [
                triple if is_found else None
                for is_found, triple in zip(found.tolist(), triples, strict=True)
            ],
        }

    def list_maps(
        self, cache: str, prefix: str, offset: int, limit: int
    ) -> tuple[int, list[dict[str, str]]]:
        """Keys of maps, those of the newest segment first, a page at a time.

        Args:
            cache: folder name.
            prefix: only keys that begin with these hexadecimal digits.
            offset: how many to leave out.
            limit: most to list.

        Returns:
            How many there are in all; `{"digest", "segment", "bucket"}` each.
        """
        index = self._cache_index(cache)
        positions = index.newest_first
        if prefix:
            first, last = (bytes.fromhex(prefix.ljust(64, digit)) for digit in "0f")
            begin = int(index.digests.searchsorted(np.array(first, _DIGEST)))
            end = int(index.digests.searchsorted(np.array(last, _DIGEST), side="right"))
            positions = np.arange(begin, end)
        return len(positions), [
            {
                "digest": bytes(index.digests[position]).ljust(32, b"\0").hex(),
                "segment": index.segment_ids[index.segments[position]],
                "bucket": index.bucket_names[index.buckets[position]],
            }
            for position in positions[offset : offset + limit]
        ]

    def num_maps(self, cache: str) -> int:
        """Images with a map, each counted once."""
        return len(self._cache_index(cache).digests)

    def num_failed(self, cache: str) -> int:
        """Images that segments record as unreadable."""
        return self._cache_index(cache).num_failed

    def reader(self, segment: SealedSegment) -> SegmentReader:
        """The reader of one segment, opened once; its index is verified."""
        key = (segment.cache, segment.segment_id)
        known = self._readers.get(key)
        if known is None:
            known = self._readers[key] = SegmentReader(self.root.store, segment.prefix)
        return known

    def _cache_index(self, cache: str) -> _CacheIndex:
        entry = self._snapshot.caches[cache]
        segment_ids = tuple(sorted(entry.segments))
        with self._index_lock:
            known = self._indices.get(cache)
            if known is not None and known.segment_ids == segment_ids:
                return known
            for key in [k for k in self._readers if k[0] == cache]:
                if key[1] not in entry.segments:
                    del self._readers[key]
            index = self._merge(entry, segment_ids)
            self._indices[cache] = index
            return index

    def _merge(self, entry: CacheEntry, segment_ids: tuple[str, ...]) -> _CacheIndex:
        digests, segments, buckets, rows = [], [], [], []
        bucket_names: list[str] = []
        num_failed = 0
        for number, segment_id in enumerate(segment_ids):
            try:
                index = self.reader(entry.segments[segment_id])
            except (DepthCacheError, OSError, ValueError) as error:
                log.warning(
                    "segment %s/%s has no readable index: %s", entry.name, segment_id, error
                )
                continue
            num_failed += len(index.failures)
            for name in index.bucket_names:
                if name not in bucket_names:
                    bucket_names.append(name)
            translation = np.array([bucket_names.index(name) for name in index.bucket_names] or [0])
            digests.append(np.ascontiguousarray(index.digests).view(_DIGEST).reshape(-1))
            segments.append(np.full(len(index.rows), number, dtype=np.int32))
            buckets.append(translation[index.buckets].astype(np.int32))
            rows.append(index.rows.astype(np.int64))
        if not digests:
            digests, segments = [np.empty(0, _DIGEST)], [np.empty(0, np.int32)]
            buckets, rows = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        unique, first = np.unique(np.concatenate(digests), return_index=True)
        segment_of_map = np.concatenate(segments)[first]
        sealed = np.array([-entry.segments[name].sealed_time for name in segment_ids] or [0.0])
        return _CacheIndex(
            segment_ids=segment_ids,
            digests=unique,
            segments=segment_of_map,
            buckets=np.concatenate(buckets)[first],
            rows=np.concatenate(rows)[first],
            bucket_names=bucket_names,
            num_failed=num_failed,
            newest_first=np.argsort(sealed[segment_of_map], kind="stable"),
        )


def _search(
    index: _CacheIndex, digests: Sequence[str]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    wanted = np.frombuffer(bytes.fromhex("".join(digests)), dtype=_DIGEST)
    if not len(index.digests):
        return np.zeros(len(wanted), dtype=bool), np.zeros(len(wanted), dtype=np.intp)
    positions = np.minimum(np.searchsorted(index.digests, wanted), len(index.digests) - 1)
    return index.digests[positions] == wanted, positions


def _scan_root(root: ServedRoot, known: dict[str, CacheEntry]) -> dict[str, CacheEntry]:
    caches: dict[str, CacheEntry] = {}
    for name in root.store.list_folders(""):
        if not is_cache_name(name):
            continue
        before = known.get(name)
        try:
            text = root.store.get(f"{name}/{fmt.FINGERPRINT}")
            fingerprint = json.loads(text)
        except (CacheNotFoundError, OSError, ValueError):
            continue
        if not isinstance(fingerprint, dict) or root.find_misplaced(name, [fmt.FINGERPRINT]):
            continue
        segments, damaged = _scan_segments(root, name, before.segments if before else {})
        caches[name] = CacheEntry(
            name=name,
            fingerprint=fingerprint,
            fingerprint_object=_stored(name, None, f"{name}/{fmt.FINGERPRINT}", text),
            segments=segments,
            damaged_segments=damaged,
        )
    return caches


def _scan_segments(
    root: ServedRoot, cache: str, known: dict[str, SealedSegment]
) -> tuple[dict[str, SealedSegment], tuple[str, ...]]:
    segments: dict[str, SealedSegment] = {}
    damaged = []
    for segment_id, sealed_time in sorted(root.list_sealed(cache).items()):
        if not is_segment_id(segment_id):
            continue
        before = known.get(segment_id)
        if before is not None and before.sealed_time == sealed_time:
            segments[segment_id] = before
            continue
        try:
            segments[segment_id] = _load_segment(root, cache, segment_id, sealed_time)
        except CacheUnreachableError:
            raise
        except (DepthCacheError, OSError, ValueError) as error:
            log.warning("segment %s/%s is not served: %s", cache, segment_id, error)
            damaged.append(segment_id)
    return segments, tuple(damaged)


def _load_segment(
    root: ServedRoot, cache: str, segment_id: str, sealed_time: float
) -> SealedSegment:
    prefix = fmt.segment_prefix(cache, segment_id)
    text = root.store.get(f"{prefix}/{fmt.SEALED}")
    seal = parse_seal(text)
    objects = {
        name: StoredObject(
            cache=cache,
            segment_id=segment_id,
            path=f"{prefix}/{name}",
            size=int(entry["size"]),
            sha256=entry["sha256"],
        )
        for name, entry in seal["objects"].items()
    }
    objects[fmt.SEALED] = _stored(cache, segment_id, f"{prefix}/{fmt.SEALED}", text)
    misplaced = root.find_misplaced(prefix, objects)
    if misplaced is not None:
        raise ValueError(f"object {misplaced!r} is a link out of its place")
    return SealedSegment(
        cache=cache,
        segment_id=segment_id,
        objects=objects,
        seal=seal,
        num_bytes=sum(stored.size for stored in objects.values()),
        sealed_time=sealed_time,
    )


def _stored(cache: str, segment_id: str | None, path: str, text: bytes) -> StoredObject:
    return StoredObject(
        cache=cache,
        segment_id=segment_id,
        path=path,
        size=len(text),
        sha256=hashlib.sha256(text).hexdigest(),
    )
