"""Boxes as annotation tools export them, from YOLO's text files to Label Studio's tasks.

Every reader takes the path and the image folder and gives `ImportedBoxes`. Whether a box is usable
is not decided here but where COCO files are read, by one rule for all formats. Turned boxes and
polygons become the upright box around them; parts that a tool groups into an object have one box.
The forms follow the tools' documentation: docs.ultralytics.com/datasets,
host.robots.ox.ac.uk/pascal/VOC, labelme's label_file.py, docs.cvat.ai/docs/other/xml_format,
labelstud.io/guide/task_format, storage.googleapis.com/openimages.
"""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.datasets.imported_boxes import ImageFolder, ImportedBoxes
from pipeline.datasets.label_studio_brush import decode_brush
from pipeline.errors import UsageError

BOX_FORMATS = ("coco", "yolo", "voc", "labelme", "cvat", "label-studio", "openimages")
_YOLO_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_YOLO_LIST_FILES = ("train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "notes.txt")
_TURNED = "turned box; the upright box around it is taken"
_OUTLINE = "polygon, ellipse or mask; the box around it is taken"
Extent = tuple[float, float, float, float]


def read_boxes(path: Path, images: Path, box_format: str = "auto") -> ImportedBoxes:
    """Read a tool's export.

    Args:
        path: file or folder of the export.
        images: folder of the images.
        box_format: one of `BOX_FORMATS` but coco, or auto.

    Raises:
        UsageError: nothing there, another form than said, or not one box or image in it.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    name = detect_format(path) if box_format == "auto" else box_format
    if name not in _READERS:
        raise UsageError(f"unknown box format {name!r}; known: auto, {', '.join(BOX_FORMATS)}")
    boxes = ImportedBoxes(box_format=name)
    _READERS[name](path, ImageFolder(images), boxes)
    if not boxes.annotations:
        first = "; the first: {where}: {reason}".format(**boxes.skipped[0]) if boxes.skipped else ""
        raise UsageError(
            f"{path} read as {name} has no box ({len(boxes.images)} images, "
            f"{len(boxes.skipped)} entries skipped{first}); is it of another format? "
            "--boxes-format says which"
        )
    return boxes


def detect_format(path: Path) -> str:
    """Tell a format by what is in the file, or in the folder's first telling file.

    Raises:
        UsageError: not one of the known forms.
    """
    if path.is_dir():
        names = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for suffixes in ((".yaml", ".yml"), (".xml",), (".json",), (".csv",), (".txt", ".names")):
            for file in names:
                if file.suffix.lower() in suffixes and (found := _detect_file(file)):
                    return found
    elif found := _detect_file(path):
        return found
    advice = "unpack it first, then name" if path.suffix.lower() == ".zip" else "name"
    raise UsageError(
        f"cannot tell what {path} is; {advice} the export's file or folder, and say what it is "
        f"with --boxes-format {'|'.join(BOX_FORMATS)}"
    )


def _detect_file(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if path.name.lower() in _YOLO_LIST_FILES:
        return None
    by_suffix = {".csv": "openimages", ".yaml": "yolo", ".yml": "yolo", ".txt": "yolo"}
    if suffix in by_suffix or path.name in _YOLO_NAME_FILES:
        return by_suffix.get(suffix, "yolo")
    if suffix == ".xml":
        return {"annotations": "cvat", "annotation": "voc"}.get(_read_xml(path).tag)
    if suffix == ".json":
        document = _read_json(path)
        if isinstance(document, list):
            return "label-studio" if document and isinstance(document[0], dict) else None
        if isinstance(document, dict):
            known = {"shapes": "labelme", "images": "coco", "annotations": "coco"}
            return next((name for key, name in known.items() if key in document), None)
    return None


# --- YOLO: one text file per image, `class cx cy width height` in shares of the image


def _read_yolo(path: Path, folder: ImageFolder, boxes: ImportedBoxes) -> None:
    root, names = _read_yolo_names(path)
    boxes.names = list(names)
    labels: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.txt")):
        if file.name not in _YOLO_NAME_FILES and file.name.lower() not in _YOLO_LIST_FILES:
            labels.setdefault(file.stem, []).append(file)
    taken: set[Path] = set()
    for image in folder.names:
        label_file = _label_file_of(image, folder, labels, root)
        if label_file is None:
            boxes.notes["image without a label file; taken as having no object"] += 1
        image_id = boxes.add_image(folder, image, None)
        if label_file is None or image_id is None:
            continue
        taken.add(label_file)
        size = (boxes.images[-1]["width"], boxes.images[-1]["height"])
        text = label_file.read_text(encoding="utf-8-sig")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                index, extent, is_outline = _parse_yolo_line(line, size)
            except ValueError as error:
                boxes.skip(f"{label_file}:{number}", str(error))
                continue
            while index >= len(boxes.names):  # no list of names: the index is the name
                boxes.names.append(str(len(boxes.names)))
            boxes.notes[_OUTLINE] += int(is_outline)
            boxes.add_box(image_id, boxes.names[index], extent)
    for unused in sorted({file for files in labels.values() for file in files} - taken):
        boxes.skip(str(unused), f"no image {unused.stem!r} under {folder.folder}, or several")


def _read_yolo_names(path: Path) -> tuple[Path, list[str]]:
    """Folder of the labels, and class names by index."""
    root = path if path.is_dir() else path.parent
    settings = path if path.suffix.lower() in (".yaml", ".yml") else None
    if path.is_dir():
        settings = next(iter(sorted(path.glob("*.yaml")) + sorted(path.glob("*.yml"))), None)
    if settings is not None:
        import yaml

        try:
            document = yaml.safe_load(settings.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(f"{settings} cannot be read: {error}") from error
        names = document.get("names") if isinstance(document, dict) else None
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=int)]
        if not isinstance(names, list):
            raise UsageError(f"{settings} has no `names`: expected a list of class names")
        stated = settings.parent / str(document.get("path") or ".")
        root = stated if path.is_file() and stated.is_dir() else root
        return root, [str(name) for name in names]
    for file in (path, *(root / name for name in _YOLO_NAME_FILES)):
        if file.is_file() and file.name in _YOLO_NAME_FILES:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            return root, [line.strip() for line in lines if line.strip()]
    return root, []


def _label_file_of(
    image: str, folder: ImageFolder, labels: Mapping[str, Sequence[Path]], root: Path
) -> Path | None:
    """The label file of an image: the only one of its name, else the one in its own place.

    Its place is `labels/` instead of `images/` in the image's path, or the same subfolder.
    """
    found = labels.get(PurePosixPath(image).stem, [])
    if len(found) == 1:
        return found[0]
    places = {tuple("labels" if p == "images" else p for p in (folder.folder / image).parent.parts)}
    places |= {(*root.parts, *PurePosixPath(image).parent.parts)}
    return next((file for file in found if file.parent.parts in places), None)


def _parse_yolo_line(line: str, size: tuple[int, int]) -> tuple[int, Extent, bool]:
    """Class index, extent in pixels, and whether the line is a polygon.

    Raises:
        ValueError: says what is wrong with the line.
    """
    fields = line.split()
    index, values = _number(fields[0], "class index"), [_number(v, "value") for v in fields[1:]]
    if not 0 <= index < 100_000 or index != int(index):
        raise ValueError(f"class index {fields[0]!r} is not a whole number from 0")
    is_outline = len(values) > 5 and len(values) % 2 == 0
    if not is_outline and len(values) not in (4, 5):
        raise ValueError(f"{len(fields)} values; expected `class cx cy width height` or a polygon")
    shares = values if is_outline else values[:4]
    if max(map(abs, shares)) > 2:
        raise ValueError(
            f"{max(shares):g} is no share of the image; YOLO's values lie between 0 and 1"
        )
    width, height = size
    if is_outline:
        points = [(x * width, y * height) for x, y in zip(shares[::2], shares[1::2], strict=True)]
        return int(index), _extent(points), True
    x, y, w, h = shares
    extent = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return int(index), extent, False


# --- Pascal VOC: one XML file per image; corners are taken as they are written, as labelImg,
# Roboflow and CVAT mean them (the devkit's own count pixels from 1, half a pixel off at most)


def _read_voc(path: Path, folder: ImageFolder, boxes: ImportedBoxes) -> None:
    for file in sorted(path.rglob("*.xml")) if path.is_dir() else [path]:
        try:
            root = _read_xml(file)
        except UsageError as error:
            boxes.skip(str(file), str(error))
            continue
        if root.tag != "annotation":
            boxes.skip(str(file), f"root element is <{root.tag}>, expected <annotation>")
            continue
        written = (root.findtext("filename") or "").strip()
        if folder.find(written or file.stem) is None:
            written = file.stem  # labelImg keeps the old name when image and file are renamed
        image_id = boxes.add_image(folder, written, _size(root.find("size")))
        if image_id is None:
            continue
        for number, item in enumerate(root.findall("object"), 1):
            where = f"{file}: object {number}"
            corners = item.find("bndbox")
            try:
                if corners is None:
                    raise ValueError("object without <bndbox>")
                names = ("xmin", "ymin", "xmax", "ymax")
                extent = [_number(corners.findtext(name), name) for name in names]
                label = (item.findtext("name") or "").strip()
                if not label:
                    raise ValueError("object without <name>")
            except ValueError as error:
                boxes.skip(where, str(error))
                continue
            boxes.add_box(image_id, label, extent)
    boxes.sort_names()


# --- LabelMe: one JSON file per image


def _read_labelme(path: Path, folder: ImageFolder, boxes: ImportedBoxes) -> None:
    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        try:
            document = _read_json(file)
            shapes, written = document["shapes"], str(document["imagePath"])
            stated = (int(document["imageWidth"] or 0), int(document["imageHeight"] or 0))
        except (UsageError, KeyError, TypeError, ValueError) as error:
            boxes.skip(str(file), f"not a LabelMe file: {error}")
            continue
        name = written if folder.find(written) else file.stem
        image_id = boxes.add_image(folder, name if folder.find(name) else written, stated)
        if image_id is None:
            continue
        for number, shape in enumerate(shapes, 1):
            try:
                kind = str(shape.get("shape_type") or "polygon")
                extent = _labelme_extent(kind, shape["points"])
                label = str(shape["label"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                boxes.skip(f"{file}: shape {number}", f"{type(error).__name__}: {error}")
                continue
            boxes.notes[_OUTLINE] += int(kind != "rectangle")
            # LabelMe's own converters take shapes of one label and group as one instance.
            group = None if shape.get("group_id") is None else str(shape["group_id"])
            boxes.add_box(image_id, label, extent, group=group)
    boxes.sort_names()


def _labelme_extent(kind: str, points: Any) -> Extent:
    corners = [(_number(x, "x"), _number(y, "y")) for x, y in points]
    if kind == "circle":
        (x, y), edge = corners
        radius = math.dist((x, y), edge)
        return (x - radius, y - radius, x + radius, y + radius)
    if kind not in ("rectangle", "polygon", "mask"):
        raise ValueError(f"a {kind} has no box; expected rectangle, polygon, circle or mask")
    left, top, right, bottom = _extent(corners)
    # The corners of a mask are its first and last pixels, those of the others lie between pixels.
    last = 1 if kind == "mask" else 0
    return (left, top, right + last, bottom + last)


# --- CVAT for images 1.1: one XML file


def _read_cvat(path: Path, folder: ImageFolder, boxes: ImportedBoxes) -> None:
    file = path / "annotations.xml" if path.is_dir() else path
    root = _read_xml(file)
    if root.tag != "annotations":
        raise UsageError(f"{file} is not of CVAT: root element <{root.tag}>, not <annotations>")
    if root.find("track") is not None:
        raise UsageError(f"{file} is of a video task; export it as `CVAT for images 1.1`")
    boxes.names = list(
        dict.fromkeys(name for label in root.iter("label") if (name := label.findtext("name")))
    )
    for image in root.findall("image"):
        written = image.get("name") or ""
        image_id = boxes.add_image(folder, written, _size(image), cvat_id=image.get("id"))
        if image_id is None:
            continue
        for number, shape in enumerate(image, 1):
            if shape.tag == "tag":
                continue
            try:
                extent, note = _cvat_extent(shape)
                label = shape.attrib["label"]
            except (KeyError, ValueError) as error:
                boxes.skip(f"{file}: {written}: shape {number} (<{shape.tag}>)", str(error))
                continue
            if note:
                boxes.notes[note] += 1
            group = shape.get("group_id")
            boxes.add_box(image_id, label, extent, group=None if group == "0" else group)


def _cvat_extent(shape: ET.Element) -> tuple[Extent, str | None]:
    def read(*names: str) -> list[float]:
        return [_number(shape.get(name), name) for name in names]

    if shape.tag == "box":
        left, top, right, bottom = read("xtl", "ytl", "xbr", "ybr")
        angle = _number(shape.get("rotation", "0"), "rotation")
        if angle % 360 == 0:
            return (left, top, right, bottom), None
        centre = ((left + right) / 2, (top + bottom) / 2)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return _extent(_turn(corners, centre, angle)), _TURNED
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
        return _extent([(_number(x, "x"), _number(y, "y")) for x, y in pairs]), _OUTLINE
    if shape.tag == "mask":
        left, top, width, height = read("left", "top", "width", "height")
        return (left, top, left + width, top + height), _OUTLINE
    if shape.tag == "ellipse":
        x, y, rx, ry = read("cx", "cy", "rx", "ry")
        angle = math.radians(_number(shape.get("rotation", "0"), "rotation"))
        half_w = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
        half_h = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
        return (x - half_w, y - half_h, x + half_w, y + half_h), _OUTLINE
    raise ValueError(f"a {shape.tag} has no box; expected box, polygon, ellipse or mask")


# --- Label Studio: a list of tasks (JSON), or one entry per task (JSON-MIN); values in percent


def _read_label_studio(path: Path, folder: ImageFolder, boxes: ImportedBoxes) -> None:
    tasks = _read_json(path)
    if not isinstance(tasks, list):
        raise UsageError(f"{path} is not of Label Studio: expected a list of tasks")
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {task.get('id', number) if isinstance(task, dict) else number}"
        try:
            data = task.get("data", task)
            written = _label_studio_image(data, folder)
            results = list(_label_studio_results(task, boxes))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            boxes.skip(where, f"not a task with an image: {error}")
            continue
        sizes = [
            (int(item["original_width"]), int(item["original_height"]))
            for item in results
            if item.get("original_width") and item.get("original_height")
        ]
        source = {"id": task.get("id"), "data": data} if "data" in task else {"id": task.get("id")}
        image_id = boxes.add_image(
            folder, written, sizes[0] if sizes else None, label_studio=source
        )
        if image_id is None:
            continue
        size = (boxes.images[-1]["width"], boxes.images[-1]["height"])
        parents = {item.get("parentID") for item in results} - {None}
        for item in results:
            try:
                labels, extent, note = _label_studio_extent(item, size)
            except (KeyError, TypeError, ValueError) as error:
                boxes.skip(f"{where}: region {item.get('id', '?')}", str(error))
                continue
            if note:
                boxes.notes[note] += 1
            group = None
            if note == _OUTLINE:  # a box is whole, and ids of regions without parts may repeat
                group = item.get("parentID") or (item["id"] if item.get("id") in parents else None)
            for label in labels:
                boxes.add_box(image_id, label, extent, group=group)
    boxes.sort_names()


def _label_studio_image(data: Mapping[str, Any], folder: ImageFolder) -> str:
    texts = [str(data["image"])] if isinstance(data.get("image"), str) else []
    texts += [value for value in data.values() if isinstance(value, str)]
    if not texts:
        raise ValueError("its data has no text that could name an image")
    return next((text for text in texts if folder.find(text)), texts[0])


def _label_studio_results(task: dict[str, Any], boxes: ImportedBoxes) -> Iterator[dict[str, Any]]:
    """Regions of a task: those of its latest annotation or prediction, or JSON-MIN's lists."""
    if not task.keys() & {"annotations", "completions", "predictions"}:
        for value in task.values():
            if isinstance(value, list):
                for region in value:
                    if isinstance(region, dict) and "x" in region:
                        yield {"type": "rectanglelabels", "value": region, **region}
        return
    written = task.get("annotations") or task.get("completions") or []
    kept = [item for item in written if not item.get("was_cancelled")]
    if len(kept) > 1:
        boxes.notes["task with several annotations; the latest is taken"] += 1
    if not written:  # exports may name predictions by their ids only
        kept = [item for item in task.get("predictions") or [] if isinstance(item, dict)]
        boxes.notes["task without an annotation; its latest prediction is taken"] += bool(kept)
    if kept:
        latest = max(kept, key=lambda item: str(item.get("updated_at") or item.get("created_at")))
        # A region's choices and texts share its id and are results of their own.
        kinds = ("rectangle", "polygon", "brush", "ellipse", "keypoint")
        yield from (item for item in latest["result"] if str(item.get("type")).startswith(kinds))


def _label_studio_extent(
    item: Mapping[str, Any], size: tuple[int, int]
) -> tuple[list[str], Extent, str | None]:
    kind, value = str(item["type"]), item["value"]
    labels = [str(label) for label in value.get(kind) or value.get("rectanglelabels") or []]
    if not labels:
        raise ValueError("region without a label")
    if item.get("image_rotation"):
        raise ValueError(f"image turned by {item['image_rotation']}° in the tool; turn the file")
    scale_x, scale_y = size[0] / 100, size[1] / 100
    if kind == "polygonlabels":
        points = [
            (_number(x, "x") * scale_x, _number(y, "y") * scale_y) for x, y in value["points"]
        ]
        return labels, _extent(points), _OUTLINE
    if kind == "brushlabels":
        return labels, _brush_extent(item, size), _OUTLINE
    if kind != "rectanglelabels":
        raise ValueError(
            f"{kind} has no box; expected rectanglelabels, polygonlabels or brushlabels"
        )
    x, y, w, h = (_number(value[name], name) for name in ("x", "y", "width", "height"))
    left, top, width, height = x * scale_x, y * scale_y, w * scale_x, h * scale_y
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    angle = _number(value.get("rotation") or 0, "rotation")
    if angle % 360 == 0:
        return labels, _extent(corners), None
    return labels, _extent(_turn(corners, (left, top), angle)), _TURNED


def _brush_extent(item: Mapping[str, Any], size: tuple[int, int]) -> Extent:
    width, height = int(item["original_width"]), int(item["original_height"])
    mask = decode_brush(item["value"]["rle"], (height, width))
    if not mask.any():
        raise ValueError("brush without a pixel")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = size[0] / width, size[1] / height
    return (columns[0] * x, rows[0] * y, (columns[-1] + 1) * x, (rows[-1] + 1) * y)


# --- Open Images: one CSV for all images, corners in shares of the image, no sizes, no endings


def _read_openimages(path: Path, folder: ImageFolder, boxes: ImportedBoxes) -> None:
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    names = _read_openimages_names(files[0].parent if files else path)
    image_ids: dict[str, int | None] = {}
    columns = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}
    for file in files:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if absent := columns - set(reader.fieldnames or ()):
                if path.is_dir():
                    continue
                raise UsageError(f"{file} is not of Open Images: no {', '.join(sorted(absent))}")
            for number, row in enumerate(reader, 2):
                written = row["ImageID"]
                if folder.find(written) is None:
                    boxes.notes["row of an image that is not in the folder; left out"] += 1
                    continue
                if written not in image_ids:
                    image_ids[written] = boxes.add_image(folder, written, None)
                image_id = image_ids[written]
                if image_id is None:
                    continue
                entry = boxes.images[image_id - 1]
                try:
                    corners = [
                        _number(row[name], name) for name in ("XMin", "YMin", "XMax", "YMax")
                    ]
                except ValueError as error:
                    boxes.skip(f"{file}:{number}", str(error))
                    continue
                scale = (entry["width"], entry["height"]) * 2
                extent = [share * side for share, side in zip(corners, scale, strict=True)]
                label = names.get(row["LabelName"], row["LabelName"])
                boxes.add_box(image_id, label, extent, iscrowd=int(row.get("IsGroupOf") == "1"))
    boxes.sort_names()


def _read_openimages_names(folder: Path) -> dict[str, str]:
    """Class name by machine id, from `class-descriptions*.csv` beside the boxes."""
    for file in sorted(folder.glob("*class-descriptions*.csv")):
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return {row[0]: row[1] for row in csv.reader(stream) if len(row) == 2}
    return {}


# --- shared


def _refuse_coco(path: Path, _folder: ImageFolder, _boxes: ImportedBoxes) -> None:
    raise UsageError(f"{path} is a COCO file already; give it as --coco")


_READERS: Mapping[str, Callable[[Path, ImageFolder, ImportedBoxes], None]] = {
    "coco": _refuse_coco,
    "yolo": _read_yolo,
    "voc": _read_voc,
    "labelme": _read_labelme,
    "cvat": _read_cvat,
    "label-studio": _read_label_studio,
    "openimages": _read_openimages,
}


def _number(value: object, name: str) -> float:
    """A finite number out of a text or number.

    Raises:
        ValueError: names the field and its value.
    """
    try:
        number = float(str(value).strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected a number")
    return number


def _extent(points: Iterable[tuple[float, float]]) -> Extent:
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _turn(
    points: Iterable[tuple[float, float]], centre: tuple[float, float], degrees: float
) -> list[tuple[float, float]]:
    """Points turned clockwise on the screen (y downwards) around a centre."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shifted = [(x - centre[0], y - centre[1]) for x, y in points]
    return [
        (centre[0] + x * cosine - y * sine, centre[1] + x * sine + y * cosine) for x, y in shifted
    ]


def _size(element: ET.Element | None) -> tuple[int, int] | None:
    """Width and height out of child elements or attributes; None when absent or no numbers."""
    if element is None:
        return None
    texts = [element.findtext(name) or element.get(name) for name in ("width", "height")]
    try:
        width, height = (int(_number(text, "size")) for text in texts)
    except ValueError:
        return None
    return width, height


def _read_xml(path: Path) -> ET.Element:
    data = path.read_bytes()
    if b"<!ENTITY" in data:  # no tool writes one; a small file could grow without bound
        raise UsageError(f"{path} declares XML entities, which no annotation tool writes")
    try:
        return ET.fromstring(data)  # noqa: S314 - entities are refused above
    except ET.ParseError as error:
        raise UsageError(f"{path} is not XML: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
