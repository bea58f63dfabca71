"""Read a COCO file as boxes and classes; masks are left out unless they are asked for.

A mask that is not asked for is never parsed, so it cannot influence training.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segtrain.errors import DatasetError

BadBoxPolicy = Literal["drop", "refuse"]


@dataclass(frozen=True, kw_only=True)
class BoxAnnotation:
    """One object: a box inside its image, and a class.

    Attributes:
        box_xyxy: x1, y1, x2, y2 in pixels of the original image.
        category: contiguous class index, 0 … number of classes − 1.
        segmentation: COCO polygons or RLE, only when masks were asked for and there is one.
        annotation_id: the id in the file, 0 when it has none.
    """

    box_xyxy: tuple[float, float, float, float]
    category: int
    segmentation: Any = None
    annotation_id: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image with its boxes.

    Attributes:
        path: the image file.
        file_name: as it stands in the COCO file.
        height: pixels, as the COCO file states.
        width: pixels, as the COCO file states.
    """

    image_id: int
    path: str
    file_name: str
    height: int
    width: int
    annotations: tuple[BoxAnnotation, ...]


@dataclass(frozen=True, kw_only=True)
class BoxDataset:
    """A COCO file after reading.

    Attributes:
        records: images in the order of their ids.
        categories: `{"id", "name"}` by contiguous class index; ids may have gaps.
        dropped: how many annotations or images were left out, by reason.
    """

    records: list[ImageRecord]
    categories: list[dict[str, Any]]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def num_boxes(self) -> int:
        """Boxes over all images."""
        return sum(len(record.annotations) for record in self.records)


def read_coco_boxes(
    annotation_file: str | Path,
    image_folder: str | Path,
    *,
    keep_masks: bool = False,
    keep_images_without_boxes: bool = False,
    bad_boxes: BadBoxPolicy = "drop",
    needs_annotations: bool = True,
) -> BoxDataset:
    """Read boxes and classes of a COCO file.

    Crowd annotations are left out. A box that reaches out of its image is clipped. A box that is
    not finite, has no area, is inverted, or lies outside its image is bad.

    Args:
        annotation_file: COCO JSON.
        image_folder: folder that `file_name` is relative to.
        keep_masks: keep `segmentation`; False means that masks are never looked at.
        keep_images_without_boxes: keep images that have no usable box.
        bad_boxes: `"drop"` leaves bad boxes out and counts them, `"refuse"` raises.
        needs_annotations: refuse a file without the list of annotations.

    Returns:
        The dataset; `dropped` counts what was left out by reason.

    Raises:
        DatasetError: not a COCO file, an entry without what it needs, an annotation of an unknown
            image or class, a bad box while `bad_boxes="refuse"`, or nothing left to train on.
    """
    document = _load_document(Path(annotation_file), needs_annotations)
    categories = _read_categories(document["categories"], annotation_file)
    index_of_category = {item["id"]: index for index, item in enumerate(categories)}
    images = _read_images(document["images"], annotation_file)

    dropped: Counter[str] = Counter()
    annotations: dict[int, list[BoxAnnotation]] = {image_id: [] for image_id in images}
    for position, item in enumerate(document.get("annotations", [])):
        if not isinstance(item, dict):
            raise DatasetError(f"{annotation_file}: annotations[{position}] is {item!r}, no object")
        where = f"{annotation_file}: annotation {item.get('id')}"
        image_id, category_id = item.get("image_id"), item.get("category_id")
        if image_id not in images:
            raise DatasetError(
                f"{where} belongs to image {image_id!r}, which the file does not list"
            )
        if category_id not in index_of_category:
            raise DatasetError(
                f"{where} has category {category_id!r}; the file lists "
                f"{sorted(map(str, index_of_category))}"
            )
        if item.get("iscrowd", 0):
            dropped["crowd annotation"] += 1
            continue
        image = images[image_id]
        box, problem = clip_xywh_box(item.get("bbox"), image["width"], image["height"])
        if box is None:
            if bad_boxes == "refuse":
                raise DatasetError(
                    f"{where} of image {image['file_name']}: {problem}: bbox={item.get('bbox')}; "
                    "correct the file, or set data.bad_boxes=drop to leave such boxes out"
                )
            dropped[problem] += 1
            continue
        annotations[image_id].append(
            BoxAnnotation(
                box_xyxy=box,
                category=index_of_category[category_id],
                segmentation=(item.get("segmentation") or None) if keep_masks else None,
                annotation_id=item["id"] if isinstance(item.get("id"), int) else 0,
            )
        )

    records = []
    for image_id, image in sorted(images.items()):
        if not annotations[image_id] and not keep_images_without_boxes:
            dropped["image without usable boxes"] += 1
            continue
        records.append(
            ImageRecord(
                image_id=image_id,
                path=str(Path(image_folder) / str(image["file_name"])),
                file_name=str(image["file_name"]),
                height=image["height"],
                width=image["width"],
                annotations=tuple(annotations[image_id]),
            )
        )
    if not records:
        raise DatasetError(
            f"{annotation_file}: no image is left to use; left out: {dict(dropped) or 'nothing'}"
        )
    return BoxDataset(records=records, categories=categories, dropped=dict(dropped))


def clip_xywh_box(
    bbox: Any, width: int, height: int
) -> tuple[tuple[float, float, float, float] | None, str]:
    """Turn a COCO box into corners inside the image.

    Args:
        bbox: x, y, width, height in pixels; anything may stand in a file.
        width: of the image in pixels.
        height: of the image in pixels.

    Returns:
        (x1, y1, x2, y2) and an empty text, or None and what is wrong with the box.
    """
    try:
        x, y, box_width, box_height = (float(value) for value in bbox)
    except (TypeError, ValueError):
        return None, "box is not four numbers"
    if not all(math.isfinite(value) for value in (x, y, box_width, box_height)):
        return None, "box is not finite"
    if box_width < 0 or box_height < 0:
        return None, "box is inverted"
    if box_width == 0 or box_height == 0:
        return None, "box has no area"
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + box_width, float(width)), min(y + box_height, float(height))
    if x2 <= x1 or y2 <= y1:
        return None, "box lies outside its image"
    return (x1, y1, x2, y2), ""


def _read_categories(entries: list[Any], source: str | Path) -> list[dict[str, Any]]:
    """`{"id", "name"}` in the order of the ids."""
    categories = []
    for position, entry in enumerate(entries):
        where = f"{source}: categories[{position}]"
        _require_fields(entry, {"id": int, "name": str}, where)
        categories.append({"id": entry["id"], "name": entry["name"]})
    if len({item["id"] for item in categories}) != len(categories):
        raise DatasetError(f"{source}: two categories share an id")
    return sorted(categories, key=lambda item: item["id"])


def _read_images(entries: list[Any], source: str | Path) -> dict[int, dict[str, Any]]:
    """Image entries by id, with whole numbers of pixels."""
    images = {}
    for position, entry in enumerate(entries):
        where = f"{source}: images[{position}]"
        _require_fields(entry, {"id": int, "file_name": str, "width": int, "height": int}, where)
        if entry["width"] < 1 or entry["height"] < 1:
            raise DatasetError(
                f"{where} ({entry['file_name']}) states a size of {entry['width']}x"
                f"{entry['height']} pixels; both must be at least 1"
            )
        images[entry["id"]] = entry
    if len(images) != len(entries):
        raise DatasetError(f"{source}: two images share an id")
    return images


def _require_fields(entry: Any, fields: Mapping[str, type], where: str) -> None:
    for name, kind in fields.items():
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatasetError(
                f"{where} has {name}={value!r}, expected {kind.__name__}; "
                "`pipeline data check` names every such entry"
            )


def _load_document(annotation_file: Path, needs_annotations: bool) -> Mapping[str, Any]:
    try:
        document = json.loads(annotation_file.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"there is no annotation file {annotation_file}") from error
    except (ValueError, OSError) as error:
        raise DatasetError(f"{annotation_file} cannot be read as JSON: {error}") from error
    absent = [
        name
        for name in ("images", "annotations", "categories")
        if not isinstance(document, dict)
        or not isinstance(document.get(name, None if needs_annotations else []), list)
    ]
    if absent:
        raise DatasetError(f"{annotation_file} is not a COCO file: it has no list {absent[0]!r}")
    if not document["categories"]:
        raise DatasetError(f"{annotation_file} lists no categories")
    assert isinstance(document, dict)
    return document
