"""Joined byte ranges cover what was asked, and no more than they may."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from depthcache.format.byte_spans import join_spans

SPANS = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=12)


@given(SPANS, st.integers(0, 50), st.integers(1, 300))
def test_every_span_lies_in_the_one_that_lists_it(spans, max_gap, max_bytes):
    joined = join_spans(spans, max_gap=max_gap, max_bytes=max_bytes)
    assert sorted(m for j in joined for m in j.members) == list(range(len(spans)))
    for j in joined:
        for member in j.members:
            start, length = spans[member]
            assert j.start <= start
            assert start + length <= j.stop
        assert j.stop - j.start <= max_bytes or len(j.members) == 1
        covered = sorted((spans[m][0], sum(spans[m])) for m in j.members)
        reached = j.start
        for start, stop in covered:
            assert start - reached <= max_gap
            reached = max(reached, stop)
        assert reached == j.stop


def test_neighbours_share_a_request_and_far_ones_do_not():
    joined = join_spans([(100, 10), (0, 10), (12, 5)], max_gap=2)
    assert [(j.start, j.stop, j.members) for j in joined] == [(0, 17, [1, 2]), (100, 110, [0])]
    assert join_spans([]) == []
