"""Which images a command works on: a folder, the images of a COCO file, or those of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UsageError
from segtrain.data.coco_document import load_coco_document
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import ImageRecord, read_image_entries
from segtrain.data.image_files import find_image_file

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)


def list_folder_images(folder: Path) -> list[Path]:
    """Image files under a folder, sorted by path.

    Args:
        folder: searched with all its subfolders; a single image file is taken as it is.

    Raises:
        UsageError: no such folder, or it holds no image.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError(f"image folder {folder} does not exist")
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not images:
        raise UsageError(
            f"{folder} holds no image; known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return images


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
