"""Maps leave a cache and come back in every format; conventions, names and failures."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.errors import CacheMismatchError, CacheNotFoundError
from depthcache.exchange.interchange import FORMATS, export_cache, import_maps, to_inverse_depth
from depthcache.segments.verification import verify_cache

SHAPES = [(6, 8), (6, 8), (8, 6), (4, 4), (6, 8)]
# Largest error of one rounding: half a level of 2^12 − 2 in the cache, of 2^8 − 1 in png8.
CACHE_STEP, PNG8_STEP = 0.5 / 4094, 0.5 / 255


@pytest.fixture
def images(tmp_path):
    """Five images in two folders; names 0.png … 4.png."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(1)
    for number in range(5):
        path = folder / ("left" if number % 2 else "right") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def truth():
    """Inverse depth by image number."""
    rng = np.random.default_rng(2)
    return [rng.uniform(-3, 40, shape).astype(np.float32) for shape in SHAPES]


@pytest.fixture
def source(tmp_path, truth):
    folder = tmp_path / "maps"
    folder.mkdir()
    for number, values in enumerate(truth):
        np.save(folder / f"{number}.npy", values)
    return folder


def _key(images, number):
    (path,) = images.rglob(f"{number}.png")
    return image_key(path.read_bytes())


def _import(source, root, images, **options):
    return import_maps(source, root, images=images, **{"format": "npy", **options})


def _assert_equal(cache, images, truth, tolerance):
    for number, values in enumerate(truth):
        read = cache.read(_key(images, number))
        assert read.shape == values.shape
        assert np.abs(read - values).max() <= tolerance * np.ptp(values) + 1e-5


@pytest.mark.parametrize("kind", FORMATS)
def test_maps_come_back_through_every_format(kind, tmp_path, images, truth, source):
    first = _import(source, tmp_path / "first", images)
    assert (first.num_maps, first.num_imported, first.num_failed) == (5, 5, 0)
    out = tmp_path / "out" / kind
    exported = export_cache(tmp_path / "first", out, format=kind)
    assert exported.num_maps == 5
    second = _import(out, tmp_path / "second", images, format=kind)
    assert (second.num_imported, second.num_failed, second.images_without_map) == (5, 0, [])
    assert not verify_cache(tmp_path / "second").problems
    tolerance = 2 * CACHE_STEP + (PNG8_STEP if kind == "png8" else 1e-5)
    _assert_equal(DepthCache.open(tmp_path / "second"), images, truth, tolerance)


@pytest.mark.parametrize("kind", ["hdf5", "npy", "npz", "zarr"])
def test_float32_maps_come_back_bit_by_bit(kind, tmp_path, images, truth, source):
    _import(source, tmp_path / "first", images, bits=32)
    out = tmp_path / "out" / kind
    export_cache(tmp_path / "first", out, format=kind)
    _import(out, tmp_path / "second", images, format=kind, bits=32)
    cache = DepthCache.open(tmp_path / "second")
    for number, values in enumerate(truth):
        np.testing.assert_array_equal(cache.read(_key(images, number)), values)


def test_lossless_formats_export_exactly_what_the_cache_reads(tmp_path, images, source):
    import h5py
    import zarr

    root = tmp_path / "root"
    _import(source, root, images)
    cache = DepthCache.open(root)
    for kind in ("hdf5", "npz", "npy", "zarr"):
        export_cache(root, tmp_path / kind, format=kind)
    with h5py.File(tmp_path / "hdf5") as file, np.load(tmp_path / "npz") as arrays:
        group = zarr.open_group(tmp_path / "zarr", mode="r")
        assert file.attrs["convention"] == group.attrs["convention"] == "relative-inverse"
        for key in list(cache.keys()):
            expected = cache.read(key)
            for values in (file[key], arrays[key], np.load(tmp_path / f"npy/{key}.npy")):
                np.testing.assert_array_equal(np.asarray(values), expected)
            np.testing.assert_array_equal(group[key][...], expected)


def test_metric_depth_is_turned_so_that_larger_is_nearer(tmp_path, images, truth):
    folder = tmp_path / "metres"
    folder.mkdir()
    metres = [np.abs(values) + 0.5 for values in truth]
    for number, values in enumerate(metres):
        np.save(folder / f"{number}.npy", values)
    _import(folder, tmp_path / "root", images, convention="metric")
    cache = DepthCache.open(tmp_path / "root")
    _assert_equal(cache, images, [1 / values for values in metres], CACHE_STEP)
    assert "farther" in cache.info()["convention"]["model_output"]


def test_cell_without_measurement_is_a_failure_not_depth(tmp_path, images, source):
    np.save(source / "3.npy", np.array([[1.0, 0.0], [2.0, 3.0]]))
    for number in (0, 1, 2, 4):
        np.save(source / f"{number}.npy", np.full((6, 8), 2.0) + np.eye(6, 8))
    np.save(source / "1.npy", np.full((6, 8), np.nan))
    summary = _import(source, tmp_path / "root", images, convention="metric")
    assert {item["path"] for item in summary.failures} == {"1", "3"}
    cache = DepthCache.open(tmp_path / "root")
    assert len(cache) == summary.num_imported == 3
    assert set(cache.failures()) == {_key(images, 1), _key(images, 3)}


def test_png_without_sidecar_keeps_its_codes_as_values(tmp_path, images):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(3)
    codes = [rng.integers(0, 65535, (6, 8), dtype=np.uint16) for _ in range(5)]
    for number, values in enumerate(codes):
        Image.fromarray(values).save(folder / f"{number}.png")
    _import(folder, tmp_path / "root", images, format="png16")
    _assert_equal(DepthCache.open(tmp_path / "root"), images, codes, CACHE_STEP)


@pytest.mark.parametrize("kind", ["P", "LA", "RGBA", "1", "tRNS"])
def test_pictures_of_any_mode_give_their_grey_and_no_palette_index(tmp_path, images, kind):
    folder = tmp_path / "pictures"
    folder.mkdir()
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    if kind == "P":
        picture = Image.fromarray(255 - grey, "P")  # its index falls where its brightness rises
        picture.putpalette([255 - i for i in range(256) for _ in range(3)])
    elif kind == "1":
        grey = np.where(grey > 100, 255, 0).astype(np.uint8)
        picture = Image.fromarray(grey).convert("1")
    else:
        picture = Image.fromarray(grey).convert("L" if kind == "tRNS" else kind)
    picture.save(folder / "0.png", **({"transparency": 255} if kind == "tRNS" else {}))
    assert _import(folder, tmp_path / "root", images, format="png8").failures == []
    stored = DepthCache.open(tmp_path / "root").read(_key(images, 0))
    np.testing.assert_allclose(stored, grey, atol=255 * CACHE_STEP)


@pytest.mark.parametrize(("kind", "reason"), [("P", "palette"), ("RGBA", "transparent")])
def test_pictures_whose_cells_are_no_grey_are_refused(tmp_path, images, kind, reason):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8), "P")
    picture.putpalette([c for i in range(256) for c in (i, 255 - i, 0)])
    if kind == "RGBA":
        picture = Image.new("RGBA", (8, 6), (9, 9, 9, 0))
    picture.save(folder / "0.png")
    (failure,) = _import(folder, tmp_path / "root", images, format="png8").failures
    assert reason in failure["reason"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (7, 7), (24, 33)])
def test_a_map_of_a_photo_as_it_lies_in_the_file_is_refused(tmp_path, caplog, orientation, shape):
    images, folder = tmp_path / "images", tmp_path / "maps"
    images.mkdir()
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (16, 12)).save(images / "phone.jpg", exif=exif)
    np.save(folder / "phone.npy", np.arange(np.prod(shape)).reshape(shape))
    summary = _import(folder, tmp_path / "root", images)
    upright = (16, 12) if orientation >= 5 else (12, 16)
    fits = shape[0] == shape[1] or (shape[0] > shape[1]) == (upright[0] > upright[1])
    if not fits and orientation >= 5:
        assert "orientation" in summary.failures[0]["reason"]
    else:
        assert summary.failures == []
    assert ("another aspect" in caplog.text) == (not fits and orientation < 5)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e9, 1.0), (-1e30, 1e20), (5e15, 40.0)])
def test_differences_survive_whatever_is_added_to_them(offset, scale):
    values = offset + scale * np.random.default_rng(0).random((6, 8))
    found = to_inverse_depth(values, "relative-inverse").astype(np.float64)
    np.testing.assert_allclose(
        found - found.min(), values - values.min(), atol=np.ptp(values) * 2.0**-17
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[1e300, 2e300]]), "float32"),
        (np.array([[1j, 2]]), "complex"),
        (np.array([["near", "far"]]), "not depth"),
        (np.zeros((1, 2), [("depth", "f4")]), "not depth"),
    ],
)
def test_values_that_are_no_depth_are_refused_in_words(values, reason):
    with pytest.raises(ValueError, match=reason):
        to_inverse_depth(values, "relative-inverse")


def test_colour_pictures_and_stacks_are_refused_by_name(tmp_path, images):
    pictures, stacks = tmp_path / "pictures", tmp_path / "stacks"
    pictures.mkdir()
    stacks.mkdir()
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(pictures / "0.png")
    np.save(stacks / "0.npy", np.zeros((2, 6, 8)))
    (stacks / "1.npy").write_bytes(b"no array")
    np.save(stacks / "2.npy", rng.random((1, 6, 8)))
    (failure,) = _import(pictures, tmp_path / "a", images, format="png8").failures
    assert "colour" in failure["reason"]
    summary = _import(stacks, tmp_path / "b", images)
    assert [item["path"] for item in summary.failures] == ["0", "1"]
    assert DepthCache.open(tmp_path / "b").read(_key(images, 2)).shape == (6, 8)


def test_paths_tell_images_of_one_name_apart(tmp_path):
    rng = np.random.default_rng(4)
    for side in ("left", "right"):
        (tmp_path / "images" / side).mkdir(parents=True)
        pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{side}/a.png")
    truth = {side: rng.random((4, 4)) for side in ("left", "right")}
    np.savez(tmp_path / "one.npz", a=truth["left"])
    with pytest.raises(CacheMismatchError, match="could belong to"):
        import_maps(tmp_path / "one.npz", tmp_path / "x", images=tmp_path / "images", format="npz")
    np.savez(tmp_path / "two.npz", **{f"{side}/a": values for side, values in truth.items()})
    import_maps(tmp_path / "two.npz", tmp_path / "y", images=tmp_path / "images", format="npz")
    cache = DepthCache.open(tmp_path / "y")
    for side, values in truth.items():
        key = image_key((tmp_path / f"images/{side}/a.png").read_bytes())
        assert np.abs(cache.read(key) - values).max() <= CACHE_STEP + 1e-6


def test_gaps_and_leftovers_are_counted(tmp_path, images, source):
    (source / "0.npy").rename(source / "unknown.npy")
    summary = _import(source, tmp_path / "root", images)
    assert (summary.num_imported, summary.num_unmatched_maps) == (4, 1)
    (without,) = summary.images_without_map
    assert without.endswith("0.png")
    with pytest.raises(CacheMismatchError, match="named after"):
        _import(source, tmp_path / "other", tmp_path / "maps")


def test_same_import_again_writes_nothing_and_other_maps_get_their_own_folder(
    tmp_path, images, source
):
    root = tmp_path / "root"
    first = _import(source, root, images, model="midas")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    again = _import(source, root, images, model="midas")
    assert (again.num_imported, again.num_present) == (0, 5)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    document = json.loads((root / first.fingerprint / "fingerprint.json").read_bytes())
    assert document["model"] == "imported/midas"
    assert document["weights_sha256"] is None
    np.save(source / "0.npy", np.eye(6, 8))
    assert _import(source, root, images, model="midas").fingerprint != first.fingerprint


def test_source_digest_is_of_names_and_bytes(tmp_path, images, source):
    summary = _import(source, tmp_path / "root", images)
    document = json.loads(
        (tmp_path / "root" / summary.fingerprint / "fingerprint.json").read_text()
    )
    lines = "".join(
        f"{number}.npy\0{hashlib.sha256((source / f'{number}.npy').read_bytes()).hexdigest()}\n"
        for number in range(5)
    )
    assert document["source_sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_wrong_calls_say_what_is_wrong(tmp_path, images, source):
    with pytest.raises(ValueError, match="format='tiff'"):
        _import(source, tmp_path / "root", images, format="tiff")
    with pytest.raises(ValueError, match="convention='depth'"):
        _import(source, tmp_path / "root", images, convention="depth")
    with pytest.raises(CacheNotFoundError, match="nowhere"):
        _import(tmp_path / "nowhere", tmp_path / "root", images)
    _import(source, tmp_path / "root", images)
    for kind in ("npy", "hdf5"):
        with pytest.raises(FileExistsError):
            export_cache(tmp_path / "root", source, format=kind)


def test_inverse_of_metric_depth_is_exact():
    metres = np.array([[0.5, 4.0]], dtype=np.float32)
    np.testing.assert_array_equal(to_inverse_depth(metres, "metric"), [[2.0, 0.25]])
    np.testing.assert_array_equal(to_inverse_depth(metres, "relative-inverse"), metres)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_source_of_another_format_is_named_with_the_remedy(tmp_path, images, kind):
    (tmp_path / "notes").write_text("no maps")
    with pytest.raises(CacheMismatchError, match=rf"notes cannot be read as {kind}: .*format"):
        _import(tmp_path / "notes", tmp_path / "root", images, format=kind)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/depthcache.json").write_text("[]")
    with pytest.raises(CacheMismatchError, match="maps"):
        _import(tmp_path / "maps", tmp_path / "root", images, format=kind)
