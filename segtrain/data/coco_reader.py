"""The one reader of COCO files: a document becomes records, and findings about what is odd in it.

Training, evaluation, labelling, prediction, depth and `data check` read COCO files through here, so
that they agree. The reader raises only when there is no COCO file at all; a caller says by
`require_usable(reading.findings, path)` that it cannot go on with what is refused.

    reading = read_coco_file(path, image_folder)      # or read_coco(document, image_folder)
    require_usable(reading.findings, path)
    for record in reading.records:                    # images in the order of the file
        for annotation in record.annotations:         # usable boxes; crowds are apart
            reading.document["annotations"][annotation.position]["segmentation"] = …
    reading.left_out                                  # position → kind, of boxes that are unusable

Rules: ids are whole numbers or text, and equal when their texts are: 1, 1.0 and "1" are one id.
Classes are numbered by the order of their ids. `iscrowd` may be 0, 1, true, false or their text.
Boxes are clipped to their image. `segmentation` is looked at only when masks are asked for.
"""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segtrain.data.box_coordinates import Box, clip_box, find_mistake_of_all
from segtrain.data.coco_document import load_coco_document
from segtrain.data.coco_findings import FINDING_KINDS, Finding, require_usable, shorten
from segtrain.data.segmentations import FILLED_BOX, check_segmentation

Id = int | str

IMAGE_FIELDS = ("id", "file_name", "width", "height")
# What COCO's evaluation looks at and the model gives per image.
_MAX_DETECTIONS = 100
_MAX_SIDE = 1_000_000
# Run lengths are 32-bit numbers.
_MAX_PIXELS = 2**32 - 1
_CROWD_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True, kw_only=True)
class BoxAnnotation:
    """One object: a box inside its image, and a class.

    Attributes:
        box_xyxy: x1, y1, x2, y2 in pixels of the original image.
        category: contiguous class index, 0 … number of classes − 1.
        segmentation: COCO polygons or RLE, only when masks were asked for and there is one.
        annotation_id: the id in the file, None when it has none.
        position: in the file's `annotations`.
    """

    box_xyxy: Box
    category: int
    segmentation: Any = None
    annotation_id: Id | None = None
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image with its boxes.

    Attributes:
        image_id: the id in the file.
        path: the image file.
        file_name: as it stands in the COCO file.
        height: pixels, as the COCO file states.
        width: pixels, as the COCO file states.
        annotations: objects that count.
        crowds: regions that count neither way in evaluation, only those with a usable box.
    """

    image_id: Id
    path: str
    file_name: str
    height: int
    width: int
    annotations: tuple[BoxAnnotation, ...]
    crowds: tuple[BoxAnnotation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CocoReading:
    """What a COCO file holds.

    Attributes:
        document: as it was read; nothing in it is changed.
        records: images in the order of the file.
        categories: `{"id", "name"}` by contiguous class index; ids may have gaps.
        left_out: kind of finding by position in `annotations`, of boxes that cannot be used.
        findings: everything to say, in the order of the file.
    """

    document: Mapping[str, Any]
    records: list[ImageRecord]
    categories: list[dict[str, Any]]
    left_out: dict[int, str]
    findings: list[Finding]


def read_coco_file(
    annotation_file: str | Path,
    image_folder: str | Path,
    *,
    masks: bool = False,
    needs_annotations: bool = True,
) -> CocoReading:
    """Read a COCO file.

    Args:
        annotation_file: COCO JSON.
        image_folder: folder that `file_name` is relative to; it is not looked into.
        masks: read `segmentation`, too; False means that masks are never looked at.
        needs_annotations: refuse a file without the list of annotations.

    Raises:
        DatasetError: not a COCO file at all.
    """
    optional = () if needs_annotations else ("annotations",)
    document = load_coco_document(annotation_file, optional=optional)
    return read_coco(document, image_folder, masks=masks)


def read_usable_boxes(annotation_file: str | Path, image_folder: str | Path) -> CocoReading:
    """Read the boxes of a COCO file that work can go on with.

    Raises:
        DatasetError: not a COCO file, or something in it is refused.
    """
    reading = read_coco_file(annotation_file, image_folder)
    require_usable(reading.findings, annotation_file)
    return reading


def read_coco(
    document: Mapping[str, Any], image_folder: str | Path = "", *, masks: bool = False
) -> CocoReading:
    """Read a COCO document, as `load_coco_document` gives it.

    Args:
        document: with the lists `images`, `annotations` and `categories`.
        image_folder: folder that `file_name` is relative to; it is not looked into.
        masks: read `segmentation`, too.
    """
    records, findings = read_image_entries(document["images"], image_folder)
    categories, category_findings = _read_categories(document["categories"])
    findings += category_findings
    reader = _AnnotationReader(document, records, categories, masks)
    for position, entry in enumerate(document["annotations"]):
        reader.read(position, entry)
    findings += reader.findings
    findings += _duplicate_ids("annotation", document["annotations"])
    findings += _describe_images(reader)
    findings += [
        Finding(kind="unused_category", detail=f"{item['name']!r} (id {item['id']})")
        for item in categories
        if id_text(item["id"]) not in reader.used_categories
    ]
    return CocoReading(
        document=document,
        records=[
            replace(record, annotations=tuple(objects), crowds=tuple(crowds))
            for record, objects, crowds in zip(records, reader.objects, reader.crowds, strict=True)
        ],
        categories=categories,
        left_out=reader.left_out,
        findings=findings,
    )


def find_absence_of_boxes(reading: CocoReading) -> list[Finding]:
    """A finding when no image has a usable box, for those who cannot go on without.

    It is apart from `CocoReading.findings` because a test file may list images only.
    """
    if any(record.annotations for record in reading.records):
        return []
    reasons = Counter(reading.left_out.values())
    reasons["crowd_box"] = sum(len(record.crowds) for record in reading.records)
    why = ", ".join(f"{count} × {kind}" for kind, count in (+reasons).items())
    num_annotations = len(reading.document["annotations"])
    detail = f"none of {num_annotations} annotations is a box that can be used"
    return [Finding(kind="no_boxes", detail=f"{detail}: {why}" if why else detail)]


def read_image_entries(
    entries: Sequence[Any], image_folder: str | Path, *, needs: Sequence[str] = IMAGE_FIELDS
) -> tuple[list[ImageRecord], list[Finding]]:
    """The images of a COCO file, for those who read nothing else of it.

    Args:
        entries: the list `images`.
        image_folder: folder that `file_name` is relative to.
        needs: fields that the caller reads; others may be absent and are 0 or empty.

    Returns:
        Records without annotations, of the entries that are well formed; and the findings.
    """
    findings = [] if entries else [Finding(kind="no_images", detail="lists no images")]
    records = []
    for position, entry in enumerate(entries):
        problems = _problems_of(entry, {name: _IMAGE_FIELD_RULES[name] for name in needs})
        if problems:
            findings.append(_malformed(f"images[{position}]", problems))
            continue
        name = str(entry.get("file_name", ""))
        records.append(
            ImageRecord(
                image_id=clean_id(entry["id"]) if "id" in needs else position,
                path=str(Path(image_folder) / name),
                file_name=name,
                height=int(entry["height"]) if "height" in needs else 0,
                width=int(entry["width"]) if "width" in needs else 0,
                annotations=(),
            )
        )
    if "id" in needs:
        findings += _duplicate_ids("image", entries)
    counts = Counter(posixpath.normpath(record.file_name) for record in records)
    findings += [
        Finding(
            kind="duplicate_file_name",
            detail=f"file_name {shorten(name)!r} occurs {count} times",
            file_name=shorten(name),
        )
        for name, count in counts.items()
        if count > 1
    ]
    return records, findings


def id_text(value: Any) -> str | None:
    """The text by which ids are compared; None for what is no id."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return str(int(value))


def clean_id(value: Any) -> Id:
    """An id as the file has it, but for 1.0, which is 1."""
    return value if isinstance(value, str) else int(value)


def order_of_id(value: Id) -> tuple[int, int, str]:
    """Sorts ids: whole numbers first, also those written as text, then other text."""
    text = str(value)
    if len(text) < 20 and text.isascii() and text.removeprefix("-").isdigit():
        return (0, int(text), text)
    return (1, 0, text)


class _AnnotationReader:
    """Sorts annotations by image: objects, crowds, and those that are left out."""

    def __init__(
        self,
        document: Mapping[str, Any],
        records: Sequence[ImageRecord],
        categories: Sequence[Mapping[str, Any]],
        masks: bool,
    ) -> None:
        self.masks = masks
        self.records = records
        self.index_of_image = {id_text(record.image_id): i for i, record in enumerate(records)}
        self.index_of_category = {id_text(item["id"]): i for i, item in enumerate(categories)}
        # A malformed entry is known all the same: its annotations are not at fault.
        self.listed_images = _listed_ids(document["images"])
        self.listed_categories = _listed_ids(document["categories"])
        self.objects: list[list[BoxAnnotation]] = [[] for _ in records]
        self.crowds: list[list[BoxAnnotation]] = [[] for _ in records]
        self.left_out: dict[int, str] = {}
        self.used_categories: set[str | None] = set()
        self._findings: list[Finding] = []
        self._seen: set[tuple[int, int, Box]] = set()
        self._plain_boxes: list[tuple[float, ...]] = []

    @property
    def findings(self) -> list[Finding]:
        """Of the annotations read so far, and of all of them together."""
        mistake = find_mistake_of_all(self._plain_boxes)
        if mistake is None:
            return self._findings
        kind, detail = mistake
        whole = Finding(kind=kind, detail=f"{FINDING_KINDS[kind].meaning}: {detail}")
        return [whole, *(f for f in self._findings if f.kind != "box_below_pixel")]

    def read(self, position: int, entry: Any) -> None:
        """Take one entry of `annotations`."""
        problems = _problems_of(entry, _ANNOTATION_FIELD_RULES)
        if problems:
            self._findings.append(_malformed(f"annotations[{position}]", problems))
            return

        def say(kind: str, detail: str) -> None:
            self._findings.append(
                Finding(
                    kind=kind,
                    detail=detail if has_id else f"annotations[{position}]: {detail}",
                    image_id=entry["image_id"],
                    annotation_id=entry.get("id"),
                )
            )

        has_id = entry.get("id") is not None
        if not has_id:
            say("annotation_without_id", "no id")
        image, category = id_text(entry["image_id"]), id_text(entry["category_id"])
        self.used_categories.add(category)
        if image not in self.listed_images:
            say("unknown_image", f"belongs to image {shorten(image)}, which the file does not list")
        if category not in self.listed_categories:
            listed = ", ".join(sorted(self.listed_categories)[:10])
            say("unknown_category", f"has category {shorten(category)}, the file lists {listed}")
        image_index = self.index_of_image.get(image)
        category_index = self.index_of_category.get(category)
        if image_index is None or category_index is None:
            return
        record = self.records[image_index]
        is_crowd = bool(read_crowd_flag(entry.get("iscrowd")))
        segmentation = entry.get("segmentation") or None if self.masks else None
        if segmentation is not None and entry.get("mask_source") == FILLED_BOX:
            say("filled_box", f"mask_source={FILLED_BOX}, whose segmentation is its box")
            segmentation = None
        if segmentation is not None:
            problem = check_segmentation(segmentation, record.height, record.width)
            if problem is not None:
                say(*problem)
                segmentation = None
        bbox = entry.get("bbox")
        box, kind = clip_box(bbox, record.width, record.height)

        def say_of_box(kind: str) -> None:
            size = f"bbox={shorten(bbox)} in an image of {record.width}×{record.height}"
            say(kind, f"{FINDING_KINDS[kind].meaning.partition(';')[0]}: {size}")

        if is_crowd:
            say_of_box("crowd_box")
        elif kind is not None:
            say_of_box(kind)
        if not is_crowd and (box is not None or kind == "box_outside_image"):
            self._plain_boxes.append((*map(float, bbox), record.width, record.height))
        if box is None:
            if not is_crowd:
                assert kind is not None
                self.left_out[position] = kind
            return
        identity = (image_index, category_index, box)
        if identity in self._seen and not is_crowd:
            say_of_box("duplicate_box")
        self._seen.add(identity)
        (self.crowds if is_crowd else self.objects)[image_index].append(
            BoxAnnotation(
                box_xyxy=box,
                category=category_index,
                segmentation=segmentation,
                annotation_id=clean_id(entry["id"]) if has_id else None,
                position=position,
            )
        )


def read_crowd_flag(value: Any) -> bool | None:
    """`iscrowd` as a claim; None when it is none of 0, 1, true, false and their texts."""
    if value is None:
        return False
    if isinstance(value, str):
        return _CROWD_FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _read_categories(entries: Sequence[Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """`{"id", "name"}` in the order of the ids."""
    findings = [] if entries else [Finding(kind="no_categories", detail="lists no categories")]
    categories: list[dict[str, Any]] = []
    for position, entry in enumerate(entries):
        problems = _problems_of(entry, _CATEGORY_FIELD_RULES)
        if problems:
            findings.append(_malformed(f"categories[{position}]", problems))
        else:
            categories.append({"id": clean_id(entry["id"]), "name": entry["name"]})
    findings += _duplicate_ids("category", entries)
    categories.sort(key=lambda item: order_of_id(item["id"]))
    gaps = _describe_gaps([item["id"] for item in categories])
    if gaps:
        findings.append(Finding(kind="category_id_gap", detail=f"ids {gaps} are not used"))
    if len(categories) == 1:
        findings.append(Finding(kind="single_category", detail=f"id {categories[0]['id']}"))
    return categories, findings


def _describe_gaps(ids: Sequence[Id]) -> str:
    """The numbers between ids that are whole numbers, at most five ranges of them."""
    numbers = sorted({value for value in ids if isinstance(value, int)})
    gaps = [
        f"{low + 1}…{high - 1}" if high - low > 2 else str(low + 1)
        for low, high in itertools.pairwise(numbers)
        if high - low > 1
    ]
    return ", ".join(gaps[:5]) + (" and more" if len(gaps) > 5 else "")


def _describe_images(reader: _AnnotationReader) -> Iterator[Finding]:
    for index, (record, objects) in enumerate(zip(reader.records, reader.objects, strict=True)):
        count = len(objects)
        # Of images that share an id, the annotations went to the last.
        is_shadowed = reader.index_of_image[id_text(record.image_id)] != index
        if (0 < count <= _MAX_DETECTIONS) or is_shadowed:
            continue
        yield Finding(
            kind="many_boxes" if count else "image_without_boxes",
            detail=f"{count} usable boxes",
            image_id=record.image_id,
            file_name=shorten(record.file_name),
        )


def _duplicate_ids(what: str, entries: Sequence[Any]) -> list[Finding]:
    positions: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        text = id_text(entry.get("id")) if isinstance(entry, dict) else None
        if text is not None:
            positions.setdefault(text, []).append(position)
    plural = {"category": "categories"}.get(what, f"{what}s")
    findings = []
    for places in positions.values():
        if len(places) < 2:
            continue
        named = [
            f"{plural}[{place}]"
            + "".join(
                f" ({shorten(entries[place][key])})"
                for key in ("file_name", "name")
                if entries[place].get(key) is not None
            )
            for place in places
        ]
        value = entries[places[0]]["id"]
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        findings.append(
            Finding(
                kind=f"duplicate_{what}_id",
                detail=f"two {plural} share an id: {', '.join(named[:4])}{more} have id {value!r}",
                image_id=value if what == "image" else None,
                annotation_id=value if what == "annotation" else None,
            )
        )
    return findings


def _listed_ids(entries: Sequence[Any]) -> set[str]:
    texts = (id_text(entry.get("id")) for entry in entries if isinstance(entry, dict))
    return {text for text in texts if text is not None}


def _malformed(where: str, problems: str) -> Finding:
    return Finding(kind="entry_malformed", detail=f"{where} {problems}")


def _problems_of(entry: Any, rules: Mapping[str, tuple[Any, str]]) -> str:
    """What is wrong with an entry's fields, in words; empty when nothing is."""
    if not isinstance(entry, dict):
        return f"is {shorten(repr(entry))}, expected an object"
    problems = [
        f"{name}={shorten(repr(entry.get(name)))}, expected {expected}"
        for name, (accepts, expected) in rules.items()
        if not accepts(entry.get(name))
    ]
    if not problems and "width" in rules and entry["width"] * entry["height"] > _MAX_PIXELS:
        problems = [f"{entry['width']}×{entry['height']} pixels, expected at most {_MAX_PIXELS}"]
    return f"has {'; '.join(problems)}" if problems else ""


def _is_id(value: Any) -> bool:
    return id_text(value) is not None


def _is_side(value: Any) -> bool:
    return _is_id(value) and not isinstance(value, str) and 1 <= value <= _MAX_SIDE


_ID_RULE = (_is_id, "int or str")
_SIDE_RULE = (_is_side, f"int, 1 to {_MAX_SIDE}")
_IMAGE_FIELD_RULES: Mapping[str, tuple[Any, str]] = {
    "id": _ID_RULE,
    "file_name": (lambda value: isinstance(value, str) and value != "", "str"),
    "width": _SIDE_RULE,
    "height": _SIDE_RULE,
}
_CATEGORY_FIELD_RULES = {"id": _ID_RULE, "name": (lambda value: isinstance(value, str), "str")}
_ANNOTATION_FIELD_RULES = {
    "id": (lambda value: value is None or _is_id(value), "int or str"),
    "image_id": _ID_RULE,
    "category_id": _ID_RULE,
    "iscrowd": (lambda value: read_crowd_flag(value) is not None, "0 or 1"),
}
