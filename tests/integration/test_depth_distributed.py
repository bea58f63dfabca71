"""Stage one on dask workers: the same bytes as in one process, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.segments.verification import verify_cache
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.settings import StageOneSettings
from depthcache.storage.bucket import BucketStore

pytestmark = [
    pytest.mark.slow,
    # Each worker process imports torch and transformers, minutes on a busy machine.
    pytest.mark.timeout(900),
    # distributed closes sockets and loops of killed workers from their destructors.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # tornado and distributed still call asyncio functions that newer Pythons deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Readable images, and a truncated one whose header reads."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    cut = folder / "cut.png"
    cut.write_bytes((folder / "00.png").read_bytes()[:-400])
    return sorted(folder.iterdir())


def _objects(root):
    """Bytes of every object; seals without provenance, which names host and device.

    What a killed writer left half-written is no object (docs/cache-format.md).
    """
    objects = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and ".tmp-" not in path.name:
            data = path.read_bytes()
            if path.name == "sealed.json":
                data = json.dumps(json.loads(data)["objects"], sort_keys=True).encode()
            objects[path.relative_to(root).as_posix()] = data
    return objects


@pytest.fixture(scope="module")
def expected(model, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("in-process")
    summary = precompute_depth(
        images, model, str(root), StageOneSettings(shard_rows=2, batch_size=2)
    )
    assert (summary.num_computed, summary.num_failed) == (NUM_IMAGES, 1)
    return _objects(root)


@pytest.fixture(scope="module")
def cluster(bucket):
    """Two workers that see the bucket; starting them takes longer than what they do."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


def test_local_workers_finish_what_was_begun_here(model, images, expected, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, _total, _failed):
        if done:
            raise Stopped

    options = {"shard_rows": 2, "batch_size": 2}
    with pytest.raises(Stopped):
        precompute_depth(images, model, str(tmp_path), StageOneSettings(**options), progress=stop)
    seen = []
    summary = precompute_depth(
        images,
        model,
        str(tmp_path),
        StageOneSettings(scheduler="local", workers=2, **options),
        progress=lambda *counts: seen.append(counts),
    )
    assert summary.num_failed == 1
    assert 0 < summary.num_computed < NUM_IMAGES
    assert seen[-1][:2] == (NUM_IMAGES, NUM_IMAGES)
    assert _objects(tmp_path) == expected
    cache = DepthCache.open(tmp_path)
    assert cache.read(image_key(images[0].read_bytes())).shape == (32, 32)


def test_workers_write_to_s3_what_one_process_writes_here_and_http_reads_it(
    model, images, expected, bucket, cluster
):
    s3, http = f"{bucket.url}/caches", f"{bucket.endpoint}/{bucket.name}/caches"
    summary = precompute_depth(
        images,
        model,
        s3,
        StageOneSettings(shard_rows=2, batch_size=2, scheduler=cluster.scheduler_address),
    )
    assert (summary.num_computed, summary.num_failed) == (NUM_IMAGES, 1)
    store = BucketStore(s3)
    stored = {name: store.get(name) for name in store.list_objects("")}
    for name in stored:
        if name.endswith("sealed.json"):
            stored[name] = json.dumps(json.loads(stored[name])["objects"], sort_keys=True).encode()
    assert stored == expected
    again = precompute_depth(images, model, s3, StageOneSettings(shard_rows=2, batch_size=2))
    assert (again.num_present, again.num_computed) == (NUM_IMAGES, 0)
    # Published as a static site: readable by all, with the list that HTTP lacks.
    (folder,) = store.list_folders("")
    caches = [{"name": folder, "segments": store.list_folders(f"{folder}/segments")}]
    store.put("catalogue.json", json.dumps({"format_version": 1, "caches": caches}).encode())
    for name in [*stored, "catalogue.json"]:
        bucket.client.put_object_acl(Bucket=bucket.name, Key=f"caches/{name}", ACL="public-read")
    with DepthCache.open(http) as over_http:
        in_bucket = DepthCache.open(s3)
        keys = list(in_bucket.keys())
        assert list(over_http.keys()) == keys
        assert len(keys) == NUM_IMAGES
        for key in keys:
            np.testing.assert_array_equal(over_http.read(key), in_bucket.read(key))


def test_a_killed_worker_costs_nothing_but_time(model, images, expected, tmp_path, cluster):
    """The first task that ends kills a worker that holds others; a nanny restarts it."""
    from distributed import Client

    killed = []
    with Client(cluster, set_as_default=False) as client:
        processes = client.run(os.getpid)

        def kill_one(done, _total, _failed):
            if done and not killed:
                killed.append(next(iter(processes.values())))
                os.kill(killed[0], signal.SIGKILL)

        summary = precompute_depth(
            images,
            model,
            str(tmp_path),
            StageOneSettings(shard_rows=2, batch_size=2, scheduler=cluster.scheduler_address),
            progress=kill_one,
        )
        # The scheduler may hear of the death after the end of the tasks.
        deadline = time.monotonic() + 300
        while killed[0] in (found := client.run(os.getpid, on_error="ignore")).values() or (
            len(found) < 2
        ):
            assert time.monotonic() < deadline, "no worker took the place of the killed one"
            time.sleep(0.1)
    assert (summary.num_computed, summary.num_failed) == (NUM_IMAGES, 1)
    assert _objects(tmp_path) == expected
    assert not verify_cache(tmp_path).problems
