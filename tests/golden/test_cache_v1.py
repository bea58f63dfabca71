"""A cache of format version 1, written once; every later release reads the same values from it.

Its maps are `expected_map(i)` for the keys of `KEYS`; the key "ff…" is a recorded failure.
"""

from __future__ import annotations

import numpy as np
import pytest

from depthcache import DepthCache
from depthcache.segments.verification import verify_cache

SHAPES = [(4, 6), (4, 6), (4, 6), (5, 5), (5, 5)]
KEYS = [f"{number:064x}" for number in range(len(SHAPES))]
FAILED = "f" * 64


def expected_map(number: int) -> np.ndarray:
    """Exact in 12-bit codes: the values 0 … H·W−1 and, as the maximum, 4094, plus the number."""
    height, width = SHAPES[number]
    values = np.arange(height * width, dtype=np.float32).reshape(height, width)
    values[-1, -1] = 4094
    return values + number


@pytest.fixture
def root(golden_dir):
    return golden_dir / "cache-v1"


def test_reads_the_recorded_maps(root):
    cache = DepthCache.open(root)
    assert cache.fingerprint == "golden-f294017159e9562a"
    assert list(cache.keys()) == KEYS
    assert cache.failures() == {FAILED: "image file is empty (0 bytes)"}
    for number, key in enumerate(KEYS):
        assert np.abs(cache.read(key) - expected_map(number)).max() <= 1e-3


def test_verifies(root):
    report = verify_cache(root)
    assert report.problems == []
    assert report.num_maps == len(KEYS)


def test_zarr_python_agrees(root):
    zarr = pytest.importorskip("zarr")
    (segment,) = root.glob("*/segments/*")
    group = zarr.open_group(segment, mode="r")
    settings = group.attrs["depthcache"]
    entries = zip(
        group["index/digests"][:], group["index/bucket"][:], group["index/row"][:], strict=True
    )
    read = 0
    for number, (digest, bucket, row) in enumerate(entries):
        assert digest.tobytes().hex() == KEYS[number]
        name = settings["buckets"][bucket]
        low, high = group[f"ranges/{name}"][int(row)]
        codes = group[f"maps/{name}"][int(row)].astype(np.float64)
        assert codes.min() > 0
        step, levels = 2 ** (16 - settings["bits"]), 2 ** settings["bits"] - 2
        values = low + (codes - step) * (high - low) / (levels * step)
        assert np.abs(values - expected_map(number)).max() <= 1e-3
        read += 1
    assert read == settings["num_maps"] == len(KEYS)


def test_reads_the_recorded_float32_maps_bit_by_bit(golden_dir):
    """The lossless encoding of the same version: map n holds 0, 1/3, … 5/3, plus n."""
    zarr = pytest.importorskip("zarr")
    root = golden_dir / "cache-v1-float32"
    cache = DepthCache.open(root)
    (array_folder,) = root.glob("*/segments/*/maps/2x3")
    array = zarr.open_array(array_folder, mode="r")
    for number in range(3):
        expected = np.arange(6, dtype=np.float32).reshape(2, 3) / np.float32(3) + number
        np.testing.assert_array_equal(cache.read(f"{number:064x}"), expected)
        np.testing.assert_array_equal(array[number], expected)
    assert verify_cache(root).problems == []
