"""Writes one segment: whole shards in any order by any process, the manifest last."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheIncompleteError
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import quantise
from depthcache.format.seal import make_seal, summarise_object
from depthcache.format.shard_planning import SegmentPlan, ShardPlan
from depthcache.storage.local_folder import LocalStore
from depthcache.storage.object_store import ObjectStore

# A map takes 5 ms, which must not hold a fast GPU up. Few cores are left to the forward pass.
_NUM_ENCODERS = min(max((os.cpu_count() or 1) // 4, 1), 8)


def hold_segment(store: ObjectStore, prefix: str) -> AbstractContextManager[None]:
    """Let one run write a segment; a second run of the same images waits, and finds it done.

    In a bucket nothing is held: there both compute the same bytes, given the same batch size.
    """
    return store.exclusive(prefix) if isinstance(store, LocalStore) else nullcontext()


def write_shard(
    store: ObjectStore,
    prefix: str,
    shard: ShardPlan,
    maps: Mapping[str, npt.NDArray[np.float32]],
    failures: Mapping[str, str],
    *,
    shard_rows: int,
    bits: int,
) -> dict[str, str]:
    """Write failures, ranges and last the maps, whose presence says that the shard is done.

    Args:
        store: where.
        prefix: folder of the segment.
        shard: what is to be in it.
        maps: key → (H, W) relative inverse depth.
        failures: key → reason, for keys that can never have a map. A key with neither is left to
            a later run.
        shard_rows: rows of a full shard.
        bits: significant bits; 32 keeps float32.

    Returns:
        All failures: those given, and maps that cannot be stored (not finite, other shape).
    """
    failed = dict(failures)
    chunks: list[bytes | None] = [None] * len(shard.keys)
    ranges = np.zeros((shard_rows, 2), dtype="<f4")

    def encode_row(row: int) -> None:
        key = shard.keys[row]
        inverse_depth = maps.get(key)
        if inverse_depth is None:
            return  # a failure, or an image that a later run can compute
        if inverse_depth.shape != shard.shape:
            failed[key] = f"depth has shape {inverse_depth.shape}, planned {shard.shape}"
            return
        try:
            codes, ranges[row] = quantise(inverse_depth, bits)
            chunks[row] = fmt.encode_map(codes, bits)
        except ValueError as error:
            failed[key] = str(error)

    with ThreadPoolExecutor(_NUM_ENCODERS) as encoders:
        list(encoders.map(encode_row, range(len(shard.keys))))
    if failed:
        store.put(
            f"{prefix}/failures/{shard.bucket}-{shard.number}.json", fmt.canonical_json(failed)
        )
    ranges_name = fmt.ranges_object(shard.bucket, shard.number)
    store.put(f"{prefix}/{ranges_name}", fmt.add_crc(ranges.tobytes()))
    store.put(f"{prefix}/{shard.maps_object}", fmt.encode_shard(chunks, shard_rows))
    return failed


def seal_segment(
    store: ObjectStore,
    prefix: str,
    plan: SegmentPlan,
    *,
    bits: int,
    provenance: Mapping[str, Any],
) -> None:
    """Write metadata and index, then the manifest that makes the segment visible.

    Raises:
        CacheIncompleteError: a shard of the plan is missing.
    """
    present = set(store.list_objects(prefix))
    entries: list[tuple[str, int, int]] = []
    buckets = [fmt.bucket_name(shape) for shape in plan.buckets]
    for shard in plan.shards:
        name = shard.maps_object
        if name not in present:
            raise CacheIncompleteError(f"{prefix}/{name} is missing; run stage one again")
        data = store.get(f"{prefix}/{name}")
        index = fmt.decode_shard_index(
            data[-fmt.shard_index_bytes(plan.shard_rows) :], plan.shard_rows, f"{prefix}/{name}"
        )
        first = shard.number * plan.shard_rows
        entries.extend(
            (key, buckets.index(shard.bucket), first + row)
            for row, key in enumerate(shard.keys)
            if not fmt.is_absent(index[row])
        )
    num_rows = {shape: len(keys) for shape, keys in plan.buckets.items()}
    metadata = segment_metadata(num_rows, sorted(entries), shard_rows=plan.shard_rows, bits=bits)
    for name, data in metadata.items():
        store.put(f"{prefix}/{name}", data)
    objects = {}
    for name in sorted(store.list_objects(prefix)):
        if name != fmt.SEALED and ".tmp-" not in name:
            objects[name] = summarise_object(store.get(f"{prefix}/{name}"))
    store.put(f"{prefix}/{fmt.SEALED}", make_seal(objects, provenance))


def segment_metadata(
    num_rows: Mapping[tuple[int, int], int],
    entries: Sequence[tuple[str, int, int]],
    *,
    shard_rows: int,
    bits: int,
) -> dict[str, bytes]:
    """Metadata and index: relative path → bytes.

    Args:
        num_rows: (H, W) of each bucket, sorted → its rows.
        entries: (image key, number of the bucket, row) of every map, sorted.
        shard_rows: rows of a full shard.
        bits: significant bits; 32 keeps float32.
    """
    num_maps = len(entries)
    attributes = {
        "depthcache": {
            "format_version": fmt.FORMAT_VERSION,
            "buckets": [fmt.bucket_name(shape) for shape in num_rows],
            "shard_rows": shard_rows,
            "bits": bits,
            "num_maps": num_maps,
        }
    }
    documents: dict[str, Any] = {"zarr.json": fmt.group_metadata(attributes)}
    for name in ("maps", "ranges", "index"):
        documents[f"{name}/zarr.json"] = fmt.group_metadata({})
    for shape, rows in num_rows.items():
        name = fmt.bucket_name(shape)
        documents[f"maps/{name}/zarr.json"] = fmt.maps_metadata(rows, shape, shard_rows, bits)
        documents[f"ranges/{name}/zarr.json"] = fmt.plain_metadata(
            [rows, 2], "float32", [shard_rows, 2]
        )
    full = max(num_maps, 1)
    documents["index/digests/zarr.json"] = fmt.plain_metadata([num_maps, 32], "uint8", [full, 32])
    documents["index/bucket/zarr.json"] = fmt.plain_metadata([num_maps], "uint16", [full])
    documents["index/row/zarr.json"] = fmt.plain_metadata([num_maps], "uint32", [full])
    files = {name: fmt.canonical_json(document) for name, document in documents.items()}
    if entries:
        digests = b"".join(fmt.parse_image_key(key) for key, _, _ in entries)
        files["index/digests/c/0/0"] = fmt.add_crc(digests)
        files["index/bucket/c/0"] = fmt.add_crc(
            np.array([bucket for _, bucket, _ in entries], dtype="<u2").tobytes()
        )
        files["index/row/c/0"] = fmt.add_crc(
            np.array([row for _, _, row in entries], dtype="<u4").tobytes()
        )
    return files
