"""What can be said of a COCO file, and what training does with each kind of finding.

`handled`: used as the text says. `left out`: counted in the log and not used; boxes stop the run
with `data.bad_boxes=refuse`, masks stop whatever reads masks. `refused`: stops every command that
reads the entry, before any work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segtrain.errors import DatasetError

Treatment = Literal["handled", "left out", "refused"]

_CORRECT_BOX = "correct the file, or set data.bad_boxes=drop to leave such boxes out"
_CORRECT_MASK = "correct or remove the segmentation; training on boxes does not read it"


@dataclass(frozen=True)
class FindingKind:
    """What is done with findings of a kind, what they are, and what helps."""

    treatment: Treatment
    meaning: str
    remedy: str = ""


FINDING_KINDS: Mapping[str, FindingKind] = {
    "image_without_boxes": FindingKind(
        "handled",
        "image without usable boxes",
        "data.keep_images_without_boxes=True trains on it as background; else it is left out",
    ),
    "filled_box": FindingKind(
        "handled", "filled box, of which no mask was found: it teaches as a box, not as a mask"
    ),
    "crowd_box": FindingKind("handled", "crowd annotation; ignored in training and evaluation"),
    "annotation_without_id": FindingKind("handled", "annotation has no id; its place names it"),
    "category_id_gap": FindingKind("handled", "category ids have gaps; mapped to 0…K−1"),
    "single_category": FindingKind("handled", "one category only"),
    "unused_category": FindingKind("handled", "category without a box"),
    "many_boxes": FindingKind(
        "handled",
        "more boxes in an image than are detected (100); all are trained on, which takes memory",
    ),
    "duplicate_box": FindingKind("handled", "same image, category and box as an earlier one"),
    "duplicate_image_bytes": FindingKind(
        "handled", "two file names, same bytes; depth is computed once"
    ),
    "duplicate_file_name": FindingKind("handled", "images share a file; it is trained on twice"),
    "box_partly_outside": FindingKind("handled", "box reaches outside the image; clipped"),
    "box_below_pixel": FindingKind(
        "handled", "box is smaller than one pixel", "are its coordinates shares of the image?"
    ),
    "boxes_maybe_corners": FindingKind(
        "handled",
        "boxes look like x1, y1, x2, y2",
        "COCO's bbox is x, y, width, height; convert them if they are corners",
    ),
    "box_outside_image": FindingKind("left out", "box lies outside its image", _CORRECT_BOX),
    "box_not_finite": FindingKind("left out", "box is not finite", _CORRECT_BOX),
    "box_inverted": FindingKind(
        "left out", "box is inverted: negative width or height", _CORRECT_BOX
    ),
    "box_zero_size": FindingKind("left out", "box has no area", _CORRECT_BOX),
    "box_malformed": FindingKind("left out", "box is not four numbers", _CORRECT_BOX),
    "box_of_text": FindingKind(
        "left out",
        "box is not four numbers but their text",
        f"write the numbers without quotes: {_CORRECT_BOX}",
    ),
    "mask_malformed": FindingKind(
        "left out", "segmentation is neither polygons nor a run-length code", _CORRECT_MASK
    ),
    "mask_of_other_size": FindingKind(
        "left out", "mask has another size than its image", _CORRECT_MASK
    ),
    "mask_far_outside": FindingKind(
        "left out", "polygon reaches more than one image size outside", _CORRECT_MASK
    ),
    "boxes_as_shares": FindingKind(
        "refused",
        "boxes are shares of the image, none reaches past the first pixel",
        "multiply x and width by the image's width, y and height by its height",
    ),
    "boxes_as_corners": FindingKind(
        "refused",
        "boxes are x1, y1, x2, y2: read as COCO's x, y, width, height most reach outside",
        "subtract: width = x2 − x1, height = y2 − y1",
    ),
    "unknown_category": FindingKind(
        "refused",
        "category_id is not in categories",
        "list the category, or correct the annotation",
    ),
    "unknown_image": FindingKind(
        "refused", "image_id is not in images", "list the image, or remove the annotation"
    ),
    "wrong_image_size": FindingKind(
        "refused",
        "width and height differ from the file's, EXIF applied",
        "correct width and height, and turn the boxes with them",
    ),
    "missing_file": FindingKind(
        "refused",
        "image file does not exist",
        "name the folder that file_name is relative to, or remove the entry",
    ),
    "unreadable_file": FindingKind(
        "refused", "image file does not decode", "repair or remove the image and its entry"
    ),
    "duplicate_image_id": FindingKind(
        "refused", "two images share an id", "give each its own, and its annotations with it"
    ),
    "duplicate_category_id": FindingKind(
        "refused", "two categories share an id", "give each its own"
    ),
    "duplicate_annotation_id": FindingKind(
        "refused", "two annotations share an id", "give each its own, or none at all"
    ),
    "missing_depth": FindingKind(
        "refused", "the depth cache has no map for the image", "compute it: pipeline depth --coco"
    ),
    "no_images": FindingKind("refused", "the file lists no images", "name another file"),
    "no_boxes": FindingKind(
        "refused",
        "the file has no box that can be used",
        "name a file with boxes, or correct those that are left out; "
        "data.keep_images_without_boxes=True trains on the images as background",
    ),
    "no_categories": FindingKind("refused", "the file lists no categories", "list the classes"),
    "entry_malformed": FindingKind(
        "refused",
        "an entry lacks a field or has one of the wrong type",
        "correct the entry; `pipeline data check` names every such one",
    ),
}
MASK_KINDS = frozenset(kind for kind in FINDING_KINDS if kind.startswith("mask_"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to say of a file.

    Attributes:
        kind: key of `FINDING_KINDS`.
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
    def treatment(self) -> Treatment:
        """What training does with it."""
        return FINDING_KINDS[self.kind].treatment

    @property
    def where(self) -> str:
        """The entry that it concerns; empty when the detail says it."""
        names = {"annotation": self.annotation_id, "image": self.image_id, "file": self.file_name}
        return ", ".join(
            f"{name} {shorten(value)}" for name, value in names.items() if value is not None
        )

    def __str__(self) -> str:
        """Where, what, and the remedy."""
        remedy = FINDING_KINDS[self.kind].remedy
        text = f"{self.where}: {self.detail}" if self.where else self.detail
        return f"{text}; {remedy}" if remedy else text


def require_usable(
    findings: Iterable[Finding], source: str | Path, *, bad_boxes: str = "drop"
) -> None:
    """Refuse a file of which something cannot be used.

    Args:
        findings: of the parts of the file that the caller reads; a mask is among them only when
            the caller reads masks, and a bad one is then refused.
        source: the file, for the message.
        bad_boxes: `drop` lets boxes that are left out pass, `refuse` does not.

    Raises:
        DatasetError: names the first such entry, the remedy, and how many more there are.
    """
    stops = [
        finding
        for finding in findings
        if finding.treatment == "refused"
        or finding.kind in MASK_KINDS
        or (finding.treatment == "left out" and bad_boxes == "refuse")
    ]
    if stops:
        more = len(stops) - 1
        rest = f" (and {more} more; `pipeline data check` names them)" if more else ""
        raise DatasetError(f"{source}: {stops[0]}{rest}")


def shorten(value: object, limit: int = 80) -> str:
    """A value's text with its middle left out when it is long, for messages."""
    text = str(value)
    if len(text) <= limit:
        return text
    return f"{text[: limit - 20]}… ({len(text)} characters)"
