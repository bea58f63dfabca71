"""Every kind of image file becomes upright RGB, or an error that says why not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from depthcache import decode_image, image_key
from depthcache.errors import ImageDecodeError
from depthcache.image_decoding import read_image_size

_RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_key_is_the_sha256_of_the_bytes():
    assert image_key(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_rgb_is_kept():
    assert np.array_equal(decode_image(_encoded(Image.fromarray(_RGB))), _RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(Image.fromarray(_RGB), exif=exif)
    expected = {
        1: _RGB,
        2: _RGB[:, ::-1],
        3: _RGB[::-1, ::-1],
        4: _RGB[::-1],
        5: _RGB.transpose(1, 0, 2),
        6: np.rot90(_RGB, -1),
        7: np.rot90(_RGB, 2).transpose(1, 0, 2),
        8: np.rot90(_RGB, 1),
    }[orientation]
    assert np.array_equal(decode_image(data), expected)
    assert read_image_size(data) == expected.shape[:2]


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


def test_sixteen_bit_greyscale_keeps_its_upper_bits():
    values = np.array([[0, 257, 65535]], np.uint16)
    assert decode_image(_encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 255]


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
