"""Objects whose masks are known, beside a run's boxes: a COCO file, or a folder of pictures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from depthcache import decode_image
from depthcache.image_decoding import find_image_files
from pipeline.errors import UsageError
from pipeline.masks.masks_request import MasksRequest
from pipeline.runs.stages import digest_file_list
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import ImageRecord, read_coco_file
from segtrain.data.image_files import read_image_bytes
from segtrain.data.mapper import read_image
from segtrain.data.segmentations import decode_segmentation
from segtrain.errors import DatasetError
from segtrain.labeller import LabellerSettings, MaskedCrops, MaskedObject
from segtrain.labeller.crop_network import load_crop_network


def digest_salient_set(request: MasksRequest) -> Any:
    """What a run learns from beside its boxes, for the digest of its inputs; None for nothing."""
    if request.salient is None or request.salient_images is None:
        return None
    is_file = request.salient.is_file()
    files = [request.salient] if is_file else sorted(request.salient.glob("*.png"))
    return digest_file_list([*files, *sorted(request.salient_images.glob("*"))])


def draw_salient_crops(
    request: MasksRequest, settings: LabellerSettings, start: Path
) -> MaskedCrops | None:
    """Crops of the request's salient set for the labeller that starts from `start`.

    Raises:
        UsageError, DatasetError: see `read_salient_objects`.
    """
    if request.salient is None or request.salient_images is None:
        return None
    objects = read_salient_objects(request.salient, request.salient_images)
    return MaskedCrops(objects, settings, load_crop_network(start)[0].description)


def read_salient_objects(source: Path, images: Path) -> list[MaskedObject]:
    """The objects of a COCO file's masks, or one of every mask picture in a folder.

    Args:
        source: COCO JSON whose annotations have masks; or a folder of PNG, 0 is background, each
            named as its photo.
        images: folder of the photos.

    Raises:
        UsageError: nothing there, or a photo of a mask is absent.
        DatasetError: the file cannot be used.
    """
    if not images.is_dir():
        raise UsageError(f"--salient-images {images} is no folder; name that of --salient's photos")
    if source.is_dir():
        objects = _read_pictures(source, images)
    elif source.is_file():
        objects = _read_coco(source, images)
    else:
        raise UsageError(f"--salient {source} does not exist; name a COCO JSON or a folder of PNG")
    if not objects:
        raise UsageError(f"--salient {source} holds no mask; the labeller cannot learn from it")
    return objects


def _read_coco(source: Path, images: Path) -> list[MaskedObject]:
    reading = read_coco_file(source, images, masks=True)
    require_usable(reading.findings, source)
    return [
        MaskedObject(
            name=f"annotation {annotation.annotation_id} of {record.file_name}",
            load_image=functools.partial(_read_photo, record),
            load_mask=functools.partial(
                decode_segmentation, annotation.segmentation, record.height, record.width
            ),
        )
        for record in reading.records
        for annotation in record.annotations
        if annotation.segmentation is not None
    ]


def _read_pictures(folder: Path, images: Path) -> list[MaskedObject]:
    photos = {path.stem: path for path in find_image_files(images).images}
    objects = []
    for path in sorted(folder.glob("*.png")):
        if path.stem not in photos:
            raise UsageError(f"{path} is the mask of no photo: {images} has no {path.stem}.*")
        objects.append(
            MaskedObject(
                name=path.name,
                load_image=functools.partial(_decode_photo, photos[path.stem]),
                load_mask=functools.partial(_read_mask, path),
            )
        )
    return objects


def _read_photo(record: ImageRecord) -> npt.NDArray[np.uint8]:
    return read_image(record)[0]


def _decode_photo(path: Path) -> Any:
    return decode_image(read_image_bytes(path))


def _read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """(H, W): the lighter half of grey values; of a palette, all but index 0."""
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture if picture.mode in ("1", "P") else picture.convert("L"))
            return np.asarray(values > (0 if picture.mode in ("1", "P") else 127))
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"mask {path} cannot be read: {error}") from error
