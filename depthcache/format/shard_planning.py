"""Which map goes to which row: pure arithmetic, done before the first write."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from depthcache.format.segment_format import (
    bucket_name,
    canonical_json,
    maps_object,
    parse_image_key,
)

_KEYS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard: the only unit of writing.

    Attributes:
        shape: (H, W) of its maps.
        number: position in its bucket.
        keys: image keys in row order; the first is row number · shard_rows.
    """

    shape: tuple[int, int]
    number: int
    keys: tuple[str, ...]

    @property
    def maps_object(self) -> str:
        """Path of the shard inside its segment."""
        return maps_object(self.bucket, self.number)

    @property
    def bucket(self) -> str:
        """Name of the bucket's arrays."""
        return bucket_name(self.shape)


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """All rows of one segment.

    Attributes:
        segment_id: 32 hex digits that depend on fingerprint, keys, shapes and shard_rows only.
        shard_rows: rows of a full shard.
        buckets: (H, W) → keys in row order.
    """

    segment_id: str
    shard_rows: int
    buckets: dict[tuple[int, int], tuple[str, ...]]

    @property
    def shards(self) -> list[ShardPlan]:
        """Every shard, bucket by bucket."""
        return [
            ShardPlan(
                shape=shape,
                number=start // self.shard_rows,
                keys=keys[start : start + self.shard_rows],
            )
            for shape, keys in self.buckets.items()
            for start in range(0, len(keys), self.shard_rows)
        ]


def plan_segment(
    shapes: Mapping[str, tuple[int, int]], *, fingerprint: str, shard_rows: int
) -> SegmentPlan:
    """Give every key a bucket and a row, whatever order the keys come in.

    Args:
        shapes: image key → (H, W) of its map.
        fingerprint: folder name.
        shard_rows: rows of a shard.

    Raises:
        ValueError: shard_rows is not positive, or a key is no image key.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows={shard_rows} must be positive")
    for key in shapes:
        parse_image_key(key)
    buckets: dict[tuple[int, int], tuple[str, ...]] = dict.fromkeys(
        sorted(set(shapes.values())), ()
    )
    members: dict[tuple[int, int], list[str]] = {shape: [] for shape in buckets}
    for key in sorted(shapes):
        members[shapes[key]].append(key)
    buckets = {shape: tuple(keys) for shape, keys in members.items()}
    return SegmentPlan(
        segment_id=_name_segment(fingerprint, shard_rows, buckets),
        shard_rows=shard_rows,
        buckets=buckets,
    )


def _name_segment(
    fingerprint: str, shard_rows: int, buckets: Mapping[tuple[int, int], tuple[str, ...]]
) -> str:
    """Hash of `[fingerprint, shard_rows, [[[H, W], keys], …]]` as canonical JSON.

    It is hashed piece by piece: the whole text would take as much memory again as the keys.
    """
    empty = canonical_json([fingerprint, shard_rows, []])
    total = hashlib.sha256(empty.removesuffix(b"]]"))
    for number, (shape, keys) in enumerate(buckets.items()):
        total.update((b"," if number else b"") + b"[" + canonical_json(list(shape)) + b",[")
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            piece = canonical_json(keys[start : start + _KEYS_AT_ONCE])[1:-1]
            total.update((b"," if start else b"") + piece)
        total.update(b"]]")
    total.update(b"]]")
    return total.hexdigest()[:32]
