"""Which images a command works on: a folder, the images of a COCO file, or those of a config."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from depthcache.errors import ImageDecodeError
from depthcache.image_decoding import IMAGE_SUFFIXES, find_image_files, read_image_facts
from pipeline.errors import UsageError
from segtrain.data.coco_document import load_coco_document
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import ImageRecord, read_image_entries
from segtrain.data.image_files import find_image_file, is_file

logger = logging.getLogger(__name__)


def list_folder_images(folder: Path) -> list[Path]:
    """Image files under a folder, sorted by path. What is left out is logged by its kind.

    Args:
        folder: searched with its subfolders and linked folders; or a single image.

    Raises:
        UsageError: no such folder, or it holds no image, or it is a file of another kind.
    """
    if folder.is_file():
        _require_image(folder)
        return [folder]
    if not folder.is_dir():
        raise UsageError(f"image folder {folder} does not exist")
    found = find_image_files(folder)
    if not found.images:
        raise UsageError(
            f"{folder} holds no image; known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if found.passed_over:
        kinds = Counter(_kind_of(path) for path in found.passed_over)
        logger.info(
            "%s: %d images; left out: %s; for example %s",
            folder,
            len(found.images),
            ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
            found.passed_over[0],
        )
    return found.images


def _require_image(file: Path) -> None:
    """Refuse a file that has neither an image's ending nor an image in it."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return  # a damaged one is a failed item
    try:
        read_image_facts(file)
    except ImageDecodeError as error:
        remedy = "name a folder of images, or one image"
        if file.suffix.lower() == ".json":
            remedy = f"the images that a COCO file names are --coco {file} --images DIR"
        raise UsageError(f"{file} is no image: {error}; {remedy}") from error


def require_some_photos(records: Sequence[ImageRecord], folder: Path) -> None:
    """Refuse a folder that has none of the photos; some that are missing are failed items.

    Args:
        records: of the photos; without any nothing is refused.
        folder: that `file_name` is relative to.

    Raises:
        UsageError: names the first.
    """
    if records and not any(is_file(find_image_file(record.path)) for record in records):
        raise UsageError(
            f"none of the {len(records)} photos is in {folder}, for example "
            f"{records[0].file_name}; --images is the folder that file_name is relative to"
        )


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "folders that are linked twice or cannot be opened"
    return "macOS companions (._*)" if path.name.startswith("._") else path.suffix or path.name


def list_coco_images(annotations: Path, folder: Path) -> list[Path]:
    """Image files that a COCO file names, in its order.

    A file that does not exist stays in the list, so that stage one records it as failed.

    Args:
        annotations: COCO JSON.
        folder: folder of the images.

    Raises:
        DatasetError: not a COCO file, or an image entry without a name.
        UsageError: the folder does not exist.
    """
    return [
        find_image_file(record.path)
        for record in read_coco_images(annotations, folder, needs=("file_name",))
    ]


def read_coco_images(
    annotations: Path, folder: Path, *, needs: Sequence[str] = ("id", "file_name")
) -> list[ImageRecord]:
    """The image entries of a COCO file, for commands that read nothing else of it.

    Args:
        annotations: COCO JSON; only its list `images` is needed.
        folder: folder of the images.
        needs: fields that an entry must have.

    Raises:
        DatasetError: not a COCO file, or an entry that cannot be used.
        UsageError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"image folder {folder} does not exist")
    document = load_coco_document(annotations, lists=("images",))
    records, findings = read_image_entries(document["images"], folder, needs=needs)
    require_usable(findings, annotations)
    return records


def list_images(images: Path | None, coco: Path | None) -> list[Path]:
    """Images of a command line.

    Args:
        images: `--images`.
        coco: `--coco`, which needs `--images` as the folder of its files.

    Raises:
        UsageError: the options do not name any images.
    """
    if images is None:
        raise UsageError("say which images: --images DIR, or --coco ANN.json --images DIR")
    return list_folder_images(images) if coco is None else list_coco_images(coco, images)


def merge_image_lists(lists: Sequence[Sequence[Path]]) -> list[Path]:
    """Concatenate image lists; a path that occurs again is left out."""
    return list(dict.fromkeys(path for images in lists for path in images))
