"""Joins neighbouring byte ranges, so that many small reads become few requests. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from depthcache.errors import CacheCorruptError


@dataclass(kw_only=True)
class JoinedSpan:
    """Bytes [start, stop) that one request reads; `members` are positions of the asked spans."""

    start: int
    stop: int
    members: list[int] = field(default_factory=list)


def check_length(data: bytes, length: int, what: str) -> bytes:
    """The bytes, if they are as many as were asked for.

    Raises:
        CacheCorruptError: there are fewer or more.
    """
    if len(data) != length:
        raise CacheCorruptError(f"{what}: {len(data)} bytes where {length} were expected")
    return data


def join_spans(
    spans: Sequence[tuple[int, int]], *, max_gap: int = 2**16, max_bytes: int = 2**24
) -> list[JoinedSpan]:
    """Cover spans of one object by few larger ones.

    Args:
        spans: (start, length) of each, in any order; they may overlap.
        max_gap: unwanted bytes between two spans that are cheaper to read than a second request.
        max_bytes: no joined span is longer, unless a single one is.

    Returns:
        Joined spans by position; each asked span lies inside the one that lists it.
    """
    joined: list[JoinedSpan] = []
    for member in sorted(range(len(spans)), key=lambda number: spans[number]):
        start, length = spans[member]
        last = joined[-1] if joined else None
        if (
            last is not None
            and start - last.stop <= max_gap
            and max(last.stop, start + length) - last.start <= max_bytes
        ):
            last.stop = max(last.stop, start + length)
            last.members.append(member)
        else:
            joined.append(JoinedSpan(start=start, stop=start + length, members=[member]))
    return joined
