"""What annotation tools' files are read into: a COCO document, and what could not be taken."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Hashable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.datasets.image_lists import list_folder_images

# Label Studio puts eight hexadecimal digits before the name of a file that was uploaded.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_GROUPED = "further part of a group of one class; one box around the group is taken"


class ImageFolder:
    """Finds the image that a tool's file means, whatever it has made of the name.

    Args:
        folder: searched with all its subfolders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [path.relative_to(folder).as_posix() for path in list_folder_images(folder)]
        self._by_key: dict[str, list[str]] = collections.defaultdict(list)
        for name in self.names:
            path = PurePosixPath(name)
            for key in dict.fromkeys((name, path.name, path.with_suffix("").as_posix(), path.stem)):
                self._by_key[key].append(name)

    def find(self, written: str) -> str | None:
        """Name of the image relative to the folder.

        Args:
            written: name, path, Windows path, URL or upload name; with or without its ending.

        Returns:
            None when no image fits, or several do and none exactly.
        """
        path = _plain_path(written)
        if path in self._by_key and path in self.names:
            return path
        parts = PurePosixPath(path).parts
        shorter = ["/".join(parts[start:]) for start in range(len(parts))]
        base = parts[-1] if parts else ""
        for key in (*shorter, _UPLOAD_PREFIX.sub("", base), PurePosixPath(base).stem):
            if len(found := self._by_key.get(key, [])) == 1:
                return found[0]
        return None

    def size(self, name: str) -> tuple[int, int]:
        """Width and height in pixels, upright as everything here sees the image.

        Raises:
            ImageDecodeError, OSError: the file is not readable as an image.
        """
        from depthcache.image_decoding import read_image_size

        height, width = read_image_size((self.folder / name).read_bytes())
        return width, height


def _plain_path(written: str) -> str:
    """A path with slashes out of a URL, a Windows path or a plain name."""
    if "://" in written or written.startswith("/data/"):
        parts = urlsplit(written)
        query = parse_qs(parts.query).get("d")  # Label Studio's local files: …/?d=folder/a.jpg
        written = unquote(query[0] if query else parts.path)
    return str(PurePosixPath(written.replace("\\", "/")))


@dataclasses.dataclass(kw_only=True)
class ImportedBoxes:
    """A COCO document in the making.

    Attributes:
        box_format: name of the format that was read.
        images: COCO's `images`.
        annotations: COCO's `annotations`, boxes as `[x, y, width, height]` in pixels.
        names: class names, in the order of their ids, which count from 1.
        skipped: entries that could not be taken: `{where, reason}` each.
        notes: what was taken otherwise than written, and how often.
    """

    box_format: str
    images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    annotations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    _grouped: dict[tuple[int, str, Hashable], dict[str, Any]] = dataclasses.field(
        default_factory=dict
    )

    def add_image(
        self, folder: ImageFolder, written: str, stated: tuple[int, int] | None, **extra: Any
    ) -> int | None:
        """Take an image.

        Args:
            folder: where the image should be.
            written: its name in the tool's file.
            stated: width and height in the tool's file; None, or a zero, reads the image's own.
            extra: further fields of the entry.

        Returns:
            Its id; None when its size is unknown, which is recorded as skipped.
        """
        name = folder.find(written)
        size = stated if stated and min(stated) > 0 else None
        if size is None and name is None:
            self.skip(written, f"no image of that name under {folder.folder}, or several")
            return None
        if size is None:
            if stated:
                self.notes["size of 0 in the file; the image's own is taken"] += 1
            try:
                size = folder.size(name or written)
            except (OSError, ValueError) as error:
                self.skip(name or written, str(error))
                return None
        image_id = len(self.images) + 1
        entry = {
            "id": image_id,
            "file_name": name or _plain_path(written),
            "width": size[0],
            "height": size[1],
        }
        self.images.append(entry | extra)
        return image_id

    def add_box(
        self,
        image_id: int,
        label: str,
        extent: Iterable[float],
        *,
        group: Hashable | None = None,
        **extra: Any,
    ) -> None:
        """Take a box.

        Args:
            image_id: as `add_image` gave it.
            label: class name; a new one is added to the classes.
            extent: left, top, right, bottom in pixels.
            group: what the tool groups the parts of an object by; shapes of one image, class and
                group are one object, and the first one's box grows around the others.
            extra: further fields of the entry.
        """
        left, top, right, bottom = (float(value) for value in extent)
        key = (image_id, label, group)
        if group is not None and (first := self._grouped.get(key)) is not None:
            x, y, width, height = first["bbox"]
            left, top = min(left, x), min(top, y)
            right, bottom = max(right, x + width), max(bottom, y + height)
            first |= _box_fields(left, top, right, bottom)
            self.notes[_GROUPED] += 1
            return
        if label not in self.names:
            self.names.append(label)
        entry = {
            "id": len(self.annotations) + 1,
            "image_id": image_id,
            "category_id": self.names.index(label) + 1,
            **_box_fields(left, top, right, bottom),
            "iscrowd": 0,
            **extra,
        }
        self.annotations.append(entry)
        if group is not None:
            self._grouped[key] = entry

    def skip(self, where: str, reason: str) -> None:
        """Record an entry that could not be taken."""
        self.skipped.append({"where": where, "reason": reason})

    def sort_names(self) -> None:
        """Order the classes by name, for formats that state no order."""
        order = sorted(self.names)
        for annotation in self.annotations:
            name = self.names[annotation["category_id"] - 1]
            annotation["category_id"] = order.index(name) + 1
        self.names = order

    def document(self) -> dict[str, Any]:
        """The COCO document."""
        categories = [{"id": index, "name": name} for index, name in enumerate(self.names, 1)]
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }


def _box_fields(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    left, top, right, bottom = (round(value, 3) for value in (left, top, right, bottom))
    return {
        "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
        "area": round((right - left) * (bottom - top), 3),
    }
