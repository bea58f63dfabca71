"""Planning gives every image one place, whatever order the images come in."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthcache.format.segment_format import canonical_json
from depthcache.format.shard_planning import plan_segment

_keys = st.integers(0, 2**32).map(lambda n: hashlib.sha256(str(n).encode()).hexdigest())
_shapes = st.sampled_from([(4, 4), (4, 6), (10, 4)])


@settings(max_examples=100)
@given(shapes=st.dictionaries(_keys, _shapes, max_size=30), rows=st.integers(1, 7), data=st.data())
def test_planning_is_a_bijection_and_free_of_order(shapes, rows, data):
    plan = plan_segment(shapes, fingerprint="m-0", shard_rows=rows)
    places = [
        (shard.shape, shard.number * rows + row, key)
        for shard in plan.shards
        for row, key in enumerate(shard.keys)
    ]
    assert {key: shape for shape, _, key in places} == shapes
    assert len(places) == len(shapes)
    for shape in set(shapes.values()):
        taken = sorted(row for at, row, _ in places if at == shape)
        assert taken == list(range(len(taken)))
    shuffled = dict(data.draw(st.permutations(list(shapes.items()))))
    assert plan_segment(shuffled, fingerprint="m-0", shard_rows=rows) == plan


def test_segment_id_depends_on_all_that_decides_rows():
    shapes = {"aa" * 32: (2, 2), "bb" * 32: (2, 2)}
    ids = {
        plan_segment(s, fingerprint=f, shard_rows=r).segment_id
        for s, f, r in [
            (shapes, "m-0", 4),
            (shapes, "m-1", 4),
            (shapes, "m-0", 2),
            ({"aa" * 32: (2, 2)}, "m-0", 4),
            ({"aa" * 32: (2, 2), "bb" * 32: (2, 3)}, "m-0", 4),
        ]
    }
    assert len(ids) == 5


@settings(max_examples=50)
@given(shapes=st.dictionaries(_keys, _shapes, max_size=30), at_once=st.integers(1, 31))
def test_segment_id_is_the_hash_of_one_canonical_document(shapes, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcache.format.shard_planning._KEYS_AT_ONCE", at_once)
        plan = plan_segment(shapes, fingerprint="mödel-0", shard_rows=4)
    document = ["mödel-0", 4, [[list(s), list(k)] for s, k in plan.buckets.items()]]
    assert plan.segment_id == hashlib.sha256(canonical_json(document)).hexdigest()[:32]


def test_shard_rows_must_be_positive():
    with pytest.raises(ValueError, match="shard_rows=0"):
        plan_segment({}, fingerprint="m-0", shard_rows=0)
