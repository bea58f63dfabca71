"""Reads one sealed segment: verified index, verified shard indices, one range request a map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheCorruptError, CacheNotFoundError
from depthcache.format import segment_format as fmt
from depthcache.format.byte_spans import join_spans
from depthcache.format.quantisation import check_bits, dequantise
from depthcache.format.seal import parse_seal
from depthcache.storage.object_store import ObjectStore

_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class EncodedMap:
    """One map as it lies in a shard.

    Attributes:
        chunk: compressed codes with their crc32c, which whoever read them has checked.
        shape: (H, W).
        bits: significant bits.
        value_range: the map's minimum and maximum.
        place: where it was read, for errors.
    """

    chunk: bytes
    shape: tuple[int, int]
    bits: int
    value_range: tuple[float, float]
    place: str

    def decode(self) -> npt.NDArray[np.float32]:
        """(H, W) relative inverse depth, larger = nearer.

        Raises:
            CacheCorruptError: bytes differ from what was written.
        """
        codes = fmt.decode_checked(memoryview(self.chunk)[:-4], self.shape, self.bits, self.place)
        try:
            return dequantise(codes, self.value_range, self.bits)
        except ValueError as error:
            raise CacheCorruptError(f"{self.place}: {error}") from error


class SegmentReader:
    """One sealed segment.

    Args:
        store: where it lies.
        prefix: its folder in the store, `<fingerprint>/segments/<id>`.

    Raises:
        CacheNotFoundError: it is not sealed.
        CacheMismatchError: its format is newer.
        CacheCorruptError: its manifest, metadata or index is damaged.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self.store = store
        self.prefix = prefix
        self.seal = read_seal(store, prefix)
        objects = self.seal["objects"]
        self.sizes = {name: int(entry["size"]) for name, entry in objects.items()}
        try:
            self._read_metadata()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheCorruptError(
                f"{prefix}: metadata is not of the format: {error!r}"
            ) from error
        self._shards: dict[tuple[int, int], tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}

    def _read_metadata(self) -> None:
        attributes = self._json("zarr.json")["attributes"]["depthcache"]
        self.shard_rows = int(attributes["shard_rows"])
        self.bits = int(attributes["bits"])
        check_bits(self.bits)
        self.bucket_names: list[str] = list(attributes["buckets"])
        self.shapes = [fmt.parse_bucket_name(name) for name in self.bucket_names]
        self.num_maps = int(attributes["num_maps"])
        self.digests = self._array("index/digests/c/0/0", "u1").reshape(self.num_maps, 32)
        self.buckets = self._array("index/bucket/c/0", "<u2")
        self.rows = self._array("index/row/c/0", "<u4")
        self.failures: dict[str, str] = {}
        for name in self.sizes:
            if name.startswith("failures/"):
                self.failures.update(self._json(name))
        if not len(self.buckets) == len(self.rows) == self.num_maps or self.shard_rows < 1:
            raise ValueError(f"{self.num_maps} maps, {len(self.rows)} rows in the index")
        if self.num_maps and int(self.buckets.max()) >= len(self.shapes):
            raise ValueError("the index names a bucket that does not exist")
        # Beside the digests these 8 bytes a map are all that finding a map needs: a dictionary
        # takes 250.
        self._prefixes = self.digests[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)
        if (self._prefixes[1:] < self._prefixes[:-1]).any():
            raise ValueError("the index is not sorted by digest")

    def find(self, digest: bytes) -> int | None:
        """Position in the index of an image's 32-byte digest; None when it is not there."""
        prefix = np.uint64(int.from_bytes(digest[:8], "big"))
        position = int(self._prefixes.searchsorted(prefix))
        while position < self.num_maps and self._prefixes[position] == prefix:
            if self.digests[position].tobytes() == digest:
                return position
            position += 1
        return None

    def read(self, bucket: int, row: int) -> npt.NDArray[np.float32]:
        """One map: (H, W) relative inverse depth, larger = nearer.

        Raises:
            CacheCorruptError: bytes differ from what was written.
        """
        return self.fetch_many([(bucket, row)])[0].decode()

    def fetch_many(self, places: Sequence[tuple[int, int]]) -> list[EncodedMap]:
        """Maps of several (bucket, row), in order, checked; neighbours share a range request.

        Raises:
            CacheCorruptError: bytes differ from what was written.
        """
        by_shard: dict[tuple[int, int], list[int]] = {}
        for position, (bucket, row) in enumerate(places):
            by_shard.setdefault((bucket, row // self.shard_rows), []).append(position)
        found: dict[int, EncodedMap] = {}
        for (bucket, number), positions in by_shard.items():
            rows = [places[position][1] for position in positions]
            encoded = _read_twice(partial(self._fetch_rows, bucket, number, rows))
            found.update(zip(positions, encoded, strict=True))
        return [found[position] for position in range(len(places))]

    def _fetch_rows(self, bucket: int, number: int, rows: Sequence[int]) -> list[EncodedMap]:
        index, ranges = _read_twice(partial(self._shard, bucket, number))
        where = [f"{self.prefix}/maps/{self.bucket_names[bucket]} row {row}" for row in rows]
        entries = [index[row % self.shard_rows] for row in rows]
        for entry, what in zip(entries, where, strict=True):
            if fmt.is_absent(entry):
                raise CacheCorruptError(f"{what}: the shard has no map in this row")
        spans = [(int(start), int(length)) for start, length in entries]
        shard = f"{self.prefix}/{fmt.maps_object(self.bucket_names[bucket], number)}"
        chunks: dict[int, bytes] = {}
        for joined in join_spans(spans):
            try:
                data = self.store.get_range(shard, joined.start, joined.stop - joined.start)
            except CacheNotFoundError as error:
                raise CacheCorruptError(f"{where[0]}: the shard is missing") from error
            for member in joined.members:
                start, length = spans[member]
                chunks[member] = data[start - joined.start :][:length]
        encoded = []
        for member, (row, what) in enumerate(zip(rows, where, strict=True)):
            fmt.strip_crc(chunks[member], what)
            low, high = (float(value) for value in ranges[row % self.shard_rows])
            encoded.append(
                EncodedMap(
                    chunk=chunks[member],
                    shape=self.shapes[bucket],
                    bits=self.bits,
                    value_range=(low, high),
                    place=what,
                )
            )
        return encoded

    def _shard(self, bucket: int, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        known = self._shards.get((bucket, number))
        if known is not None:
            return known
        name = fmt.maps_object(self.bucket_names[bucket], number)
        what = f"{self.prefix}/{name}"
        size = self.sizes.get(name)
        length = fmt.shard_index_bytes(self.shard_rows)
        if size is None or size < length:
            raise CacheCorruptError(f"{what}: the manifest has no such shard")
        try:
            data = self.store.get_range(what, size - length, length)
        except CacheNotFoundError as error:
            raise CacheCorruptError(f"{what}: the shard is missing") from error
        index = fmt.decode_shard_index(data, self.shard_rows, what)
        ranges = self._array(fmt.ranges_object(self.bucket_names[bucket], number), "<f4")
        if ranges.size != 2 * self.shard_rows:
            raise CacheCorruptError(f"{what}: its ranges have {ranges.size} values")
        known = (index, ranges.reshape(self.shard_rows, 2))
        self._shards[bucket, number] = known
        return known

    def _array(self, name: str, dtype: str) -> npt.NDArray[Any]:
        if name not in self.sizes and self.num_maps == 0:
            return np.zeros(0, dtype=dtype)
        payload = fmt.strip_crc(self._checked(name), f"{self.prefix}/{name}")
        return np.frombuffer(payload, dtype=dtype)

    def _json(self, name: str) -> Any:
        return json.loads(self._checked(name))

    def _checked(self, name: str) -> bytes:
        entry = self.seal["objects"].get(name)
        if entry is None:
            raise CacheCorruptError(f"{self.prefix}/sealed.json does not list {name}")
        try:
            data = self.store.get(f"{self.prefix}/{name}")
        except CacheNotFoundError as error:
            raise CacheCorruptError(f"{self.prefix}/{name} is missing") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CacheCorruptError(f"{self.prefix}/{name}: sha256 differs from sealed.json")
        return data


def _read_twice(read: Callable[[], _Read]) -> _Read:
    """A bit that flipped on the way is right the second time, one that flipped at rest is not."""
    try:
        return read()
    except CacheCorruptError:
        return read()


def read_seal(store: ObjectStore, prefix: str) -> dict[str, Any]:
    """Read and check a segment's manifest.

    Raises:
        CacheNotFoundError: the segment is not sealed.
        CacheCorruptError, CacheMismatchError: as `parse_seal`.
    """
    name = f"{prefix}/{fmt.SEALED}"
    return parse_seal(store.get(name), name)
