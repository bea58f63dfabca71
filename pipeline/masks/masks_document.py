"""The COCO document with masks, and what can honestly be said of it."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segtrain.data.segmentations import FILLED_BOX, REFINED, decode_segmentation, encode_mask

NO_MASK = "none"
# A larger share of filled boxes says that something is wrong with the boxes or the adaptation.
_MAX_FILLED_SHARE = 0.2
# A mask of which smaller ones take more is no mask of its own object.
_LEAST_KEPT = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskCounts:
    """How many boxes of which kind; crowds are no boxes.

    Attributes:
        num_photos: photos with boxes.
        num_boxes: boxes in all.
        num_masks: with a mask of the labeller.
        num_refined: of the masks, those that sharp depth cut anew.
        num_filled_boxes: where it found nothing, or everything: the box itself stands there.
        num_without_mask: boxes that cannot be used, and those of photos that failed.
        num_below_score: masks left out by `--min-score` and `--disjoint`.
        mean_score: of the masks, None without one.
        share_below_half: of the masks, those with a score below 0.5.
    """

    num_photos: int
    num_boxes: int
    num_masks: int
    num_refined: int
    num_filled_boxes: int
    num_without_mask: int
    num_below_score: int
    mean_score: float | None
    share_below_half: float

    def lines(self) -> list[str]:
        """What a person reads."""
        text = f"{self.num_masks} masks for {self.num_boxes} boxes in {self.num_photos} photos"
        lines = [text]
        if self.mean_score is not None:
            lines[0] += (
                f"; score {self.mean_score:.2f} on average, below 0.5 for "
                f"{self.share_below_half:.0%}"
            )
        if self.num_refined:
            lines.append(f"{self.num_refined} of the masks were refined by depth")
        if self.num_filled_boxes:
            lines.append(
                f"{self.num_filled_boxes} filled boxes: no mask was found in them, and they count "
                "as none (score 0)"
            )
        if self.num_without_mask:
            lines.append(
                f"{self.num_without_mask} boxes have no mask: boxes that cannot be used, or of "
                "photos that failed"
            )
        if self.num_below_score:
            lines.append(f"{self.num_below_score} masks are left out by --min-score or --disjoint")
        if self.num_filled_boxes > _MAX_FILLED_SHARE * self.num_boxes:
            lines.append(
                f"warning: {self.num_filled_boxes / self.num_boxes:.0%} of the boxes are filled. "
                "Check that the boxes fit the photos (pipeline data check), look at the review "
                "page, and try other --minutes"
            )
        return lines


def write_labels(
    document: Mapping[str, Any],
    entries: Iterable[Mapping[str, Any]],
    positions: Iterable[int],
    *,
    disjoint: bool = False,
    min_score: float,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """A copy of the document with masks; order, ids and crowds stay as they are.

    Args:
        document: COCO document as it was read.
        entries: of the journal.
        positions: annotations that are boxes, usable or not; those that no entry names get no
            mask, a score of 0 and the source `none`.
        disjoint: apply `make_disjoint` to each photo first.
        min_score: masks with a lower score are left out; score and source stay.
        facts: what made the masks; stands in the document's `info`.
    """
    labelled: dict[str, Any] = copy.deepcopy(dict(document))
    info = labelled.get("info")
    labelled["info"] = {**(info if isinstance(info, dict) else {}), "masks": dict(facts)}
    annotations = labelled["annotations"]
    without = set(positions)
    for entry in entries:
        for item in make_disjoint(entry["objects"]) if disjoint else entry["objects"]:
            fields = {key: value for key, value in item.items() if key != "position"}
            annotations[item["position"]] |= fields
            without.discard(item["position"])
            leave_out_poor_mask(annotations[item["position"]], min_score)
    for position in without:
        annotations[position].pop("segmentation", None)
        annotations[position] |= {"score": 0.0, "mask_source": NO_MASK}
    return labelled


def leave_out_poor_mask(annotation: dict[str, Any], min_score: float) -> None:
    """Take a box's mask away where its score is below the least; score and source stay."""
    if annotation["score"] < min_score:
        annotation.pop("segmentation", None)


def make_disjoint(objects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Objects of a photo whose masks share no pixel: the smallest mask that claims one keeps it.

    The smaller of two is taken to be in front: **choice**, docs/method.md. A mask that keeps less
    than half of its pixels said what others say better: it is left out, with score 0.

    Args:
        objects: of the journal; filled boxes claim nothing and stay as they are.
    """
    result = [dict(item) for item in objects]
    claimed: Any = None
    for item in sorted(result, key=lambda item: int(item["area"])):
        if item["mask_source"] == FILLED_BOX:
            continue
        size = item["segmentation"]["size"]
        mask = decode_segmentation(item["segmentation"], *size).astype(bool)
        own = mask if claimed is None else mask & ~claimed
        claimed = mask if claimed is None else claimed | mask
        if own.sum() < _LEAST_KEPT * item["area"]:
            del item["segmentation"], item["area"]
            item["score"] = 0.0
        elif own.sum() < item["area"]:
            item |= {"segmentation": encode_mask(own), "area": int(own.sum())}
    return result


def count_masks(document: Mapping[str, Any]) -> MaskCounts:
    """Count what a labelled document holds.

    Args:
        document: as `write_labels` gives it.
    """
    boxes = [item for item in document["annotations"] if "mask_source" in item]
    sources = Counter(item["mask_source"] for item in boxes)
    found = [item for item in boxes if item["mask_source"] not in (FILLED_BOX, NO_MASK)]
    kept = [item for item in found if "segmentation" in item]
    scores = [float(item["score"]) for item in kept]
    return MaskCounts(
        num_photos=len({item["image_id"] for item in boxes}),
        num_boxes=len(boxes),
        num_masks=len(scores),
        num_refined=sum(item["mask_source"] == REFINED for item in kept),
        num_filled_boxes=sources[FILLED_BOX],
        num_without_mask=sources[NO_MASK],
        num_below_score=len(found) - len(scores),
        mean_score=sum(scores) / len(scores) if scores else None,
        share_below_half=sum(score < 0.5 for score in scores) / max(len(scores), 1),
    )
