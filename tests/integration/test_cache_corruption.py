"""Every damage of every object of a cache is found, and no reader takes it for depth."""

from __future__ import annotations

import numpy as np
import pytest

from depthcache import DepthCache, DepthCacheError
from depthcache.format import segment_format as fmt
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.verification import validate_segment
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.object_store import MemoryStore

FINGERPRINT = {"format_version": 1, "model": "m"}
FOLDER = fmt.fingerprint_folder(FINGERPRINT)
KEYS = [f"{number:064x}" for number in range(6)]
SHAPES = {key: (3, 4 + (number > 3)) for number, key in enumerate(KEYS)}
RNG = np.random.default_rng(0)
MAPS = {key: RNG.normal(size=SHAPES[key]).astype(np.float32) for key in KEYS[1:]}
KINDS = {
    "fingerprint.json", "sealed.json", "group", "maps metadata", "maps", "ranges metadata",
    "ranges", "index metadata", "index", "failures",
}  # fmt: skip


@pytest.fixture(scope="module", params=[12, 32])
def cache(request):
    """A segment of two buckets with two shards and one, a failure among them: store, prefix."""
    store = MemoryStore()
    plan = plan_segment(SHAPES, fingerprint=FOLDER, shard_rows=2)
    prefix = f"{FOLDER}/segments/{plan.segment_id}"
    store.put(f"{FOLDER}/fingerprint.json", fmt.canonical_json(FINGERPRINT))
    for shard in plan.shards:
        failed = {KEYS[0]: "not an image"} if KEYS[0] in shard.keys else {}
        write_shard(store, prefix, shard, MAPS, failed, shard_rows=2, bits=request.param)
    seal_segment(store, prefix, plan, bits=request.param, provenance={})
    return store, prefix


def _kind(name):
    if "/segments/" not in name:
        return "fingerprint.json"
    parts = name.split("/")[3:]
    if parts == ["zarr.json"] or parts[1:] == ["zarr.json"]:
        return "group"
    return f"{parts[0]} metadata" if parts[-1] == "zarr.json" else parts[0]


def _is_found(store, prefix):
    """Whether opening the cache or validating its segment tells that something is wrong."""
    try:
        DepthCache.open("root", fingerprint=FOLDER, store=store)
    except DepthCacheError:
        return True
    problems, _, _ = validate_segment(store, prefix)
    return bool(problems)


def _read_all(store):
    """Maps that a reader gets; what raises is left out."""
    maps = {}
    try:
        opened = DepthCache.open("root", fingerprint=FOLDER, store=store)
        for key in MAPS:
            try:
                maps[key] = opened.read(key)
            except DepthCacheError:
                continue
    except DepthCacheError:
        pass
    return maps


def _damages(data, num_flips):
    """Flipped bits all over an object, cuts, additions; None is deletion."""
    rng = np.random.default_rng(len(data))
    places = np.unique(np.linspace(0, len(data) - 1, num_flips).astype(int))
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        yield f"flip at {place}", bytes(flipped)
    for length in sorted({0, 1, len(data) // 2, len(data) - 1} - {len(data)}):
        yield f"cut to {length}", data[:length]
    yield "one byte more", data + b"\0"
    yield "deleted", None


def test_every_damage_is_found_and_never_read_as_depth(cache):
    store, prefix = cache
    truth = _read_all(store)
    assert sorted(truth) == sorted(MAPS)
    assert not _is_found(store, prefix)
    seen, num_damages = set(), 0
    for name, data in sorted(store.objects.items()):
        seen.add(_kind(name))
        for what, damaged in _damages(data, num_flips=24):
            broken = MemoryStore()
            broken.objects = {**store.objects, name: damaged}
            if damaged is None:
                del broken.objects[name]
            assert _is_found(broken, prefix), f"{name}: {what} was not found"
            for key, inverse_depth in _read_all(broken).items():
                assert np.array_equal(inverse_depth, truth[key]), f"{name}: {what} was read"
            num_damages += 1
    assert seen == KINDS
    assert num_damages >= 500


@pytest.mark.parametrize(("kind", "last"), [("maps", "0/0"), ("ranges", "0")])
def test_exchanged_objects_are_found(cache, kind, last):
    """Two whole, valid objects in each other's place: only the seal tells."""
    store, prefix = cache
    names = [f"{prefix}/{kind}/3x4/c/{number}/{last}" for number in (0, 1)]
    swapped = MemoryStore()
    swapped.objects = dict(store.objects)
    for name, other in zip(names, reversed(names), strict=True):
        swapped.objects[name] = store.objects[other]
    assert _is_found(swapped, prefix)
