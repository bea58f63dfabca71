"""What training takes of a COCO file: boxes and classes; masks only when they are asked for.

A mask that is not asked for is never parsed, so it cannot influence training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segtrain.data.coco_findings import FINDING_KINDS, require_usable
from segtrain.data.coco_reader import (
    BoxAnnotation,
    ImageRecord,
    order_of_id,
    read_coco_file,
)
from segtrain.data.image_files import missing_files
from segtrain.errors import DatasetError

__all__ = ["BoxAnnotation", "BoxDataset", "ImageRecord", "read_coco_boxes", "require_image_files"]

BadBoxPolicy = Literal["drop", "refuse"]


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

    Crowd annotations are left out, and boxes that are not finite, have no area, are inverted, or
    lie outside their image. A box that reaches out of its image is clipped.

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
        DatasetError: not a COCO file, a finding that is refused (`FINDING_KINDS`), a bad box while
            `bad_boxes="refuse"`, a bad mask while `keep_masks`, or nothing left to train on.
    """
    reading = read_coco_file(
        annotation_file, image_folder, masks=keep_masks, needs_annotations=needs_annotations
    )
    require_usable(reading.findings, annotation_file, bad_boxes=bad_boxes)
    counts = Counter(
        finding.kind
        for finding in reading.findings
        if finding.treatment == "left out" or finding.kind == "crowd_box"
    )
    records = sorted(reading.records, key=lambda record: order_of_id(record.image_id))
    if not keep_images_without_boxes:
        with_boxes = [record for record in records if record.annotations]
        if len(with_boxes) < len(records):
            counts["image_without_boxes"] = len(records) - len(with_boxes)
        records = with_boxes
    dropped = {FINDING_KINDS[kind].meaning.partition(";")[0]: counts[kind] for kind in counts}
    if not records:
        raise DatasetError(
            f"{annotation_file}: no image is left to use; left out: {dropped or 'nothing'}; "
            "correct the boxes, or set data.keep_images_without_boxes=True"
        )
    return BoxDataset(records=records, categories=reading.categories, dropped=dropped)


def require_image_files(records: Sequence[ImageRecord], source: str | Path) -> None:
    """Refuse a data set before hours are spent on what is there.

    Raises:
        DatasetError: names the first image whose file does not exist, and how many more there are.
    """
    require_usable(
        missing_files((record.image_id, record.path, record.file_name) for record in records),
        source,
    )
