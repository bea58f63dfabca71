"""`data check`: count and name everything in a COCO data set that training handles or refuses."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError

# What training does with each kind: `handled` ones are used as the text says; `left out` ones are
# counted in the log, or stop the run with data.bad_boxes=refuse; `refused` ones stop it.
PROBLEM_KINDS: Mapping[str, tuple[str, str]] = {
    "image_without_boxes": (
        "handled",
        "image has no box that counts; used as background or left out",
    ),
    "crowd_box": ("handled", "crowd region; ignored in training and in evaluation"),
    "category_id_gap": ("handled", "category ids have gaps; mapped to 0…K−1"),
    "single_category": ("handled", "one category only; set data.num_classes=1"),
    "unused_category": ("handled", "category without a box"),
    "many_boxes": (
        "handled",
        "more boxes in an image than are detected (100); all are trained on, which takes memory",
    ),
    "duplicate_box": ("handled", "same image, category and box as an earlier annotation"),
    "duplicate_image_bytes": ("handled", "two file names, same bytes; depth is computed once"),
    "duplicate_annotation_id": (
        "handled",
        "two annotations with one id; training takes both, COCO's evaluation only one",
    ),
    "duplicate_file_name": ("handled", "two images with one file name; trained on twice"),
    "box_partly_outside": ("handled", "box reaches outside the image; clipped"),
    "box_outside_image": ("left out", "box lies wholly outside the image"),
    "box_not_finite": ("left out", "box has NaN or infinite coordinates"),
    "box_inverted": ("left out", "box has negative width or height"),
    "box_zero_size": ("left out", "box has no width or no height"),
    "box_malformed": ("left out", "bbox is not a list of four numbers"),
    "unknown_category": ("refused", "category_id is not in categories"),
    "unknown_image": ("refused", "image_id is not in images"),
    "wrong_image_size": ("refused", "width and height differ from the file's, EXIF applied"),
    "missing_file": ("refused", "image file does not exist"),
    "unreadable_file": ("refused", "image file does not decode"),
    "duplicate_image_id": ("refused", "two images with one id"),
    "missing_depth": ("refused", "the depth cache has no map for the image"),
    "entry_malformed": ("refused", "an entry lacks a field or has one of the wrong type"),
}
# Coordinates are rounded to 2 decimals in many data sets, so a box may reach this far outside.
_EDGE_TOLERANCE_PIXELS = 1.0
# What COCO's evaluation looks at and the model gives per image.
_MAX_DETECTIONS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding.

    Attributes:
        kind: key of `PROBLEM_KINDS`.
        detail: what is wrong, with the value.
        image_id: the image, if one is concerned.
        annotation_id: the annotation, if one is concerned.
        file_name: the file, if one is concerned.
    """

    kind: str
    detail: str
    image_id: Any = None
    annotation_id: Any = None
    file_name: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether training leaves this out or refuses it, rather than using it."""
        return PROBLEM_KINDS[self.kind][0] != "handled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        num_images: entries in `images`.
        num_boxes: entries in `annotations`.
        num_categories: entries in `categories`.
        problems: every finding, in the order of the file.
    """

    num_images: int
    num_boxes: int
    num_categories: int
    problems: list[Problem]

    def count_kinds(self) -> dict[str, int]:
        """Findings per kind, in the order of `PROBLEM_KINDS`; kinds without one are left out."""
        counter = collections.Counter(problem.kind for problem in self.problems)
        return {kind: counter[kind] for kind in PROBLEM_KINDS if counter[kind]}

    @property
    def num_left_out(self) -> int:
        """Findings that training leaves out."""
        return sum(PROBLEM_KINDS[problem.kind][0] == "left out" for problem in self.problems)

    @property
    def num_refused(self) -> int:
        """Findings that training refuses."""
        return sum(PROBLEM_KINDS[problem.kind][0] == "refused" for problem in self.problems)


def check_dataset(
    annotations: Path,
    images: Path | None,
    *,
    cache: str | None = None,
    fingerprint: str | None = None,
    decodes: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Check a COCO file and its images.

    Args:
        annotations: COCO JSON.
        images: folder of the images; None leaves the files unchecked.
        cache: root of the depth cache that training would read; None leaves depth unchecked.
        fingerprint: which model's maps of the cache.
        decodes: decode every image rather than read its header only.
        progress: called with images done and in total.

    Raises:
        UsageError: the file is no COCO JSON, or the folder does not exist.
    """
    document = load_coco_document(annotations)
    problems = list(check_document(document))
    if images is not None:
        if not images.is_dir():
            raise UsageError(f"image folder {images} does not exist")
        problems += _check_files(_entries(document, "images"), images, decodes, progress)
        if cache is not None:
            problems += _check_depth(_entries(document, "images"), images, cache, fingerprint)
    return DatasetReport(
        num_images=len(document["images"]),
        num_boxes=len(document["annotations"]),
        num_categories=len(document["categories"]),
        problems=problems,
    )


def load_coco_document(path: Path) -> dict[str, Any]:
    """Read a COCO JSON and check that it has the three lists.

    Raises:
        UsageError: no such file, no JSON, or a list is missing.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"annotation file {path} does not exist") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a COCO file: expected an object, got {type(document)}")
    for name in ("images", "annotations", "categories"):
        if not isinstance(document.get(name), list):
            raise UsageError(
                f"{path} is not a COCO file: the list {name!r} is missing; "
                f"it has {sorted(map(str, document))}"
            )
    return document


def check_document(document: Mapping[str, Any]) -> Iterable[Problem]:
    """Everything that can be told without the image files.

    Args:
        document: COCO document with `images`, `annotations`, `categories`.
    """
    yield from _check_entries(document)
    images = {image["id"]: image for image in _entries(document, "images") if "id" in image}
    category_ids = [item["id"] for item in _entries(document, "categories") if "id" in item]
    integer_ids = sorted({value for value in category_ids if isinstance(value, int)})
    if integer_ids and integer_ids[-1] - integer_ids[0] + 1 != len(integer_ids):
        gaps = sorted(set(range(integer_ids[0], integer_ids[-1])) - set(integer_ids))
        yield Problem(kind="category_id_gap", detail=f"ids {gaps} are not used")
    if len(category_ids) == 1:
        yield Problem(kind="single_category", detail=f"id {category_ids[0]}")
    seen_boxes: set[tuple[Any, ...]] = set()
    num_boxes: collections.Counter[Any] = collections.Counter()
    used_categories: set[Any] = set()
    for annotation in _entries(document, "annotations"):
        found = list(_check_annotation(annotation, images, set(category_ids)))
        yield from found
        used_categories.add(annotation.get("category_id"))
        if not any(problem.is_bad or problem.kind == "crowd_box" for problem in found):
            num_boxes[annotation["image_id"]] += 1
        box = annotation.get("bbox")
        if isinstance(box, list):
            identity = (annotation.get("image_id"), annotation.get("category_id"), *map(str, box))
            if identity in seen_boxes:
                yield _annotation_problem("duplicate_box", annotation, f"bbox {box}")
            seen_boxes.add(identity)
    for image_id, image in images.items():
        name = image.get("file_name")
        if num_boxes[image_id] == 0:
            yield Problem(
                kind="image_without_boxes",
                detail="no usable box",
                image_id=image_id,
                file_name=name,
            )
        if num_boxes[image_id] > _MAX_DETECTIONS:
            detail = f"{num_boxes[image_id]} boxes"
            yield Problem(kind="many_boxes", detail=detail, image_id=image_id, file_name=name)
    for category in _entries(document, "categories"):
        if category.get("id") not in used_categories:
            yield Problem(
                kind="unused_category", detail=f"{category.get('name')!r} (id {category.get('id')})"
            )


def _entries(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [entry for entry in document[name] if isinstance(entry, dict)]


def _check_entries(document: Mapping[str, Any]) -> Iterable[Problem]:
    required = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for name, fields in required.items():
        for position, entry in enumerate(document[name]):
            absent = [key for key in fields if not isinstance(entry, dict) or key not in entry]
            if absent:
                yield Problem(
                    kind="entry_malformed", detail=f"{name}[{position}] lacks {', '.join(absent)}"
                )
    for name, key, kind in (
        ("images", "id", "duplicate_image_id"),
        ("images", "file_name", "duplicate_file_name"),
        ("annotations", "id", "duplicate_annotation_id"),
    ):
        counter = collections.Counter(entry.get(key) for entry in _entries(document, name))
        for value, count in counter.items():
            if count > 1 and value is not None:
                yield Problem(
                    kind=kind,
                    detail=f"{key} {value!r} occurs {count} times",
                    image_id=value if kind == "duplicate_image_id" else None,
                    annotation_id=value if kind == "duplicate_annotation_id" else None,
                    file_name=value if kind == "duplicate_file_name" else None,
                )


def _annotation_problem(kind: str, annotation: Mapping[str, Any], detail: str) -> Problem:
    return Problem(
        kind=kind,
        detail=detail,
        image_id=annotation.get("image_id"),
        annotation_id=annotation.get("id"),
    )


def _check_annotation(
    annotation: Mapping[str, Any], images: Mapping[Any, Mapping[str, Any]], categories: set[Any]
) -> Iterable[Problem]:
    image = images.get(annotation.get("image_id"))
    if image is None:
        detail = f"image_id {annotation.get('image_id')!r}"
        yield _annotation_problem("unknown_image", annotation, detail)
    if annotation.get("category_id") not in categories:
        detail = f"category_id {annotation.get('category_id')!r}"
        yield _annotation_problem("unknown_category", annotation, detail)
    if annotation.get("iscrowd"):
        yield _annotation_problem("crowd_box", annotation, f"bbox {annotation.get('bbox')}")
    kind = classify_box(annotation.get("bbox"), image)
    if kind is not None:
        size = f" in an image of {image.get('width')}×{image.get('height')}" if image else ""
        yield _annotation_problem(kind, annotation, f"bbox {annotation.get('bbox')}{size}")


def classify_box(  # noqa: PLR0911 - one return per kind
    box: object, image: Mapping[str, Any] | None
) -> str | None:
    """Kind of problem of a COCO box, or None.

    Args:
        box: `[x, y, width, height]` in pixels.
        image: entry with `width` and `height`; None skips the comparison with the image.
    """
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box)
    ):
        return "box_malformed"
    if not all(math.isfinite(value) for value in box):
        return "box_not_finite"
    x, y, width, height = box
    if width < 0 or height < 0:
        return "box_inverted"
    if width == 0 or height == 0:
        return "box_zero_size"
    if image is None:
        return None
    image_width, image_height = image.get("width"), image.get("height")
    if not isinstance(image_width, (int, float)) or not isinstance(image_height, (int, float)):
        return None
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return "box_outside_image"
    overshoot = max(-x, -y, x + width - image_width, y + height - image_height)
    return "box_partly_outside" if overshoot > _EDGE_TOLERANCE_PIXELS else None


def _check_files(
    entries: list[dict[str, Any]],
    folder: Path,
    decodes: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Problem]:
    named = [entry for entry in entries if isinstance(entry.get("file_name"), str)]
    problems: list[Problem] = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done, found in enumerate(
            pool.map(lambda entry: _check_file(entry, folder, decodes), named), start=1
        ):
            problems += found
            if progress is not None:
                progress(done, len(named))
    return problems + _find_duplicate_bytes(named, folder)


def _check_file(entry: Mapping[str, Any], folder: Path, decodes: bool) -> list[Problem]:
    path = folder / entry["file_name"]

    def found(kind: str, detail: str) -> list[Problem]:
        return [
            Problem(
                kind=kind, detail=detail, image_id=entry.get("id"), file_name=entry["file_name"]
            )
        ]

    if not path.is_file():
        return found("missing_file", f"{path} does not exist")
    try:
        width, height = read_image_size(path, decodes=decodes)
    except (OSError, ValueError) as error:
        return found("unreadable_file", str(error))
    if (width, height) != (entry.get("width"), entry.get("height")):
        stated = f"{entry.get('width')}×{entry.get('height')}"
        return found("wrong_image_size", f"stated {stated}, the file has {width}×{height}")
    return []


def _check_depth(
    entries: list[dict[str, Any]], folder: Path, cache: str, fingerprint: str | None
) -> list[Problem]:
    from depthcache import DepthCache, image_key

    names = [entry["file_name"] for entry in entries if isinstance(entry.get("file_name"), str)]
    keys = {
        name: image_key((folder / name).read_bytes()) for name in names if (folder / name).is_file()
    }
    absent = set(DepthCache.open(cache, fingerprint=fingerprint).missing(set(keys.values())))
    return [
        Problem(
            kind="missing_depth",
            detail=f"no map for sha256 {keys[entry['file_name']]} in {cache}",
            image_id=entry.get("id"),
            file_name=entry["file_name"],
        )
        for entry in entries
        if keys.get(entry.get("file_name")) in absent
    ]


def read_image_size(path: Path, *, decodes: bool) -> tuple[int, int]:
    """Width and height of an image in pixels, EXIF orientation applied.

    Args:
        path: image file.
        decodes: decode the pixels too, by the function that both stages use.

    Raises:
        ValueError, OSError: the file does not decode.
    """
    if decodes:
        from depthcache import decode_image

        height, width = decode_image(path.read_bytes()).shape[:2]
        return int(width), int(height)
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if is_turned else (width, height)


def _find_duplicate_bytes(entries: list[dict[str, Any]], folder: Path) -> list[Problem]:
    by_size: dict[int, list[str]] = collections.defaultdict(list)
    for name in dict.fromkeys(entry["file_name"] for entry in entries):
        if (folder / name).is_file():
            by_size[(folder / name).stat().st_size].append(name)
    problems = []
    for names in by_size.values():
        if len(names) < 2:
            continue
        first_with: dict[str, str] = {}
        for name in names:
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if digest in first_with:
                detail = f"same bytes as {first_with[digest]}"
                problems.append(
                    Problem(kind="duplicate_image_bytes", detail=detail, file_name=name)
                )
            else:
                first_with[digest] = name
    return problems
