"""What is said of masks: each box is counted once, and nothing counts as a mask that is none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.masks.label_journal import LabelJournal
from pipeline.masks.masks_document import count_masks, make_disjoint, write_labels
from segtrain.data.segmentations import decode_segmentation, encode_mask

DOCUMENT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
    "annotations": [
        {"id": identity, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "note": "mine"}
        for identity in (7, 3, 5, 4)
    ]
    + [{"id": 8, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "iscrowd": 1}],
    "categories": [{"id": 1, "name": "x"}],
    "info": {"year": 2026},
}


def _entry(position: int, score: float, source: str = "labeller") -> dict[str, Any]:
    item = {"position": position, "segmentation": {"size": [9, 9], "counts": "x"}, "area": 5,
            "score": score, "mask_source": source}  # fmt: skip
    return {"photo": position, "has_depth": False, "objects": [item]}


def _labelled(min_score: float = 0.0) -> dict[str, Any]:
    entries = [_entry(0, 0.8), _entry(1, 0.3), _entry(2, 0.0, "filled_box")]
    return write_labels(
        DOCUMENT, entries, [0, 1, 2, 3], min_score=min_score, facts={"depth": "none"}
    )


def test_order_ids_and_other_fields_stay_and_the_source_document_too() -> None:
    before = copy.deepcopy(DOCUMENT)
    after = _labelled()
    assert before == DOCUMENT
    assert [item["id"] for item in after["annotations"]] == [7, 3, 5, 4, 8]
    assert after["annotations"][4] == before["annotations"][4]
    assert all(item["note"] == "mine" for item in after["annotations"][:4])
    assert after["info"] == {"year": 2026, "masks": {"depth": "none"}}


def test_masks_that_depth_refined_are_told() -> None:
    entries = [_entry(0, 0.8, "refined"), _entry(1, 0.3)]
    labelled = write_labels(DOCUMENT, entries, [0, 1], min_score=0.0, facts={})
    counts = count_masks(labelled)
    assert (counts.num_masks, counts.num_refined) == (2, 1)
    assert "1 of the masks were refined by depth" in counts.lines()


def test_every_box_is_counted_as_one_thing() -> None:
    counts = count_masks(_labelled())
    assert (counts.num_boxes, counts.num_masks) == (4, 2)
    assert (counts.num_filled_boxes, counts.num_without_mask, counts.num_below_score) == (1, 1, 0)
    assert counts.mean_score == 0.55
    assert counts.share_below_half == 0.5
    text = "\n".join(counts.lines())
    assert "2 masks for 4 boxes" in text
    assert "1 filled boxes" in text
    assert "warning: 25% of the boxes are filled" in text


def test_masks_below_the_least_score_go_and_keep_their_score() -> None:
    document = _labelled(min_score=0.5)
    assert "segmentation" in document["annotations"][0]
    assert "segmentation" not in document["annotations"][1]
    assert document["annotations"][1]["score"] == 0.3
    counts = count_masks(document)
    assert (counts.num_masks, counts.num_below_score) == (1, 1)


def test_a_box_that_nothing_was_said_of_loses_a_mask_that_it_came_with() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][3]["segmentation"] = [[0, 0, 1, 0, 1, 1]]
    after = write_labels(document, [], [3], min_score=0, facts={})
    assert after["annotations"][3]["mask_source"] == "none"
    assert "segmentation" not in after["annotations"][3]


def test_a_journal_drops_a_line_that_was_cut_off_and_goes_on(tmp_path: Path) -> None:
    journal = LabelJournal(tmp_path / "labels.jsonl")
    with journal:
        journal.append(0, [{"position": 4}], has_depth=True)
    with journal.path.open("a") as file:
        file.write('{"photo": 1, "obj')
    assert [entry["photo"] for entry in journal.entries()] == [0]
    with journal:
        journal.append(1, [], has_depth=False)
    assert [entry["photo"] for entry in journal.entries()] == [0, 1]


def _object(position: int, columns: slice, source: str = "labeller") -> dict[str, Any]:
    mask = np.zeros((4, 12), dtype=bool)
    mask[:, columns] = True
    return {"position": position, "segmentation": encode_mask(mask), "area": int(mask.sum()),
            "score": 0.9, "mask_source": source}  # fmt: skip


def test_masks_that_share_pixels_are_made_disjoint_the_smallest_first() -> None:
    objects = [
        _object(0, slice(0, 6)),  # loses 2 of 6 columns
        _object(1, slice(4, 8)),
        _object(2, slice(4, 9)),  # 4 of its 5 columns belong to the one before
        _object(3, slice(10, 12)),  # alone
        _object(4, slice(0, 12), "filled_box"),
    ]
    before = copy.deepcopy(objects)
    after = make_disjoint(objects)
    assert objects == before
    assert [item["position"] for item in after] == [0, 1, 2, 3, 4]
    assert after[1] == before[1]
    assert after[3:] == before[3:]
    # The first loses what the second and the third claim.
    assert after[0]["area"] == 16
    assert np.flatnonzero(decode_segmentation(after[0]["segmentation"], 4, 12)[0]).tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert "segmentation" not in after[2]
    assert after[2]["score"] == 0
    labelled = write_labels(
        DOCUMENT,
        [{"photo": 0, "has_depth": False, "objects": objects[:4]}],
        [0, 1, 2, 3],
        disjoint=True,
        min_score=0.5,
        facts={},
    )
    counts = count_masks(labelled)
    assert (counts.num_boxes, counts.num_masks, counts.num_below_score) == (4, 3, 1)
