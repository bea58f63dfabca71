"""The Range header against the bytes that it selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcache.service.byte_ranges import resolve_range
from depthcache.service.refusals import RequestRefusedError

DATA = bytes(range(100))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"bytes=0-9", DATA[:10]),
        (b"bytes=10-", DATA[10:]),
        (b"bytes=-10", DATA[-10:]),
        (b"bytes=-1000", DATA),
        (b"bytes=90-1000", DATA[90:]),
        (b"Bytes = 5 - 5", DATA[5:6]),
    ],
)
def test_a_range_selects_its_bytes(header: bytes, expected: bytes) -> None:
    span = resolve_range(header, len(DATA))
    assert span is not None
    assert DATA[slice(*span)] == expected


@pytest.mark.parametrize(
    "header", [None, b"", b"items=0-1", b"bytes=0-1,4-5", b"bytes=-", b"bytes=9-2", b"bytes=a-b"]
)
def test_what_is_not_one_range_is_ignored(header: bytes | None) -> None:
    assert resolve_range(header, len(DATA)) is None


@pytest.mark.parametrize("header", [b"bytes=100-", b"bytes=100-200", b"bytes=-0"])
def test_a_range_outside_the_object_is_416(header: bytes) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        resolve_range(header, len(DATA))
    assert refused.value.status == 416
    assert refused.value.headers["Content-Range"] == "bytes */100"


@given(header=st.binary(max_size=40) | st.from_regex(rb"bytes=\d*-\d*"), size=st.integers(0, 1000))
def test_any_header_gives_a_span_inside_the_object_or_a_refusal(header: bytes, size: int) -> None:
    try:
        span = resolve_range(header, size)
    except RequestRefusedError:
        return
    assert span is None or 0 <= span[0] < span[1] <= size
