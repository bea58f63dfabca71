"""`data prepare cityscapes`: gtFine polygons to COCO boxes, masks kept apart for evaluation.

Polygons are painted in file order, later ones over earlier ones, as the official instance images
are made; a box is the tight box of what remains visible.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipeline.datasets.coco_preparation import PreparedSplit, strip_masks
from pipeline.errors import UsageError
from pipeline.runs.manifest import write_atomically
from segtrain.data.coco_findings import shorten
from segtrain.data.segmentations import encode_mask

SPLITS = ("train", "val", "test")
# Label ids of the eight classes with instances, as in the official evaluation.
INSTANCE_CLASSES = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
# Not painted by the official scripts: it has no training id and lies on a vehicle.
_UNPAINTED_LABELS = frozenset({"license plate"})
_POLYGON_SUFFIX = "_gtFine_polygons.json"
_IMAGE_SUFFIX = "_leftImg8bit.png"
_EXPECTED_TREE = """\
ROOT/
├── leftImg8bit/{train,val}/<city>/*_leftImg8bit.png
└── gtFine/{train,val}/<city>/*_gtFine_polygons.json"""


def prepare_cityscapes(
    root: Path, output: Path, *, progress: Callable[[int, int], None] | None = None
) -> list[PreparedSplit]:
    """Write `cityscapes_<split>_boxes.json` and `cityscapes_<split>_masks.json`.

    Args:
        root: Cityscapes folder with `leftImg8bit/` and `gtFine/`.
        output: folder to write into; made if absent.
        progress: called with images done and in total.

    Raises:
        UsageError: the tree is not Cityscapes, or an image has no polygon file.
    """
    files = {
        split: sorted((root / "gtFine" / split).glob(f"*/*{_POLYGON_SUFFIX}")) for split in SPLITS
    }
    num_total = sum(len(paths) for paths in files.values())
    if num_total == 0:
        raise UsageError(f"{root} holds no Cityscapes polygons; expected\n{_EXPECTED_TREE}")
    output.mkdir(parents=True, exist_ok=True)
    prepared = []
    num_done = 0
    for split, paths in files.items():
        if not paths:
            continue
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories()}
        missing = []
        for path in paths:
            name = f"{path.parent.name}/{path.name.removesuffix(_POLYGON_SUFFIX)}{_IMAGE_SUFFIX}"
            if not (root / "leftImg8bit" / split / name).is_file():
                missing.append(name)
            append_image(document, name, _load_polygons(path))
            num_done += 1
            if progress is not None:
                progress(num_done, num_total)
        boxes = output / f"cityscapes_{split}_boxes.json"
        masks = output / f"cityscapes_{split}_masks.json"
        write_atomically(boxes, json.dumps(strip_masks(document)))
        write_atomically(masks, json.dumps(document))
        prepared.append(
            PreparedSplit(
                split=split,
                boxes=boxes,
                masks=masks,
                images=root / "leftImg8bit" / split,
                num_images=len(document["images"]),
                num_boxes=len(document["annotations"]),
                missing=missing,
            )
        )
    return prepared


def append_image(document: dict[str, Any], file_name: str, polygons: dict[str, Any]) -> None:
    """Add one image and its visible instances to a COCO document.

    Args:
        document: COCO document; changed in place.
        file_name: image path inside the split's folder.
        polygons: contents of one gtFine polygon file.
    """
    height, width = int(polygons["imgHeight"]), int(polygons["imgWidth"])
    image_id = len(document["images"]) + 1
    document["images"].append(
        {"id": image_id, "file_name": file_name, "height": height, "width": width}
    )
    owners = paint_objects(polygons["objects"], height, width)
    for index, item in enumerate(polygons["objects"], start=1):
        label = str(item["label"])
        is_crowd = label.endswith("group")
        name = label.removesuffix("group")
        if name not in INSTANCE_CLASSES:
            continue
        mask = owners == index
        if not mask.any():
            continue  # wholly behind later objects
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        x, y = int(columns[0]), int(rows[0])
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1,
                "image_id": image_id,
                "category_id": INSTANCE_CLASSES[name],
                "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                "area": int(mask.sum()),
                "iscrowd": int(is_crowd),
                "segmentation": encode_mask(mask),
            }
        )


def paint_objects(objects: list[dict[str, Any]], height: int, width: int) -> npt.NDArray[np.int32]:
    """Which object each pixel shows.

    Args:
        objects: entries with `label` and `polygon`, back to front.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        (height, width) int32, 1-based index into `objects`, 0 where none is painted.
    """
    canvas = Image.new("I", (width, height), 0)
    drawing = ImageDraw.Draw(canvas)
    for index, item in enumerate(objects, start=1):
        if item.get("deleted") or item["label"] in _UNPAINTED_LABELS or len(item["polygon"]) < 3:
            continue
        drawing.polygon([(float(x), float(y)) for x, y in item["polygon"]], fill=index)
    return np.asarray(canvas, dtype=np.int32)


def _categories() -> list[dict[str, Any]]:
    return [{"id": value, "name": name} for name, value in INSTANCE_CLASSES.items()]


def _load_polygons(path: Path) -> dict[str, Any]:
    try:
        polygons = json.loads(path.read_text(encoding="utf-8"))
        if not {"imgHeight", "imgWidth", "objects"} <= polygons.keys():
            raise UsageError(
                f"{path} lacks imgHeight, imgWidth or objects: not a gtFine polygon file"
            )
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} is not a gtFine polygon file: {error}") from error
    assert isinstance(polygons, dict)
    for position, item in enumerate(polygons["objects"]):
        points = item.get("polygon") if isinstance(item, dict) else None
        if not isinstance(points, list) or "label" not in item:
            raise UsageError(
                f"{path}: objects[{position}] ({shorten(item)}) lacks label or polygon; correct or "
                "remove it"
            )
    return polygons
