"""Polygons and run-length codes: equal to pycocotools where they are sound, refused where not."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_api

from segtrain.data.segmentations import (
    check_segmentation,
    decode_segmentation,
    encode_mask,
    encode_segmentation,
)
from segtrain.errors import DatasetError

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(mask=masks)
def test_codes_of_any_mask_are_read_back(mask: npt.NDArray[np.bool_]) -> None:
    height, width = mask.shape
    code = encode_mask(mask)
    plain: dict[str, Any] = {"size": [height, width], "counts": []}
    value = False
    run = 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            plain["counts"].append(run)
            value, run = pixel, 0
        run += 1
    plain["counts"].append(run)
    for each in (code, code | {"counts": code["counts"].encode()}, plain):
        assert check_segmentation(each, height, width) is None
        np.testing.assert_array_equal(decode_segmentation(each, height, width), mask)


@given(
    points=st.lists(
        st.tuples(st.floats(-20, 60, width=32), st.floats(-15, 45, width=32)),
        min_size=3,
        max_size=9,
    )
)
def test_polygons_equal_those_of_pycocotools(points: list[tuple[float, float]]) -> None:
    polygon = [value for point in points for value in point]
    expected = mask_api.merge(mask_api.frPyObjects([polygon, SQUARE], 30, 40))
    assert encode_segmentation([polygon, SQUARE], 30, 40) == expected


def test_rings_of_two_points_enclose_nothing() -> None:
    alone = decode_segmentation([SQUARE], 40, 40)
    np.testing.assert_array_equal(decode_segmentation([[1.0, 2, 3, 4], SQUARE], 40, 40), alone)
    assert decode_segmentation(None, 3, 4).tolist() == [[0] * 4] * 3


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([[10, 10, 50, 40]], "mask_malformed"),
        (SQUARE, "mask_malformed"),
        ([[[10, 10], [30, 10], [30, 30]]], "mask_malformed"),
        ([SQUARE[:-1]], "mask_malformed"),
        ([["10", "10", "30", "10", "30", "30"]], "mask_malformed"),
        ([[True, 1, 2, 3, 4, 5]], "mask_malformed"),
        ([[float("nan"), *SQUARE[1:]]], "mask_malformed"),
        ([[10**400, *SQUARE[1:]]], "mask_malformed"),
        ([[0, 0, 80, 80] * 2000], "mask_malformed"),
        ([[1e9, *SQUARE[1:]]], "mask_far_outside"),
        ([[-41, *SQUARE[1:]]], "mask_far_outside"),
        ("text", "mask_malformed"),
        (7, "mask_malformed"),
        ({"counts": [1600]}, "mask_malformed"),
        ({"size": [40, 40], "counts": [0, 180]}, "mask_malformed"),
        ({"size": [40, 40], "counts": [-1, 1601]}, "mask_malformed"),
        ({"size": [40, 40], "counts": ["1600"]}, "mask_malformed"),
        ({"size": [40, 40], "counts": ""}, "mask_malformed"),
        ({"size": [40, 40], "counts": "o" * 40}, "mask_malformed"),
        ({"size": [40, 40], "counts": "\u00e4"}, "mask_malformed"),
        ({"size": [40, 40], "counts": "P"}, "mask_malformed"),
        ({"size": [80, 80], "counts": [6400]}, "mask_of_other_size"),
        ({"size": "nonsense", "counts": [1600]}, "mask_of_other_size"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(segmentation: Any, kind: str) -> None:
    found = check_segmentation(segmentation, 40, 40)
    assert found is not None
    assert found[0] == kind
    with pytest.raises(DatasetError):
        decode_segmentation(segmentation, 40, 40)


@settings(deadline=None)
@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=115), max_size=30))
def test_any_text_is_a_code_of_the_whole_image_or_refused(text: str) -> None:
    code = {"size": [6, 5], "counts": text}
    if check_segmentation(code, 6, 5) is None:
        again = encode_mask(decode_segmentation(code, 6, 5).astype(bool))
        np.testing.assert_array_equal(
            decode_segmentation(again, 6, 5), decode_segmentation(code, 6, 5)
        )


def test_no_polygon_takes_more_memory_than_its_image() -> None:
    tracemalloc.start()
    check_segmentation([[-1e9, -1e9, 1e9, 1e9, 1e9, 0] * 50], 1000, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
