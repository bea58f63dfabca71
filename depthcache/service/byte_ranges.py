"""The `Range` header: pure arithmetic, no I/O. RFC 9110, section 14."""

from __future__ import annotations

import re

from depthcache.service.refusals import RequestRefusedError

_SINGLE_RANGE = re.compile(rb"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})", re.IGNORECASE)


def resolve_range(header: bytes | None, size: int) -> tuple[int, int] | None:
    """Turn a `Range` header into a half-open span of an object.

    Args:
        header: the header's value, None without one.
        size: the object's size in bytes.

    Returns:
        (start, stop), not empty and inside the object; None when the whole object is to be sent:
        no header, another unit, several ranges, or a malformed one, which RFC 9110 lets a server
        ignore.

    Raises:
        RequestRefusedError: 416 when the range lies outside the object.
    """
    if header is None:
        return None
    match = _SINGLE_RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        suffix_length = int(last)
        start, stop = max(0, size - suffix_length), size
    else:
        start = int(first)
        stop = min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        raise RequestRefusedError(
            416,
            "range-not-satisfiable",
            f"the range lies outside the object of {size} bytes",
            {"Content-Range": f"bytes */{size}"},
        )
    return start, stop
