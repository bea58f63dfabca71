"""One suite for every place where a cache can lie: disk, memory, HTTP and S3."""

from __future__ import annotations

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from depthcache import DepthCache
from depthcache.errors import (
    CacheCorruptError,
    CacheMissError,
    CacheNotFoundError,
    CacheUnreachableError,
)
from depthcache.format import segment_format as fmt
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.bucket import BucketStore
from depthcache.storage.http import HTTPStore
from depthcache.storage.local_folder import LocalStore
from depthcache.storage.object_store import MemoryStore

FINGERPRINT = {"encoding": {"bits": 12}, "format_version": 1, "model": "m"}
FOLDER = fmt.fingerprint_folder(FINGERPRINT)
KEYS = [f"{number:064x}" for number in range(5)]
MAPS = {
    key: np.random.default_rng(i).normal(size=(4, 6 + i % 2)).astype(np.float32)
    for i, key in enumerate(KEYS)
}


def write_cache(store):
    plan = plan_segment({k: m.shape for k, m in MAPS.items()}, fingerprint=FOLDER, shard_rows=2)
    prefix = f"{FOLDER}/segments/{plan.segment_id}"
    store.put(f"{FOLDER}/fingerprint.json", fmt.canonical_json(FINGERPRINT))
    for shard in plan.shards:
        write_shard(store, prefix, shard, MAPS, {}, shard_rows=2, bits=12)
    seal_segment(store, prefix, plan, bits=12, provenance={})
    return plan.segment_id


def _serve(memory):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = memory.objects.get(self.path.lstrip("/"))
            status = 404 if data is None else 200
            if data is not None and "Range" in self.headers:
                start, end = self.headers["Range"].removeprefix("bytes=").split("-")
                data, status = data[int(start) : int(end) + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def http():
    memory = MemoryStore()
    segment_id = write_cache(memory)
    catalogue = {"format_version": 1, "caches": [{"name": FOLDER, "segments": [segment_id]}]}
    memory.put("catalogue.json", json.dumps(catalogue).encode())
    server = _serve(memory)
    store = HTTPStore(f"http://127.0.0.1:{server.server_port}")
    yield store
    if store._client is not None:
        store._client.close()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def s3(bucket):
    store = BucketStore(f"{bucket.url}/caches")
    write_cache(store)
    return store


@pytest.fixture(params=["local", "memory", "http", "s3"])
def store(request, tmp_path):
    if request.param in ("http", "s3"):
        return request.getfixturevalue(request.param)
    opened = LocalStore(tmp_path) if request.param == "local" else MemoryStore()
    write_cache(opened)
    return opened


def test_maps_read_back(store):
    cache = DepthCache("root", FOLDER, store=store)
    assert list(cache.keys()) == KEYS
    for key, expected in MAPS.items():
        step = np.ptp(expected) / 4094
        assert np.abs(cache.read(key) - expected).max() <= 0.51 * step
    assert cache.read(KEYS[0], size=(8, 12)).shape == (8, 12)


def test_absent_keys_are_misses(store):
    cache = DepthCache("root", FOLDER, store=store)
    absent = "f" * 64
    assert cache.missing([KEYS[1], absent]) == [absent]
    with pytest.raises(CacheMissError, match=absent):
        cache.read(absent)


def test_folders_and_ranges(store):
    assert store.list_folders("") == [FOLDER]
    (segment_id,) = store.list_folders(f"{FOLDER}/segments")
    name = f"{FOLDER}/segments/{segment_id}/sealed.json"
    data = store.get(name)
    assert store.get_range(name, 3, 10) == data[3:13]
    with pytest.raises((CacheCorruptError, CacheUnreachableError)):
        store.get_range(name, len(data) - 2, 10)


def test_absent_objects_are_not_found(store):
    for read in (store.get, lambda path: store.get_range(path, 0, 4)):
        for path in (f"{FOLDER}/nothing", f"{FOLDER}/fingerprint.json/below-a-file"):
            with pytest.raises(CacheNotFoundError):
                read(path)


def test_pickled_cache_reads(store):
    cache = pickle.loads(pickle.dumps(DepthCache("root", FOLDER, store=store)))
    assert cache.read(KEYS[2]).shape == MAPS[KEYS[2]].shape
    opened = cache._given_store
    if isinstance(opened, HTTPStore):
        opened._client.close()


def test_lists_objects_and_refuses_to_write_where_it_must(store):
    if isinstance(store, HTTPStore):
        with pytest.raises(CacheUnreachableError):
            store.put("x", b"")
        with pytest.raises(CacheUnreachableError):
            store.list_objects("")
        return
    store.put(f"{FOLDER}/segments/half/zarr.json", b"1")
    store.put(f"{FOLDER}/segments/half/zarr.json", b"22")
    assert store.list_objects(f"{FOLDER}/segments/half") == {"zarr.json": 2}
    assert list(DepthCache("root", FOLDER, store=store).keys()) == KEYS


def test_unreachable_server_is_named():
    with pytest.raises(CacheUnreachableError, match=r"127\.0\.0\.1:9"):
        HTTPStore("http://127.0.0.1:9").get("catalogue.json")
