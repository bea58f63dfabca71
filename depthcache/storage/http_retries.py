"""When a request over HTTP is worth another try, and how long to wait before it."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterator
from typing import Any

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
_PASSING_STATUSES = frozenset({408, 429, 502, 503, 504})


def retry_waits(num_attempts: int) -> Iterator[float | None]:
    """Growing waits with jitter, so that many clients do not come back at once.

    Args:
        num_attempts: how often to try, at least once.

    Yields:
        Seconds to wait after each failed attempt; None after the last, which is final.
    """
    for attempt in range(num_attempts - 1):
        longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
        yield longest * random.uniform(0.5, 1)  # noqa: S311  (not a secret)
    yield None


def is_passing(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in _PASSING_STATUSES


def has_its_digest(response: Any) -> bool:
    """Whether a whole answer has the sha256 that its head says (RFC 9530), if it says one."""
    said = response.headers.get("Repr-Digest", "")
    if response.status_code != 200 or not said.startswith("sha-256=:"):
        return True
    digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
    return bool(said == f"sha-256=:{digest}:")


def wait_asked_for(retry_after: str | None, wait_seconds: float) -> float:
    """The longer of the own wait and the server's `Retry-After`, within reason."""
    if retry_after is None or not retry_after.isdigit():
        return wait_seconds
    return max(wait_seconds, min(float(retry_after), LONGEST_WAIT_SECONDS))
