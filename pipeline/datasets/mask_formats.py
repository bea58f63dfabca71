"""Masks in the forms that annotation and training tools import.

Every writer takes a COCO document whose annotations have a `segmentation`. Masks are exact where a
tool has a form for that, and polygons where it has none or `polygons` asks for them. A filled box,
and an annotation without a mask, is written as a box where the tool has boxes, and left out where
it has none: it is no mask. The forms follow the same documentation as `box_formats`.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
import json
import os
import shutil
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.label_studio_brush import encode_brush
from pipeline.datasets.mask_polygons import bridge_polygons, flatten_polygons, mask_polygons
from pipeline.errors import UsageError
from pipeline.output import require_writable
from pipeline.runs.manifest import write_atomically
from segtrain.data.segmentations import FILLED_BOX, decode_segmentation
from segtrain.errors import DatasetError

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(kw_only=True)
class WrittenMasks:
    """What `write_masks` wrote.

    Attributes:
        out: file or folder.
        mask_format: key of `MASK_FORMATS`.
        num_masks: objects written with a mask.
        num_boxes: objects written as a box, having no mask.
        num_left_out: objects left out, because they have no mask and the form has no boxes.
    """

    out: Path
    mask_format: str
    num_masks: int = 0
    num_boxes: int = 0
    num_left_out: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Object:
    """An annotation of one image, its mask decoded.

    Attributes:
        annotation: COCO's entry.
        label: class name.
        index: position of the class among the categories.
        mask: (H, W), or None when it has none.
        polygons: corner points of the mask's outlines; empty without one.
    """

    annotation: Mapping[str, Any]
    label: str
    index: int
    mask: Mask | None

    @property
    def polygons(self) -> list[npt.NDArray[np.float64]]:
        return [] if self.mask is None else mask_polygons(self.mask)

    @property
    def area(self) -> int:
        return 0 if self.mask is None else int(self.mask.sum())

    @property
    def corners(self) -> tuple[float, float, float, float]:
        x, y, width, height = (float(value) for value in self.annotation["bbox"])
        return (x, y, x + width, y + height)


def write_masks(
    document: Mapping[str, Any], out: Path, mask_format: str, *, polygons: bool, images: Path
) -> WrittenMasks:
    """Write masks in one of `MASK_FORMATS`.

    Args:
        document: COCO document.
        out: file or folder, by the format.
        mask_format: key of `MASK_FORMATS`.
        polygons: polygons where the form knows exact masks too.
        images: folder of the images, which some forms refer to.

    Raises:
        UsageError: see `require_mask_output`.
        DatasetError: a segmentation cannot be read.
    """
    require_mask_output(out, mask_format)
    written = WrittenMasks(out=out, mask_format=mask_format)
    MASK_FORMATS[mask_format][1](document, written, polygons, images)
    return written


def require_mask_output(out: Path, mask_format: str) -> None:
    """Try where `write_masks` would write, before the work that the masks are of; makes its folder.

    Raises:
        UsageError: unknown format, a folder is named where a file is expected or the reverse, or
            nothing can be written there.
    """
    if mask_format not in MASK_FORMATS:
        raise UsageError(f"unknown mask format {mask_format!r}; known: {', '.join(MASK_FORMATS)}")
    suffix, _ = MASK_FORMATS[mask_format]
    if suffix and out.is_dir():
        raise UsageError(f"{out} is a folder; {mask_format} is one {suffix} file")
    if not suffix and out.is_file():
        raise UsageError(f"{out} is a file; {mask_format} needs a folder")
    require_writable(out, is_folder=not suffix)


def has_masks(out: Path) -> bool:
    """Whether anything is where `write_masks` wrote; an empty folder is only a tried place."""
    return any(out.iterdir()) if out.is_dir() else out.exists()


def guess_mask_format(out: Path) -> str:
    """Format by the output's ending: `.xml` CVAT, `.json` COCO.

    Raises:
        UsageError: the ending does not tell.
    """
    suffixes = {".json": "coco", ".xml": "cvat"}
    if out.suffix.lower() not in suffixes:
        raise UsageError(f"cannot tell the format of {out}; say --format {'|'.join(MASK_FORMATS)}")
    return suffixes[out.suffix.lower()]


def decode_mask(annotation: Mapping[str, Any], height: int, width: int) -> Mask | None:
    """Mask of a COCO annotation; None when it has none or it is the filled box.

    Args:
        annotation: COCO's entry; `segmentation` as polygons or run lengths.
        height: of its image.
        width: of its image.

    Raises:
        DatasetError: the segmentation is of another size or no segmentation.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation or annotation.get("mask_source") == FILLED_BOX:
        return None
    try:
        return decode_segmentation(segmentation, height, width).astype(np.bool_)
    except DatasetError as error:
        raise DatasetError(f"annotation {annotation.get('id')}: {error}") from error


def with_polygons(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with polygons instead of run lengths; crowds stay as they are."""
    sizes = {
        image["id"]: (int(image["height"]), int(image["width"])) for image in document["images"]
    }
    annotations = []
    for annotation in document["annotations"]:
        entry = dict(annotation)
        if not entry.get("iscrowd") and isinstance(entry.get("segmentation"), dict):
            mask = decode_mask(entry | {"mask_source": None}, *sizes[entry["image_id"]])
            entry["segmentation"] = (
                flatten_polygons(mask_polygons(mask)) if mask is not None else []
            )
        annotations.append(entry)
    return {**document, "annotations": annotations}


def _objects(
    document: Mapping[str, Any], written: WrittenMasks, *, has_boxes: bool
) -> Iterator[tuple[Mapping[str, Any], list[_Object]]]:
    """Images with their objects, counted as written; crowds are no objects."""
    index_of = {category["id"]: index for index, category in enumerate(document["categories"])}
    by_image: dict[Any, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(annotation)
    for image in document["images"]:
        size = (int(image["height"]), int(image["width"]))
        found = []
        for annotation in by_image[image["id"]]:
            index = index_of[annotation["category_id"]]
            mask = decode_mask(annotation, *size)
            label = str(document["categories"][index]["name"])
            item = _Object(annotation=annotation, label=label, index=index, mask=mask)
            if mask is not None and mask.any():
                written.num_masks += 1
            elif has_boxes:
                written.num_boxes += 1
                item = dataclasses.replace(item, mask=None)
            else:
                written.num_left_out += 1
                continue
            found.append(item)
        yield image, found


def _targets(document: Mapping[str, Any], out: Path, suffix: str) -> dict[Any, Path]:
    """File of each image by its id, in the image's own subfolder.

    Raises:
        UsageError: a name leads out of the folder, or two images would share a file.
    """
    targets: dict[Any, Path] = {}
    owners: dict[Path, str] = {}
    for image in document["images"]:
        name = PurePosixPath(image["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise UsageError(f"file_name {name} leads out of the folder {out}; make it relative")
        target = out / name.with_suffix(suffix)
        if target in owners:
            raise UsageError(
                f"images {owners[target]} and {name} would both be written to {target}; "
                "rename one, or choose a format of one file"
            )
        owners[target] = str(name)
        targets[image["id"]] = target
    for folder in {target.parent for target in targets.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    return targets


def _write_coco(
    document: Mapping[str, Any], written: WrittenMasks, polygons: bool, _images: Path
) -> None:
    for _ in _objects(document, written, has_boxes=True):
        pass
    chosen = with_polygons(document) if polygons else document
    write_atomically(written.out, json.dumps(chosen))


def _write_yolo_seg(
    document: Mapping[str, Any], written: WrittenMasks, _polygons: bool, images: Path
) -> None:
    """`labels/*.txt`, `images/` and `data.yaml`; bridges of no width join an object's parts.

    Ultralytics finds a photo's labels by its path, with the last folder `images` replaced by
    `labels`; so the photos are linked beside them.
    """
    import yaml

    names = {index: str(item["name"]) for index, item in enumerate(document["categories"])}
    settings = {"path": str(written.out.resolve()), "train": "images", "val": "images"}
    write_atomically(
        written.out / "data.yaml",
        yaml.safe_dump({**settings, "names": names}, sort_keys=False, allow_unicode=True),
    )
    targets = _targets(document, written.out / "labels", ".txt")
    for image, objects in _objects(document, written, has_boxes=False):
        scale = np.array([image["width"], image["height"]], dtype=np.float64)
        lines = []
        for item in objects:
            outline = np.clip(bridge_polygons(item.polygons) / scale, 0, 1)
            lines.append(
                " ".join([str(item.index), *(f"{value:.6g}" for value in outline.ravel())])
            )
        link = written.out.resolve() / "images" / image["file_name"]
        target = targets[image["id"]]
        if "images" in PurePosixPath(image["file_name"]).parent.parts:
            target = Path("/labels/".join(link.as_posix().rsplit("/images/", 1))).with_suffix(
                ".txt"
            )
            target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, "".join(f"{line}\n" for line in lines))
        _link_photo(images / image["file_name"], link)


def _link_photo(photo: Path, link: Path) -> None:
    """Let a photo be found at another place; a copy where the file system has no links."""
    if link.is_symlink():
        link.unlink()
    if link.exists() or not photo.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(photo.resolve())
    except OSError:
        shutil.copyfile(photo, link)


def _write_labelme(
    document: Mapping[str, Any], written: WrittenMasks, polygons: bool, images: Path
) -> None:
    targets = _targets(document, written.out, ".json")
    for image, objects in _objects(document, written, has_boxes=True):
        target = targets[image["id"]]
        shapes = []
        for item in objects:
            common = {"label": item.label, "group_id": item.annotation["id"], "description": "",
                      "flags": {}}  # fmt: skip
            left, top, right, bottom = item.corners
            box = [[left, top], [right, bottom]]
            if item.mask is None:
                shapes.append({**common, "points": box, "shape_type": "rectangle", "mask": None})
            elif polygons:  # parts of one object share its group
                shapes += [
                    {**common, "points": points.tolist(), "shape_type": "polygon", "mask": None}
                    for points in item.polygons
                ]
            else:
                x, y, cut = _cut(item.mask)
                corners = [[x, y], [x + cut.shape[1] - 1, y + cut.shape[0] - 1]]
                encoded = _png_base64(cut)
                shapes.append({**common, "points": corners, "shape_type": "mask", "mask": encoded})
        path = os.path.relpath((images / image["file_name"]).resolve(), target.parent.resolve())
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": path,
            "imageData": None,
            "imageHeight": int(image["height"]),
            "imageWidth": int(image["width"]),
        }
        write_atomically(target, json.dumps(content, indent=2))


def _write_cvat(
    document: Mapping[str, Any], written: WrittenMasks, polygons: bool, _images: Path
) -> None:
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    for category in document["categories"]:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = str(category["name"])
        ET.SubElement(label, "type").text = "any"
        ET.SubElement(label, "attributes")
    for number, (image, objects) in enumerate(_objects(document, written, has_boxes=True)):
        entry = ET.SubElement(
            root, "image", id=str(image.get("cvat_id") or number), name=str(image["file_name"]),
            width=str(image["width"]), height=str(image["height"]),
        )  # fmt: skip
        for item in objects:
            _add_cvat_shapes(entry, item, polygons=polygons)
    ET.indent(root)
    write_atomically(written.out, ET.tostring(root, encoding="unicode", xml_declaration=True))


def _add_cvat_shapes(entry: ET.Element, item: _Object, *, polygons: bool) -> None:
    common = {"label": item.label, "source": "auto", "occluded": "0", "z_order": "0"}
    if item.mask is None:
        names = ("xtl", "ytl", "xbr", "ybr")
        values = {name: f"{v:.2f}" for name, v in zip(names, item.corners, strict=True)}
        ET.SubElement(entry, "box", {**common, **values})
    elif polygons:
        parts = item.polygons
        group = {"group_id": str(item.annotation["id"])} if len(parts) > 1 else {}
        for points in parts:
            text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
            ET.SubElement(entry, "polygon", {**common, "points": text, **group})
    else:
        left, top, cut = _cut(item.mask)
        place = {"left": left, "top": top, "width": cut.shape[1], "height": cut.shape[0]}
        runs = ", ".join(map(str, _row_run_lengths(cut)))
        texts = {name: str(value) for name, value in place.items()}
        ET.SubElement(entry, "mask", {**common, "rle": runs, **texts})


def _write_label_studio(
    document: Mapping[str, Any], written: WrittenMasks, polygons: bool, _images: Path
) -> None:
    """Tasks with predictions; a task that came from the tool keeps its `data`, and so its image."""
    tasks = []
    for image, objects in _objects(document, written, has_boxes=True):
        source = image.get("label_studio") or {}
        results: list[dict[str, Any]] = []
        for item in objects:
            results += _label_studio_regions(item, image, polygons=polygons)
        scores = [float(item.annotation.get("score") or 0) for item in objects]
        prediction = {
            "model_version": "boxdepth",
            "score": sum(scores) / len(scores) if scores else 0.0,
            "result": results,
        }
        data = source.get("data") or {"image": image["file_name"]}
        task = {"data": data, "predictions": [prediction]}
        tasks.append({"id": source["id"], **task} if source.get("id") is not None else task)
    write_atomically(written.out, json.dumps(tasks))


def _label_studio_regions(
    item: _Object, image: Mapping[str, Any], *, polygons: bool
) -> Iterator[dict[str, Any]]:
    width, height = int(image["width"]), int(image["height"])
    percent = np.array([100 / width, 100 / height])

    def identity(part: int) -> str:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{item.annotation['id']}/{part}").hex[:10]

    def region(kind: str, value: Mapping[str, Any], part: int = 0) -> dict[str, Any]:
        return {
            "id": identity(part), "type": kind, "from_name": kind.removesuffix("labels"),
            "to_name": "image", "original_width": width, "original_height": height,
            "image_rotation": 0, "value": {**value, kind: [item.label]},
            "score": float(item.annotation.get("score") or 0),
            **({"parentID": identity(0)} if part else {}),
        }  # fmt: skip

    if item.mask is None:
        left, top, right, bottom = item.corners
        x, y = np.array([left, top]) * percent
        w, h = np.array([right - left, bottom - top]) * percent
        box = {"x": x, "y": y, "width": w, "height": h, "rotation": 0}
        yield region("rectanglelabels", box)
    elif polygons:
        for part, points in enumerate(item.polygons):
            yield region(
                "polygonlabels", {"points": (points * percent).tolist(), "closed": True}, part
            )
    else:
        yield region("brushlabels", {"format": "rle", "rle": encode_brush(item.mask)})


def _write_png(
    document: Mapping[str, Any], written: WrittenMasks, _polygons: bool, _images: Path
) -> None:
    """16-bit pictures of instance numbers, 0 where nothing is, and `instances.json` beside them."""
    from PIL import Image

    index: dict[str, list[dict[str, Any]]] = {}
    targets = _targets(document, written.out, ".png")
    for image, objects in _objects(document, written, has_boxes=False):
        numbers = np.zeros((int(image["height"]), int(image["width"])), dtype=np.uint16)
        entries = []
        for number, item in enumerate(objects, 1):
            entries.append(
                {"number": number, "annotation_id": item.annotation["id"], "label": item.label,
                 "category_id": item.annotation["category_id"]}
            )  # fmt: skip
        for number, item in sorted(enumerate(objects, 1), key=lambda pair: -pair[1].area):
            numbers[item.mask] = number  # small ones last, so that they stay on top
        target = targets[image["id"]]
        Image.fromarray(numbers).save(target)
        index[target.relative_to(written.out).as_posix()] = entries
    write_atomically(written.out / "instances.json", json.dumps(index, indent=1))


# Ending of the one file, or "" for a folder, and the writer.
MASK_FORMATS: Mapping[
    str, tuple[str, Callable[[Mapping[str, Any], WrittenMasks, bool, Path], None]]
] = {
    "coco": (".json", _write_coco),
    "yolo-seg": ("", _write_yolo_seg),
    "labelme": ("", _write_labelme),
    "cvat": (".xml", _write_cvat),
    "label-studio": (".json", _write_label_studio),
    "png": ("", _write_png),
}


def _cut(mask: Mask) -> tuple[int, int, Mask]:
    """Left, top, and the mask cut to its extent."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, mask[top : rows[-1] + 1, left : columns[-1] + 1]


def _row_run_lengths(mask: Mask) -> list[int]:
    """Run lengths row by row, beginning with the zeros, as CVAT writes them."""
    values = mask.ravel()
    changes = np.flatnonzero(np.diff(values.astype(np.int8), prepend=0))
    return [int(run) for run in np.diff([0, *changes, values.size])]


def _png_base64(mask: Mask) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
