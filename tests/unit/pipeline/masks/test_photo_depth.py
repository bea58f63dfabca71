"""Depth of photos: what is missing is said, and none at all is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthcache.exchange.interchange import import_maps
from pipeline.errors import UsageError
from pipeline.masks.masks_request import MasksRequest
from pipeline.masks.photo_depth import PhotoDepth, compute_photo_depth, open_photo_depth
from pipeline.runs.manifest import open_manifest


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for k, path in enumerate(paths):
        Image.new("RGB", (4, 3), (k, k, k)).save(path)
    return paths


def _open(photos: list[Path], held: list[Path]) -> PhotoDepth:
    """Depth of a real cache that holds maps of some of the photos."""
    maps = photos[0].parent / "maps"
    maps.mkdir()
    for path in held:
        np.save(maps / f"{path.stem}.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    root = photos[0].parent / "depth"
    import_maps(maps, root, images=photos[0].parent, format="npy")
    return open_photo_depth("input", str(root), photos)


def test_photos_without_depth_are_counted_and_read_as_none(
    photos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    depth = _open(photos, photos[:2])
    assert depth.describe() == f"{depth.fingerprint} as an input, 2 of 3 photos"
    assert "1 of 3 photos have no depth in" in caplog.text
    data = photos[0].read_bytes()
    found = depth.read_of_bytes(data, 6, 8)
    assert found is not None
    assert found.shape == (6, 8)
    assert depth.read_of_bytes(photos[2].read_bytes(), 3, 4) is None


def test_a_cache_of_other_photos_is_refused_with_the_remedy(
    photos: list[Path],
) -> None:
    depth = _open(photos, photos[:1])
    with pytest.raises(UsageError, match=r"none of the 2 photos; give --model"):
        open_photo_depth("input", str(depth.url), photos[1:])


def test_without_a_cache_nothing_is_read_and_that_is_said() -> None:
    assert PhotoDepth().read("0" * 64, 3, 4) is None
    assert PhotoDepth().describe().startswith("none used")


def test_that_the_demo_model_is_poor_on_photos_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    request = MasksRequest(
        coco=None, images=tmp_path, out=tmp_path / "masks.json", mask_format="coco",
        run=tmp_path / "run", review=None, cache=str(tmp_path / "file"), depth_model="demo-dpt",
    )  # fmt: skip
    manifest = open_manifest(request.run, command=[], config={}, stages=["depth"])
    with pytest.raises(UsageError, match="cannot be written"):  # told before this
        compute_photo_depth(request, manifest, [Path("a.jpg")], "")
    (told,) = (record.getMessage() for record in caplog.records if "photos" in record.getMessage())
    assert "name another with --model" in told
