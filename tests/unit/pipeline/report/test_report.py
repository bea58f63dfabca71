"""The report page: curves from a log, panels, and nothing fetched from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.report.curves import nice_ceiling, read_curves, render_chart
from pipeline.report.page import render_page
from pipeline.report.panels import Panel, colour_depth, draw_masks, match_objects
from pipeline.report.tables import ap_rows, describe_outcome, format_ap_table
from segtrain.data.segmentations import decode_segmentation


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def _page(**changes):
    picture = np.zeros((8, 9, 3), np.uint8)
    arguments = {
        "title": "run <one> & two",
        "metrics_by_run": {"a": {"bbox": {"AP": 12.34}, "segm": {"AP": float("nan")}}},
        "curves_by_run": {"a": {"total_loss": [(1, 2.0), (2, 1.0)]}},
        "coverage": {"images": "3"},
        "panels": [Panel(title="x.png", pictures={"image": picture, "truth": picture})],
        "environment": {"packages": {"torch": "2"}},
    }
    return render_page(**{**arguments, **changes})


def test_page_is_self_contained():
    page = _page()
    parser = _Links()
    parser.feed(page)
    assert len(parser.found) == 2
    assert all(link.startswith("data:image/png;base64,") for link in parser.found)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "script" not in parser.tags
    assert {"svg", "table", "img"} <= parser.tags


def test_page_escapes_names():
    page = _page()
    assert "run &lt;one&gt; &amp; two" in page
    assert "<one>" not in page


def test_page_of_a_run_with_nothing_yet():
    page = _page(metrics_by_run={"a": {}}, curves_by_run={"a": {}}, coverage={}, panels=[])
    assert "<svg" not in page
    assert page.count("<td>–</td>") == 8


def test_curves_of_a_killed_and_resumed_run(tmp_path):
    rows = [
        {"iteration": 1, "total_loss": 3.0, "loss_proj": 1.0, "lr": 0.1},
        {"iteration": 2, "total_loss": 9.0},
        {"iteration": 2, "total_loss": 2.0, "loss_proj": None},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n{"iteration": 3, "total'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_curves(tmp_path / "metrics.jsonl") == {
        "total_loss": [(1, 3.0), (2, 2.0)],
        "loss_proj": [(1, 1.0)],
    }
    assert read_curves(tmp_path / "absent.jsonl") == {}


@pytest.mark.parametrize(
    ("value", "ceiling"), [(0, 1), (0.3, 0.5), (1, 1), (2.2, 2.5), (7, 10), (1e-4, 1e-4)]
)
def test_axis_ends_at_a_round_number(value, ceiling):
    assert nice_ceiling(value) == pytest.approx(ceiling)


def test_chart_places_first_and_last_point():
    chart = render_chart("loss", {"a": [(0, 4.0), (100, 0.0)]})
    (points,) = re.findall(r'points="([^"]+)"', chart)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1
    assert y0 < y1  # SVG's y grows downwards


def test_curve_of_one_run_has_the_colour_of_the_legend():
    line = [(0, 4.0), (100, 1.0)]
    page = _page(
        metrics_by_run={}, curves_by_run={"a": {"loss_proj": line}, "b": {"loss_depth": line}}
    )
    colours = re.findall(r'<polyline class="(s\d)"', page)
    assert (colours[:2], colours[2:]) == (["s0", "s1"], ["s0", "s1"])  # legend, charts


def test_near_is_brighter_than_far_and_nan_is_grey():
    picture = colour_depth(np.array([[0.0, 1.0, np.nan]], np.float32))
    assert picture[0, 1].astype(int).sum() > picture[0, 0].astype(int).sum()
    assert picture[0, 2].tolist() == [128, 128, 128]


def test_masks_change_their_pixels_only():
    image = np.full((6, 6, 3), 100, np.uint8)
    mask = np.zeros((6, 6), bool)
    mask[1:4, 1:4] = True
    drawn = draw_masks(image, [mask])
    assert (drawn[~mask] == 100).all()
    assert (drawn[mask] != 100).any(axis=-1).all()


def test_segmentation_is_read_back():
    from pycocotools import mask as coco_mask

    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (encoded["counts"], encoded["counts"].decode()):
        assert (decode_segmentation({"size": [7, 5], "counts": counts}, 7, 5) == mask).all()


def test_ap_table_shows_numbers_as_measured():
    metrics = {"bbox": {"AP": 12.345, "AP50": 0.0}, "segm": {"AP": -1.0}}
    (row,) = ap_rows({"ours": metrics})
    assert row[:4] == ["ours", "12.3", "0.0", "–"]
    assert "12.3" in format_ap_table({"ours": metrics})


def test_an_object_keeps_its_colour_whatever_its_rank_among_the_predictions():
    image = np.full((20, 20, 3), 100, np.uint8)
    objects = []
    for corner in (0, 10):
        mask = np.zeros((20, 20), bool)
        mask[corner : corner + 8, corner : corner + 8] = True
        objects.append(mask)
    elsewhere = np.zeros((20, 20), bool)
    elsewhere[0:5, 15:20] = True
    shifted = np.roll(objects[1], 1, axis=0)
    masks = [shifted, elsewhere, objects[1], objects[0]]
    assert match_objects(masks, objects) == [None, None, 1, 0]
    truth = draw_masks(image, objects)
    drawn = draw_masks(image, masks[2:], match_objects(masks[2:], objects))
    assert (drawn == truth).all()
    second = np.roll(objects[1], 1, axis=1)
    above = draw_masks(image, [second, *objects], [None, 0, 1])
    assert (above == draw_masks(image, [*objects, second], [0, 1, None])).all()
    grey = draw_masks(image, [elsewhere], [None])[elsewhere]
    assert (grey[:, :1] == grey).all()


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({}, "There is no evaluated run yet."),
        (
            {"a": {"segm": {"AP": 12.34}, "bbox": {"AP": 20.0}, "num_images": 60}},
            "a reaches 12.3 mask AP and 20.0 box AP on 60 held-out images.",
        ),
        (
            {"a": {"segm": {"AP": 0.0}, "bbox": {"AP": 0.0}, "given_boxes": {"IoU": 69.46}}},
            "a reaches 0.0 mask AP and 0.0 box AP, and 69.5 IoU given the box on the held-out",
        ),
        ({"a": {"segm": {"AP": None}}}, "a has no mask AP: the test data holds no annotated mask"),
        (
            {"a": {"segm": {"AP": 20.9}}, "b": {"segm": {"AP": 24.1}}},
            "b reaches 24.1 mask AP on the held-out images: 3.2 mask AP more than a (20.9).",
        ),
        (
            {"a": {"segm": {"AP": 24.1}}, "b": {"segm": {"AP": 20.9}}},
            "b reaches 20.9 mask AP on the held-out images: 3.2 mask AP less than a (24.1).",
        ),
        (
            {"a": {"segm": {"AP": 20.91}}, "b": {"segm": {"AP": 20.93}}},
            "b reaches 20.9 mask AP on the held-out images, as many mask AP as a.",
        ),
    ],
)
def test_the_page_says_first_what_happened(metrics, sentence):
    assert describe_outcome(metrics).startswith(sentence)
    if metrics:
        assert sentence.split(":")[0] in _page(metrics_by_run=metrics)


def test_other_pages_of_the_run_are_linked():
    page = _page(links={"Masks of the labeller": "labeller/review.html"})
    assert '<a href="labeller/review.html">Masks of the labeller</a>' in page
