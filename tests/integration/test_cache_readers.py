"""Readers beside writers, in forked and fresh processes, over HTTP and S3, with a local tier."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ProcessPoolExecutor
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
from depthcache.local_tier import LocalTier
from depthcache.segments.reader import EncodedMap
from depthcache.segments.verification import verify_cache
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.bucket import BucketStore
from depthcache.storage.local_folder import LocalStore
from depthcache.storage.object_store import MemoryStore

FINGERPRINT = {"format_version": 1, "model": "m"}
FOLDER = fmt.fingerprint_folder(FINGERPRINT)


def make_maps(seed, num_maps, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    return {rng.bytes(32).hex(): rng.normal(size=shape).astype(np.float32) for _ in range(num_maps)}


def write_segment(store, maps, bits=12, shard_rows=4):
    shapes = {key: inverse_depth.shape for key, inverse_depth in maps.items()}
    plan = plan_segment(shapes, fingerprint=FOLDER, shard_rows=shard_rows)
    prefix = f"{FOLDER}/segments/{plan.segment_id}"
    store.put(f"{FOLDER}/fingerprint.json", fmt.canonical_json(FINGERPRINT))
    for shard in plan.shards:
        write_shard(store, prefix, shard, maps, {}, shard_rows=shard_rows, bits=bits)
    seal_segment(store, prefix, plan, bits=bits, provenance={})
    return prefix


def assert_close(read, exact):
    assert np.abs(read - exact).max() <= np.ptp(exact) / 4094


@pytest.mark.parametrize("num_segments", [0, 1, 3])
def test_cache_is_the_union_of_its_segments(num_segments):
    store = MemoryStore()
    store.put(f"{FOLDER}/fingerprint.json", fmt.canonical_json(FINGERPRINT))
    shared = make_maps(9, 2)
    truth = {}
    for number in range(num_segments):
        maps = {**make_maps(number, 5), **shared}
        write_segment(store, maps)
        truth.update(maps)
    cache = DepthCache.open("root", store=store)
    assert len(cache) == len(truth)
    assert list(cache.keys()) == sorted(truth)
    for key, inverse_depth in truth.items():
        assert key in cache
        assert_close(cache.read(key), inverse_depth)
    # Digests that begin like one that is there, and those before and after all others.
    near = [key[:16] + "0" * 48 for key in truth]
    absent = [*near, "0" * 64, "f" * 64]
    assert cache.missing(absent) == absent
    with pytest.raises(CacheMissError, match="64 hexadecimal"):
        cache.read("abcd")


@pytest.mark.parametrize("has_tier", [False, True])
def test_a_key_has_one_spelling(tmp_path, has_tier):
    maps = make_maps(0, 1)
    write_segment(LocalStore(tmp_path / "root"), maps)
    (key,) = maps
    tier = tmp_path / "tier" if has_tier else None
    with DepthCache.open(tmp_path / "root", local_tier=tier) as cache:
        cache.read(key)
        for spelling in (key.upper(), f"{key[:-2]} {key[-2:]}", f" {key}", key[:-1], f"{key}\n"):
            for action in (cache.read, lambda k: cache.read_batch([k]), lambda k: k in cache):
                with pytest.raises(CacheMissError, match="64 hexadecimal digits"):
                    action(spelling)
    if tier is not None:
        assert [path.name for path in tier.rglob("*.map")] == [f"{key}.map"]
    with pytest.raises(ValueError, match="64 hexadecimal"):
        plan_segment({key.upper(): (2, 2)}, fingerprint="m-0", shard_rows=1)
    with pytest.raises(ValueError, match="64 hexadecimal"):
        LocalTier(tmp_path).has(FOLDER, key.upper())


def test_lossless_maps_come_back_bit_by_bit_and_zarr_reads_them(tmp_path):
    zarr = pytest.importorskip("zarr")
    maps = make_maps(0, 6)
    prefix = write_segment(LocalStore(tmp_path), maps, bits=32)
    cache = DepthCache.open(tmp_path)
    array = zarr.open_array(tmp_path / prefix / "maps/6x5", mode="r")
    assert np.isnan(array.fill_value)
    for row, (key, exact) in enumerate(sorted(maps.items())):
        np.testing.assert_array_equal(cache.read(key), exact)
        np.testing.assert_array_equal(array[row], exact)
    assert verify_cache(tmp_path).problems == []


@pytest.mark.parametrize("bits", [12, 32])
def test_tensorstore_reads_the_same_values(tmp_path, bits):
    tensorstore = pytest.importorskip("tensorstore")
    maps = make_maps(0, 6)
    prefix = write_segment(LocalStore(tmp_path), maps, bits=bits)
    where = {"driver": "file", "path": str(tmp_path / prefix / "maps/6x5")}
    array = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
    ranges = np.frombuffer((tmp_path / prefix / "ranges/6x5/c/0/0").read_bytes()[:-4], "<f4")
    for row, key in enumerate(sorted(maps)[:4]):
        stored = array[row].read().result()
        low, high = ranges[2 * row : 2 * row + 2].astype(np.float64)
        values = stored if bits == 32 else low + (stored / 16.0 - 1) * (high - low) / 4094
        assert_close(values, maps[key])


def test_reader_beside_a_writer_sees_right_values_or_none(tmp_path):
    """Segments are written one after the other while a reader opens, lists and reads."""
    truth, stop = {}, threading.Event()
    segments = [make_maps(seed, 6) for seed in range(12)]
    for maps in segments:
        truth.update(maps)

    def write():
        store = LocalStore(tmp_path)
        for maps in segments:
            write_segment(store, maps)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    while not stop.is_set() or not counts:
        try:
            cache = DepthCache.open(tmp_path)
        except CacheNotFoundError:
            continue
        keys = list(cache.keys())
        counts.append(len(keys))
        assert len(keys) % 6 == 0  # a segment is there with all its maps, or not at all
        for key in keys:
            assert_close(cache.read(key), truth[key])
    writer.join()
    assert counts == sorted(counts)
    assert len(DepthCache.open(tmp_path)) == len(truth)


def test_refresh_shows_segments_sealed_since(tmp_path):
    store = LocalStore(tmp_path)
    write_segment(store, make_maps(0, 2))
    cache = DepthCache.open(tmp_path)
    assert len(cache) == 2
    write_segment(store, make_maps(1, 3))
    assert len(cache) == 2
    cache.refresh()
    assert len(cache) == 5


class _CountingProxy(ThreadingHTTPServer):
    """Serves a store, or passes on to another server, and keeps (path, range) of every GET."""

    def __init__(self, source):
        super().__init__(("127.0.0.1", 0), _CountingHandler)
        self.source = source
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.daemon_threads = True
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _CountingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if isinstance(self.server.source, str):
            status, data, headers = self._pass_on(wanted)
        else:
            status, data, headers = self._serve(wanted)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self, wanted):
        data = self.server.source.objects.get(self.path.lstrip("/"))
        if data is None:
            return 404, b"", {}
        if wanted is None:
            return 200, data, {}
        start, end = wanted.removeprefix("bytes=").split("-")
        return 206, data[int(start) : int(end) + 1], {}

    def _pass_on(self, wanted):
        request = urllib.request.Request(self.server.source + self.path)
        for name in ("Range", "Authorization", "x-amz-date", "x-amz-content-sha256"):
            if name in self.headers:
                request.add_header(name, self.headers[name])
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                kept = ("Content-Range", "ETag", "Last-Modified", "Content-Type")
                headers = {name: answer.headers[name] for name in kept if name in answer.headers}
                return answer.status, answer.read(), headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {}

    def log_message(self, *_):
        """Keep the test output clean."""


@pytest.fixture
def http_cache():
    memory = MemoryStore()
    maps = make_maps(0, 12)
    prefix = write_segment(memory, maps)
    caches = [{"name": FOLDER, "segments": [prefix.rpartition("/")[2]]}]
    memory.put("catalogue.json", json.dumps({"format_version": 1, "caches": caches}).encode())
    proxy = _CountingProxy(memory)
    yield proxy.url, maps, proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def s3_cache(bucket, monkeypatch):
    url = f"{bucket.url}/{uuid.uuid4().hex}"
    maps = make_maps(0, 12)
    write_segment(BucketStore(url), maps)
    proxy = _CountingProxy(bucket.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield url, maps, proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture(params=["http", "s3"])
def remote(request):
    return request.getfixturevalue(f"{request.param}_cache")


def test_a_map_costs_one_range_request(remote):
    url, maps, proxy = remote
    with DepthCache.open(url) as cache:
        for key in maps:  # learns the index of every shard
            cache.read(key)
        proxy.requests.clear()
        for key, exact in maps.items():
            assert_close(cache.read(key), exact)
    assert len(proxy.requests) == len(maps)
    assert all(wanted is not None and "/maps/" in path for path, wanted in proxy.requests)


def test_kept_maps_cost_no_request(remote, tmp_path):
    url, maps, proxy = remote
    with DepthCache.open(url, local_tier=tmp_path) as first:
        first.read_batch(list(maps))
    with DepthCache.open(url, local_tier=tmp_path) as cache:
        assert len(cache) == len(maps)
        proxy.requests.clear()
        for key, exact in maps.items():
            assert_close(cache.read(key), exact)
        assert proxy.requests == []
        damaged = max(tmp_path.rglob("*.map"))
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert_close(cache.read(damaged.stem), maps[damaged.stem])
        assert proxy.requests


def _read_in_child(cache, keys, results):
    results.put([cache.read(key) for key in keys])


@pytest.mark.parametrize("kind", ["local", "http"])
def test_forked_workers_read_beside_their_parent(kind, tmp_path, request):
    if kind == "local":
        url, maps = tmp_path, make_maps(0, 12)
        write_segment(LocalStore(tmp_path), maps)
    else:
        url, maps, _ = request.getfixturevalue(f"{kind}_cache")
    cache = DepthCache.open(url)
    keys = list(cache.keys())
    cache.read(keys[0])  # the parent's connection is open, its index loaded
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [
        context.Process(target=_read_in_child, args=(cache, keys, results)) for _ in range(2)
    ]
    for child in children:
        child.start()
    for _ in children:
        for key, inverse_depth in zip(keys, results.get(timeout=60), strict=True):
            assert_close(inverse_depth, maps[key])
    for key in keys:
        assert_close(cache.read(key), maps[key])
    for child in children:
        child.join(timeout=60)
    cache.close()


def _tell_error_in_child(cache, key, results):
    try:
        results.put(cache.read(key).shape)
    except CacheUnreachableError as error:
        results.put(str(error))


def test_forked_workers_are_told_that_a_bucket_needs_spawned_ones(s3_cache):
    url, maps, _ = s3_cache
    cache = DepthCache.open(url)
    key = next(iter(maps))
    cache.read(key)
    assert not cache.survives_fork
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_tell_error_in_child, args=(cache, key, results), daemon=True)
    child.start()
    # Without the check the child would wait for obstore's threads, which were not forked.
    assert "start workers with spawn" in results.get(timeout=60)
    child.join(timeout=60)
    assert_close(cache.read(key), maps[key])


def test_spawned_workers_read_a_bucket_beside_their_parent(s3_cache):
    url, maps, _ = s3_cache
    cache = DepthCache.open(url)
    keys = list(cache.keys())
    cache.read(keys[0])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for key, inverse_depth in zip(keys, pool.map(cache.read, keys, timeout=120), strict=True):
            assert_close(inverse_depth, maps[key])


def test_fresh_processes_read_a_pickled_cache_without_torch(tmp_path):
    maps = make_maps(0, 3)
    write_segment(LocalStore(tmp_path), maps)
    cache = DepthCache.open(tmp_path)
    assert len(cache) == 3
    program = (
        "import pickle, sys; cache = pickle.load(sys.stdin.buffer); "
        "sys.stdout.write(str(sum(float(cache.read(k).sum()) for k in cache.keys()))); "
        "assert not {'torch', 'transformers', 'dask', 'zarr'} & set(sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(cache), capture_output=True, check=True
    )
    assert float(answer.stdout) == pytest.approx(sum(m.sum() for m in maps.values()), abs=0.1)


def _encoded(size, seed=0):
    values = np.random.default_rng(seed).integers(1, 2**16, size).astype(np.uint16)
    return EncodedMap(
        chunk=fmt.encode_map(values, 16), shape=size, bits=16, value_range=(0.0, 1.0), place="test"
    )


def test_tier_stays_under_its_cap_and_keeps_what_is_used(tmp_path):
    cap = 400_000
    tiers = [LocalTier(tmp_path, cap) for _ in range(4)]  # as many processes
    keys = [f"{number:064x}" for number in range(160)]
    for number, key in enumerate(keys):
        tiers[number % 4].write("cache-1", key, _encoded((40, 50), number))
        assert tiers[0].read("cache-1", keys[0]) is not None  # in use all the time
        size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert size <= cap
    kept = [key for key in keys if tiers[0].read("cache-1", key) is not None]
    assert len(kept) < len(keys)
    assert keys[-1] in kept


def test_tier_keeps_no_map_that_takes_all_of_it_and_goes_on_without_a_disk(tmp_path):
    tier = LocalTier(tmp_path, 1000)
    tier.write("cache-1", "0" * 64, _encoded((40, 50)))
    assert tier.read("cache-1", "0" * 64) is None
    (tmp_path / "file").write_text("no folder")
    unwritable = LocalTier(tmp_path / "file")
    unwritable.write("cache-1", "0" * 64, _encoded((4, 5)))
    assert unwritable.read("cache-1", "0" * 64) is None
    with pytest.raises(ValueError, match="negative"):
        LocalTier(tmp_path, -1)


def test_index_that_is_not_sorted_is_refused(tmp_path):
    """A seal may be valid and its writer wrong: binary search must not miss maps in silence."""
    from depthcache.format.seal import make_seal, summarise_object

    prefix = write_segment(LocalStore(tmp_path), make_maps(0, 3))
    segment = tmp_path / prefix
    digests = segment / "index/digests/c/0/0"
    rows = np.frombuffer(digests.read_bytes()[:-4], np.uint8).reshape(3, 32)
    digests.write_bytes(fmt.add_crc(rows[::-1].tobytes()))
    seal = json.loads((segment / "sealed.json").read_bytes())
    seal["objects"]["index/digests/c/0/0"] = summarise_object(digests.read_bytes())
    (segment / "sealed.json").write_bytes(make_seal(seal["objects"], {}))
    with pytest.raises(CacheCorruptError, match="sorted"):
        len(DepthCache.open(tmp_path))
