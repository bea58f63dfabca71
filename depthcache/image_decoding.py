"""The one way from a file's bytes to RGB pixels, for stage one and stage two."""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from depthcache.errors import ImageDecodeError

MAX_PIXELS = 178_956_970
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)


def image_key(data: bytes) -> str:
    """Name an image by its bytes: sha256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode to RGB, upright.

    EXIF orientation is applied; greyscale, palette, CMYK and transparent images become RGB (alpha
    is dropped); 16-bit greyscale keeps its upper 8 bits; of an animation the first frame counts.

    Args:
        data: bytes of a file in any format that Pillow reads.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageDecodeError: not an image, truncated, or more than MAX_PIXELS pixels.
    """
    image = _open(data)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            values = np.asarray(upright).astype(np.float64)
            if upright.mode.startswith("I"):
                values = np.floor(values / 257.0) if values.max(initial=0) > 255 else values
            grey = np.clip(values, 0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.array(upright.convert("RGB"), dtype=np.uint8)
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        raise ImageDecodeError(f"image cannot be decoded: {error}") from error


def read_image_size(data: bytes) -> tuple[int, int]:
    """Height and width that `decode_image` gives, from the header alone.

    Raises:
        ImageDecodeError: as `decode_image`, as far as the header tells.
    """
    image = _open(data)
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception as error:  # a damaged EXIF block fails in any of Pillow's parsers
        raise ImageDecodeError(f"image has unreadable EXIF data: {error}") from error
    width, height = image.size
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageDecodeError("image file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageDecodeError("not an image of a format that Pillow reads") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        raise ImageDecodeError(f"not an image that Pillow can read: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageDecodeError(f"image of {width}×{height} pixels exceeds {MAX_PIXELS} pixels")
    return image
