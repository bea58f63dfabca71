"""Stage one where things go wrong: odd files, full and read-only disks, two runs, damage, kills."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthcache import DepthCache, DepthCacheError, decode_image, image_key
from depthcache.errors import CacheIncompleteError, CacheMismatchError
from depthcache.format import segment_format as fmt
from depthcache.segments.garbage_collection import collect_garbage
from depthcache.segments.verification import verify_cache
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.repair_cache import repair_cache
from depthcache.stage_one.settings import StageOneSettings
from depthcache.storage.local_folder import LocalStore

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        (folder / f"{index}.png").write_bytes(_png(_pixels(index)))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def finished(model, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    precompute_depth(images, model, str(root), StageOneSettings(shard_rows=3, batch_size=1))
    return root


@pytest.fixture
def root(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "cache"))


def _pixels(seed, shape=(24, 30, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def _png(pixels, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, options.pop("format", "png"), **options)
    return buffer.getvalue()


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


@contextmanager
def _file_size_limit(num_bytes):
    """Writing more into one file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _as_ordinary_user():
    """Permissions do not bind root, so give it up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder(model, images):
    """Writable, with the model and images in it, for every user; pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(model, folder / "tiny-dpt")
    shutil.copytree(images[0].parent, folder / "images")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def _odd_files():
    """name → (bytes, whether it has depth)."""
    jpeg = _png(_pixels(1), format="jpeg")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    frames = [Image.fromarray(_pixels(seed)) for seed in (2, 3)]
    bomb = bytearray(_png(_pixels(4)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], False),
        "header-only.png": (_png(_pixels(5))[:33], False),
        "empty.jpg": (b"", False),
        "text.jpg": (b"this is no image", False),
        "bomb.png": (bytes(bomb), False),
        "grey.png": (_png(_pixels(6)[..., 0]), True),
        "grey16.png": (_png(_pixels(7)[..., 0].astype(np.uint16) * 257), True),
        "palette.png": (_png(Image.fromarray(_pixels(8)).convert("P")), True),
        "alpha.png": (_png(_pixels(9, (24, 30, 4))), True),
        "cmyk.jpg": (_png(Image.fromarray(_pixels(10)).convert("CMYK"), format="jpeg"), True),
        "rotated.jpg": (_png(_pixels(11), format="jpeg", exif=rotated), True),
        "animated.gif": (
            _png(frames[0], format="gif", save_all=True, append_images=frames[1:]), True,
        ),
        "one-pixel.png": (_png(_pixels(12, (1, 1, 3))), True),
        "three-high.png": (_png(_pixels(13, (3, 30, 3))), True),
    }  # fmt: skip


def test_every_kind_of_file_has_depth_or_a_reason_and_the_run_goes_on(model, tmp_path):
    files = _odd_files()
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    paths = [*sorted(folder.iterdir()), folder / "absent.png"]
    root = tmp_path / "cache"
    counts: list[tuple[int, ...]] = []
    settings = StageOneSettings(shard_rows=2)
    summary = precompute_depth(
        paths, model, str(root), settings, progress=lambda *now: counts.append(now)
    )
    failed = {Path(failure["path"]).name: failure["reason"] for failure in summary.failures}
    expected = {name for name, (_, has_depth) in files.items() if not has_depth}
    assert set(failed) == expected | {"folder.jpg", "absent.png"}
    assert all(failed.values())
    assert counts[-1][2] == summary.num_failed, "told while it runs, too"
    assert "pixels" in failed["bomb.png"]
    cache = DepthCache.open(root)
    for data, has_depth in files.values():
        assert (image_key(data) in cache) == has_depth
        if has_depth:
            assert cache.read(image_key(data), decode_image(data).shape[:2]).size
    # What can never be decoded is not tried again; what was passing is.
    again = precompute_depth(paths, model, str(root), settings)
    assert (again.num_computed, again.num_failed) == (0, summary.num_failed)
    assert verify_cache(root).problems == []


def test_names_do_not_matter_bytes_do(model, tmp_path):
    """Equal bytes under two names are one map; one name with other bytes is another."""
    for name, seed in (("a/x.png", 1), ("b/y.png", 1), ("b/x.png", 2)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_png(_pixels(seed)))
    paths = sorted(tmp_path.rglob("*.png"))
    root = tmp_path / "cache"
    summary = precompute_depth(paths, model, str(root))
    assert (summary.num_images, summary.num_unique, summary.num_computed) == (3, 2, 2)
    (tmp_path / "a/x.png").write_bytes(_png(_pixels(3)))
    summary = precompute_depth(paths, model, str(root))
    assert (summary.num_present, summary.num_computed) == (2, 1)
    assert len(DepthCache.open(root)) == 3


def test_files_without_permission_are_tried_again(open_folder):
    images = sorted((open_folder / "images").iterdir())
    images[2].chmod(0)
    root = str(open_folder / "cache")
    with _as_ordinary_user():
        first = precompute_depth(images, open_folder / "tiny-dpt", root)
    assert [Path(f["path"]).name for f in first.failures] == [images[2].name]
    assert "Permission denied" in first.failures[0]["reason"]
    images[2].chmod(0o644)
    with _as_ordinary_user():
        second = precompute_depth(images, open_folder / "tiny-dpt", root)
    assert (second.num_computed, second.num_failed) == (1, 0)


def test_read_only_root_is_an_error_and_stays_readable(open_folder):
    images = sorted((open_folder / "images").iterdir())
    root = open_folder / "cache"
    with _as_ordinary_user():
        precompute_depth(images[:3], open_folder / "tiny-dpt", str(root))
        before = _objects(root)
        folders = [path for path in (root, *root.rglob("*")) if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        with pytest.raises(PermissionError, match=str(root)):
            precompute_depth(images, open_folder / "tiny-dpt", str(root))
        present = precompute_depth(images[:3], open_folder / "tiny-dpt", str(root))
        assert present.num_present == 3
        assert len(DepthCache.open(root)) == 3
        for folder in folders:
            folder.chmod(0o755)
    assert _objects(root) == before


def test_a_folder_that_may_not_be_written_is_named_and_no_room_is_asked_for(open_folder):
    root = open_folder / "read-only"
    root.mkdir(mode=0o555)
    with _as_ordinary_user(), pytest.raises(PermissionError) as refused:
        LocalStore(root).put("imported-1/fingerprint.json", b"{}")
    assert refused.value.filename == str(root)
    assert refused.value.strerror == "Permission denied"


def test_full_disk_leaves_no_half_object_and_the_run_resumes(model, images, finished, tmp_path):
    with _file_size_limit(4000), pytest.raises(OSError, match="large"):
        precompute_depth(images, model, str(tmp_path), StageOneSettings(shard_rows=3, batch_size=1))
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert len(DepthCache.open(tmp_path)) == 0
    summary = precompute_depth(
        images, model, str(tmp_path), StageOneSettings(shard_rows=3, batch_size=1)
    )
    # The last shard, of one map, fits; whether it was written before the run ended is chance.
    assert summary.num_computed in (NUM_IMAGES - 1, NUM_IMAGES)
    assert summary.num_failed == 0
    assert _objects(tmp_path) == _objects(finished)


def test_two_runs_at_once_share_the_work(model, images, finished, tmp_path):
    """Other batch sizes give other rounding, so only one of them may write the segment."""
    summaries = []

    def run(batch_size):
        summaries.append(
            precompute_depth(
                images, model, str(tmp_path), StageOneSettings(shard_rows=3, batch_size=batch_size)
            )
        )

    runs = [threading.Thread(target=run, args=(size,)) for size in (1, 3)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert sorted(summary.num_computed for summary in summaries) == [0, NUM_IMAGES]
    assert sorted(summary.num_present for summary in summaries) == [0, NUM_IMAGES]
    assert _objects(tmp_path).keys() == _objects(finished).keys()
    assert verify_cache(tmp_path).problems == []


def test_garbage_collection_leaves_a_segment_that_is_being_written(model, images, tmp_path):
    found = []

    def collect(done, _total, _failed):
        if done:
            found.append(collect_garbage(tmp_path, min_age_seconds=0).num_removed)

    precompute_depth(
        images, model, str(tmp_path), StageOneSettings(shard_rows=3, batch_size=1), progress=collect
    )
    assert set(found) == {0}
    (segment,) = tmp_path.glob("*/segments/*")
    (segment / "maps/32x32/c/0/0/0.tmp-1").write_bytes(b"left by a kill")
    (tmp_path / segment.parent / "abandoned").mkdir()
    assert collect_garbage(tmp_path, dry_run=True, min_age_seconds=0).num_removed == 2
    assert collect_garbage(tmp_path).num_removed == 0  # too young
    assert collect_garbage(tmp_path, min_age_seconds=0).num_removed == 2
    assert verify_cache(tmp_path).problems == []


def test_folder_of_another_fingerprint_is_refused(model, images, root):
    (document,) = root.glob("*/fingerprint.json")
    other = {**json.loads(document.read_bytes()), "precision": "bf16"}
    document.write_bytes(fmt.canonical_json(other))
    for action in (
        lambda: precompute_depth(images, model, str(root)),
        lambda: DepthCache.open(root),
    ):
        with pytest.raises(DepthCacheError, match="belongs to"):
            action()


def test_newer_format_is_refused_by_name(root):
    (document,) = root.glob("*/fingerprint.json")
    newer = {**json.loads(document.read_bytes()), "format_version": 2}
    folder = root / fmt.fingerprint_folder(newer)
    document.parent.rename(folder)
    (folder / "fingerprint.json").write_bytes(fmt.canonical_json(newer))
    with pytest.raises(CacheMismatchError, match="format version 2; this release reads 1"):
        DepthCache.open(root)


def test_lossless_maps_get_their_own_folder_and_equal_the_model(model, images, root):
    from depthcache.stage_one.depth_models import load_depth_model

    precompute_depth(images[:3], model, str(root), StageOneSettings(bits=32, batch_size=1))
    names = sorted(path.name for path in root.iterdir())
    assert len(names) == 2
    loaded = load_depth_model(model, bits=32)
    cache = DepthCache.open(root, fingerprint=fmt.fingerprint_folder(loaded.fingerprint))
    for path in images[:3]:
        data = path.read_bytes()
        (exact,) = loaded.predict([loaded.preprocess(decode_image(data))])
        np.testing.assert_array_equal(cache.read(image_key(data)), exact)


def _flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "num_lost"),
    [
        ("../../fingerprint.json", 0),
        ("sealed.json", 0),
        ("zarr.json", 0),
        ("maps/zarr.json", 0),
        ("maps/32x32/zarr.json", 0),
        ("ranges/32x32/zarr.json", 0),
        ("index/zarr.json", 0),
        ("index/digests/zarr.json", 0),
        ("index/digests/c/0/0", 0),
        ("index/bucket/c/0", 0),
        ("index/row/c/0", 0),
        ("ranges/32x32/c/0/0", 3),
    ],
)
@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_repair_restores_any_object(how, name, num_lost, model, images, finished, root):
    (segment,) = root.glob("*/segments/*")
    damaged = segment / name
    if how == "flipped":
        _flip(damaged, damaged.stat().st_size // 2)
    else:
        damaged.unlink()
    if (how, name) == ("deleted", "sealed.json"):
        assert [problem.kind for problem in verify_cache(root).problems] == ["unsealed"]
    assert verify_cache(root).problems
    done = repair_cache(root, images, model, StageOneSettings(batch_size=1))
    assert done["num_computed"] == num_lost
    assert verify_cache(root).problems == []
    assert _objects(root) == _objects(finished)


def test_repair_computes_exactly_the_damaged_rows(model, images, finished, root):
    (segment,) = root.glob("*/segments/*")
    shard = segment / "maps/32x32/c/0/0/0"
    _flip(shard, 10)  # in the chunk of row 0
    (segment / "maps/32x32/c/2/0/0").unlink()  # the last shard, of one row
    (segment / "stray").write_bytes(b"x")
    with pytest.raises(CacheIncompleteError, match="sha256"):
        repair_cache(root, images[:1], model, StageOneSettings(batch_size=1))
    done = repair_cache(root, images, model, StageOneSettings(batch_size=1))
    assert done == {"num_removed": 1, "num_computed": 2, "num_failed": 0}
    assert _objects(root) == _objects(finished)


def test_repair_finds_precision_and_bits_by_itself(model, images, tmp_path):
    precompute_depth(
        images, model, str(tmp_path), StageOneSettings(precision="bf16", bits=16, batch_size=1)
    )
    before = _objects(tmp_path)
    (segment,) = tmp_path.glob("*/segments/*")
    _flip(segment / "maps/32x32/c/0/0/0", 10)
    (segment / "../../fingerprint.json").unlink()
    assert (
        repair_cache(tmp_path, images, model, StageOneSettings(batch_size=1))["num_computed"] == 1
    )
    assert _objects(tmp_path) == before
    (tmp_path / "other").mkdir()
    other = shutil.copytree(model, tmp_path / "other/model")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.2, 0.3]
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    _flip(segment / "maps/32x32/c/0/0/0", 10)
    with pytest.raises(CacheMismatchError, match="not of this model"):
        repair_cache(next(tmp_path.glob("dpt-*")), images, other)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_runs_resume_to_the_same_bytes(repository):
    """A few of the kills that `benchmarks/kill_resume.py` makes by the hundred."""
    script = repository / "benchmarks/kill_resume.py"
    answer = subprocess.run(
        [sys.executable, script, "--kills", "5"], capture_output=True, check=False, text=True
    )
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["num_kills"] == 5
    assert result["num_finished_roots"] >= 1
