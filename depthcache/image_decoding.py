"""The one way from a file's bytes to RGB pixels, for stage one and stage two; and which files."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
)

from depthcache.errors import ImageDecodeError

MAX_PIXELS = 178_956_970
IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for endings in (
        ("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "bmp", "dib", "tif", "tiff"),
        ("webp", "avif", "avifs", "heic", "heif", "hif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
        ("ppm", "pgm", "pbm", "pnm", "pfm", "tga"),
    )
    for ending in endings
)
_EXIF_ORIENTATION = 0x0112
_UNSIGNED = 1  # the TIFF tag SampleFormat
_TRANSPOSED = (5, 6, 7, 8)
# Resampling overshoots; what lies further out than this was never meant as 0 to 1.
_FLOAT_RANGE = (-0.5, 1.5)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What the header of an image file says.

    Attributes:
        stored_size: (H, W) of the pixels as they lie in the file.
        orientation: EXIF or TIFF orientation, 1 to 8; 1 lies upright.
    """

    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) upright, as `decode_image` gives it."""
        height, width = self.stored_size
        return (width, height) if self.orientation in _TRANSPOSED else (height, width)


def image_key(data: bytes) -> str:
    """Name an image by its bytes: sha256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode to RGB, upright, by rules that look at the file's type and never at its content.

    EXIF and TIFF orientation are applied; greyscale, palette, CMYK and transparent images become
    RGB (alpha is dropped); 16-bit images keep their upper 8 bits; floating-point images hold 0
    (black) to 1 (white), are clipped to that and scaled by 255; of an animation the first frame
    counts. A 12-bit camera's frame in a 16-bit file is therefore dark: scale it when it is written.

    Args:
        data: bytes of a file in any format that Pillow reads; HEIC with the extra `heif`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageDecodeError: not an image, truncated, more than MAX_PIXELS pixels, floating-point
            values far from 0 to 1, or integers that are signed or of 32 bits.
    """
    image = _open(io.BytesIO(data))
    facts = _read_facts(image)
    try:
        wide_bits = _count_wide_bits(image)
        white_is_zero = _tags(image).get(PHOTOMETRIC_INTERPRETATION) == 0
        image.load()
        upright = ImageOps.exif_transpose(image)
        if wide_bits or upright.mode == "F":
            values = np.asarray(upright)
            grey = (values >> (wide_bits - 8)).astype(np.uint8) if wide_bits else _scale(values)
            grey = 255 - grey if white_is_zero else grey  # of 8 bits and fewer Pillow sees to that
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            pixels = np.array(upright.convert("RGB"), dtype=np.uint8)
    except ImageDecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        raise ImageDecodeError(f"image cannot be decoded: {error}") from error
    if pixels.shape[:2] != facts.size:
        raise ImageDecodeError(f"image has {pixels.shape[:2]} pixels, its header says {facts.size}")
    return pixels


def read_image_facts(source: bytes | Path) -> ImageFacts:
    """Size and orientation of an image, from the header alone.

    Args:
        source: the file's bytes, or where it lies.

    Raises:
        ImageDecodeError: as `decode_image`, as far as the header tells.
        OSError: the file cannot be read.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _read_facts(_open(file))
    return _read_facts(_open(io.BytesIO(source)))


def read_image_size(source: bytes | Path) -> tuple[int, int]:
    """Height and width that `decode_image` gives; arguments and errors as `read_image_facts`."""
    return read_image_facts(source).size


@dataclass(kw_only=True)
class FoundFiles:
    """Files under a folder.

    Attributes:
        images: those whose ending is an image's, sorted by path.
        passed_over: all others: files of another ending, macOS's `._*` companions, folders that
            cannot be opened or that a link leads to a second time.
    """

    images: list[Path] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)


def find_image_files(folder: Path) -> FoundFiles:
    """Images in a folder, its subfolders and the folders that links in it lead to, each once.

    A link to an image that does not exist counts as an image, so that whoever reads it says so.
    """
    found = FoundFiles()
    seen: set[Path] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        current = folders.pop() if folders else links.pop(0)  # a folder by its own path, if it has
        try:
            entries = [] if current.resolve() in seen else sorted(current.iterdir())
        except OSError:
            found.passed_over.append(current)
            continue
        if current.resolve() in seen:
            found.passed_over.append(current)
        seen.add(current.resolve())
        for path in entries:
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif (
                path.suffix.lower() in IMAGE_SUFFIXES
                and not path.name.startswith("._")
                and (path.is_file() or path.is_symlink())
            ):
                found.images.append(path)
            else:
                found.passed_over.append(path)
    found.images.sort()
    found.passed_over.sort()
    return found


def name_dataset(paths: Iterable[Path]) -> str:
    """The folder that images share, by its last two names: `coco/train2017`; empty without images.

    Who looks at a shared cache finds a data set by it; nothing else reads it.
    """
    folders = {path.parent for path in paths}
    if not folders:
        return ""
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return "/".join(common.parts[1:][-2:])


def _open(file: Any) -> Image.Image:
    head = file.read(12)
    file.seek(0)
    if not head:
        raise ImageDecodeError("image file is empty (0 bytes)")
    if head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS:
        _enable_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file)
    except UnidentifiedImageError as error:
        raise ImageDecodeError("not an image of a format that Pillow reads") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        raise ImageDecodeError(f"not an image that Pillow can read: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageDecodeError(f"image of {width}×{height} pixels exceeds {MAX_PIXELS} pixels")
    return image


def _enable_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageDecodeError(
            "HEIC and HEIF need the extra `heif` (pip install 'boxdepth[heif]'); or convert to JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def _read_facts(image: Image.Image) -> ImageFacts:
    """Facts of an image that is not loaded: loading a TIFF turns it upright and forgets the tag."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        width, height = image.size
        if image.format == "TIFF":  # whose `size` is upright in some releases of Pillow only
            width, height = _tags(image)[IMAGEWIDTH], _tags(image)[IMAGELENGTH]
        if orientation not in range(1, 9):
            orientation = 1  # as exif_transpose takes it
        return ImageFacts(stored_size=(int(height), int(width)), orientation=int(orientation))
    except Exception as error:  # a damaged EXIF block fails in any of Pillow's parsers
        raise ImageDecodeError(f"image has unreadable EXIF data: {error}") from error


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _count_wide_bits(image: Image.Image) -> int:
    """Bits of an unsigned integer pixel of more than 8, of which the upper 8 count; else 0.

    Raises:
        ImageDecodeError: more than 16 or signed ones, for which no rule says what is white.
    """
    if image.mode != "I" and not image.mode.startswith("I;"):
        return 0
    bits = int(_tags(image).get(BITSPERSAMPLE, (16,))[0])
    if bits > 16 or _tags(image).get(SAMPLEFORMAT, (_UNSIGNED,))[0] != _UNSIGNED:
        raise ImageDecodeError(
            f"image of {bits}-bit integers, or of signed ones: nobody knows which of them is "
            "white; convert it to 8 or unsigned 16 bits"
        )
    return bits


def _scale(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    low, high = (float(v) for v in (values.min(), values.max()))  # NaN anywhere makes both NaN
    if not (_FLOAT_RANGE[0] <= low <= high <= _FLOAT_RANGE[1]):
        raise ImageDecodeError(
            f"floating-point image with values from {low:g} to {high:g}; expected 0 (black) to 1 "
            "(white): scale it, or save it with 8 bits"
        )
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
