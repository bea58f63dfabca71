"""Which segments go when the root is over its cap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from depthcache.service.lifecycle import EvictionCandidate, choose_victims

CANDIDATES = st.lists(
    st.builds(
        EvictionCandidate,
        key=st.uuids().map(str),
        num_bytes=st.integers(1, 100),
        last_used=st.floats(0, 10),
        is_pinned=st.booleans(),
    ),
    max_size=20,
)


@given(candidates=CANDIDATES, excess=st.integers(-10, 2000))
def test_only_the_least_recently_used_unpinned_go_and_no_more_than_needed(
    candidates: list[EvictionCandidate], excess: int
) -> None:
    victims = choose_victims(candidates, excess)
    by_key = {candidate.key: candidate for candidate in candidates}
    assert not any(by_key[key].is_pinned for key in victims)
    freed = [by_key[key].num_bytes for key in victims]
    assert sum(freed[:-1]) < excess or not victims
    spared = [c for c in candidates if not c.is_pinned and c.key not in victims]
    if sum(freed) < excess:
        assert not spared
    if victims and spared:
        assert max(by_key[k].last_used for k in victims) <= min(c.last_used for c in spared)
