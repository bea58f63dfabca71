"""Stage one on dask workers: the same bytes as in one process, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.precompute import precompute_depth
from depthcache.verification import verify_cache

pytestmark = [
    pytest.mark.slow,
    # Each of four worker processes imports torch and transformers, minutes on a busy machine.
    pytest.mark.timeout(900),
    # distributed closes sockets and loops of killed workers from their destructors.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # tornado and distributed still call asyncio functions that newer Pythons deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny-dpt"
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False,
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


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
    """Bytes of every object; seals without provenance, which names host and device."""
    objects = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "sealed.json":
                data = json.dumps(json.loads(data)["objects"], sort_keys=True).encode()
            objects[path.relative_to(root).as_posix()] = data
    return objects


@pytest.fixture(scope="module")
def expected(model, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("in-process")
    summary = precompute_depth(images, model, str(root), shard_rows=2, batch_size=2)
    assert (summary.num_computed, summary.num_failed) == (NUM_IMAGES, 1)
    return _objects(root)


def test_a_killed_worker_costs_nothing_but_time(model, images, expected, tmp_path):
    """The first task that ends kills a worker that holds others; a nanny restarts it."""
    from distributed import Client, LocalCluster

    killed = []
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        client = Client(cluster, set_as_default=False)
        processes = client.run(os.getpid)

        def kill_one(done, total):
            if done and not killed:
                killed.append(next(iter(processes.values())))
                os.kill(killed[0], signal.SIGKILL)

        summary = precompute_depth(
            images, model, str(tmp_path), shard_rows=2, batch_size=2,
            scheduler=cluster.scheduler_address, progress=kill_one,
        )  # fmt: skip
        client.wait_for_workers(2, timeout=60)
        assert killed[0] not in client.run(os.getpid).values()
        client.close()
    assert (summary.num_computed, summary.num_failed) == (NUM_IMAGES, 1)
    assert _objects(tmp_path) == expected
    assert not verify_cache(tmp_path).problems


def test_local_workers_finish_what_was_begun_here(model, images, expected, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, total):
        if done:
            raise Stopped

    options = {"shard_rows": 2, "batch_size": 2}
    with pytest.raises(Stopped):
        precompute_depth(images, model, str(tmp_path), progress=stop, **options)
    seen = []
    summary = precompute_depth(
        images, model, str(tmp_path), scheduler="local", workers=2,
        progress=lambda done, total: seen.append((done, total)), **options,
    )  # fmt: skip
    assert summary.num_failed == 1
    assert 0 < summary.num_computed < NUM_IMAGES
    assert seen[-1] == (NUM_IMAGES, NUM_IMAGES)
    assert _objects(tmp_path) == expected
    cache = DepthCache.open(tmp_path)
    assert cache.read(image_key(images[0].read_bytes())).shape == (32, 32)
