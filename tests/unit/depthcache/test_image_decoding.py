"""Every kind of image file becomes upright RGB, or an error that says why not."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from depthcache import decode_image, image_key
from depthcache.errors import ImageDecodeError
from depthcache.image_decoding import (
    find_image_files,
    name_dataset,
    read_image_facts,
    read_image_size,
)

_RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_key_is_the_sha256_of_the_bytes():
    assert image_key(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_rgb_is_kept():
    assert np.array_equal(decode_image(_encoded(Image.fromarray(_RGB))), _RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_the_header_says_the_size(orientation, kind, tmp_path):
    rgb = np.full((16, 24, 3), 30, np.uint8)
    rgb[:8, :8] = 220  # the corner tells the eight apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    options |= {} if kind == "JPEG2000" else {"exif": exif}
    data = _encoded(Image.fromarray(rgb), kind, **options)
    expected = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: np.rot90(rgb, 2).transpose(1, 0, 2),
        8: np.rot90(rgb, 1),
    }[1 if kind == "JPEG2000" else orientation]
    decoded = decode_image(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() < 60
    (tmp_path / "file").write_bytes(data)
    for source in (data, tmp_path / "file"):
        assert read_image_size(source) == expected.shape[:2]
        if kind not in ("AVIF", "JPEG2000"):  # AVIF keeps its turns in properties of its own
            facts = read_image_facts(source)
            assert (facts.stored_size, facts.orientation) == ((16, 24), orientation)


def test_greyscale_palette_alpha_and_bilevel_become_rgb():
    grey = np.array([[0, 7], [200, 255]], np.uint8)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    image = Image.fromarray(grey)
    for mode in ("L", "LA", "RGBA", "P"):
        assert np.array_equal(decode_image(_encoded(image.convert(mode))), expected), mode
    bilevel = decode_image(_encoded(image.convert("1", dither=Image.Dither.NONE)))
    assert np.array_equal(bilevel[..., 0], [[0, 0], [255, 255]])


def test_cmyk_becomes_rgb():
    decoded = decode_image(_encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert np.array_equal(decoded, np.full((8, 8, 3), (255, 0, 0)))


@settings(max_examples=50, deadline=None)
@given(values=arrays(np.uint16, (3, 5)))
def test_sixteen_bits_keep_their_upper_eight_whatever_they_hold(values):
    expected = np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    pgm = b"P5 5 3 65535 " + values.astype(">u2").tobytes()
    for data in (_encoded(Image.fromarray(values)), _encoded(Image.fromarray(values), "TIFF"), pgm):
        assert np.array_equal(decode_image(data), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_where_a_tiff_says_so(dtype):
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    values = np.array([[0, top // 4 if top > 1 else 0.25, top]], dtype)
    as_written = io.BytesIO()
    Image.fromarray(values).save(as_written, "TIFF")
    data = bytearray(as_written.getvalue())
    entry = data.index(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation, one short
    data[entry + 8 : entry + 10] = struct.pack("<H", 0)
    plain = decode_image(as_written.getvalue())
    assert np.array_equal(decode_image(bytes(data)), 255 - plain)


@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_integers_of_which_nobody_knows_the_white_are_refused(dtype):
    if dtype is np.int32:
        data = _encoded(Image.fromarray(np.arange(6, dtype=np.int32).reshape(2, 3)), "TIFF")
    else:
        data = _encoded(
            Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3)), "TIFF", tiffinfo={339: 2}
        )
    with pytest.raises(ImageDecodeError, match="white"):
        decode_image(data)


@settings(max_examples=50, deadline=None)
@given(values=arrays(np.float32, (3, 5), elements=st.floats(-0.5, 1.5, width=32)))
def test_floats_are_zero_to_one_whatever_they_hold(values):
    decoded = decode_image(_encoded(Image.fromarray(values), "TIFF"))
    expected = np.rint(np.clip(values, 0, 1) * 255)
    assert np.array_equal(decoded, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("outlier", [255.0, -3.0, np.nan, np.inf])
def test_floats_that_are_not_zero_to_one_are_refused(outlier):
    values = np.full((2, 3), 0.5, np.float32)
    values[1, 1] = outlier
    with pytest.raises(ImageDecodeError, match="expected 0"):
        decode_image(_encoded(Image.fromarray(values), "TIFF"))


def test_heic_is_read_with_its_extra_and_named_without(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = _encoded(Image.fromarray(np.full((40, 64, 3), 90, np.uint8)), "HEIF")
    assert decode_image(data).shape == (*read_image_size(data), 3) == (40, 64, 3)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageDecodeError, match="extra `heif`"):
        decode_image(data)


def test_folders_give_every_image_once_and_tell_what_they_passed_over(tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    (folder / "sub.jpg").mkdir(parents=True)
    elsewhere.mkdir()
    images = ["a.JPG", "b.jfif", "sub.jpg/c.jpe", "d.avif", "e.jp2", "f.mpo", "g.heic", "h.tif"]
    for name in images:
        (folder / name).touch()
    (elsewhere / "x.png").touch()
    (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder / "sub.jpg")
    (folder / "loop").symlink_to(folder)
    for name in ("notes.txt", "._a.JPG", "sub.jpg/labels.json"):
        (folder / name).touch()
    found = find_image_files(folder)
    expected = sorted(folder / name for name in (*images, "broken.png", "linked/x.png"))
    assert found.images == expected
    names = {path.relative_to(folder).as_posix() for path in found.passed_over}
    assert names == {"notes.txt", "._a.JPG", "sub.jpg/labels.json", "again", "loop"}


def test_first_frame_of_an_animation_counts():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data) == 10).all()


def test_truncated_files_are_errors():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG"):
        data = _encoded(noise, kind)
        with pytest.raises(ImageDecodeError):
            decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_bytes_that_are_no_image_are_errors(data):
    for read in (decode_image, read_image_size):
        with pytest.raises(ImageDecodeError):
            read(data)


def test_decompression_bombs_are_refused_from_their_header():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    for read in (decode_image, read_image_size):
        with pytest.raises(ImageDecodeError, match="pixels"):
            read(png)


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["/data/coco/train2017/1.jpg", "/data/coco/train2017/2.jpg"], "coco/train2017"),
        (["/data/coco/train2017/1.jpg", "/data/coco/val2017/2.jpg"], "data/coco"),
        (["/photos/1.jpg"], "photos"),
        (["/1.jpg"], ""),
        ([], ""),
    ],
)
def test_a_data_set_is_named_after_the_folder_that_its_images_share(paths, name):
    assert name_dataset(map(Path, paths)) == name
