"""The one loop that repeats a request over HTTP: when that is worth it, and how long to wait."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from depthcache.errors import CacheCorruptError, CacheUnreachableError

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
_PASSING_STATUSES = frozenset({408, 429, 502, 503, 504})
_Answer = TypeVar("_Answer")


class PassingError(Exception):
    """A failure that the same request may not meet again.

    Args:
        reason: what happened.
        retry_after: the server's header of that name.
        is_damage: bytes arrived that are not those that were sent.
    """

    def __init__(
        self, reason: str, *, retry_after: str | None = None, is_damage: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.is_damage = is_damage


def try_several_times(
    attempt: Callable[[], _Answer],
    what: str,
    num_attempts: int,
    *,
    num_attempts_to_connect: int | None = None,
) -> _Answer:
    """Make a request until it does not fail in a way that may pass, with growing waits.

    Args:
        attempt: one request; an error of httpx, or a PassingError, is worth another.
        what: named in the error.
        num_attempts: how often to try, at least once.
        num_attempts_to_connect: how often while no connection is accepted; by default as often.

    Raises:
        CacheUnreachableError: every attempt failed.
        CacheCorruptError: every attempt failed, the last because bytes arrived damaged.
    """
    import httpx

    for number, wait in enumerate(retry_waits(num_attempts), start=1):
        wait_seconds = wait
        try:
            return attempt()
        except httpx.HTTPError as error:
            is_connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if not is_connected and number == num_attempts_to_connect:
                wait_seconds = None
            failure = PassingError(f"{type(error).__name__}: {error}")
        except PassingError as error:
            failure = error
        if wait_seconds is None:
            kind = CacheCorruptError if failure.is_damage else CacheUnreachableError
            raise kind(
                f"{what} failed {number} times in a row ({failure}); the same command goes "
                "on from here once it is back"
            ) from failure
        time.sleep(wait_asked_for(failure.retry_after, wait_seconds))
    raise AssertionError("the last wait is None")


def check_status(response: Any) -> None:
    """Raise PassingError for a status with which the same request may succeed later."""
    if is_passing(response.status_code):
        raise PassingError(
            f"it answers {response.status_code}", retry_after=response.headers.get("Retry-After")
        )


def check_digest(response: Any) -> None:
    """Raise PassingError when a whole answer is not what its head says."""
    if not has_its_digest(response):
        raise PassingError("bytes of another sha256 than it says", is_damage=True)


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


def is_damage_report(response: Any) -> bool:
    """Whether a service says that its disk no longer holds what the manifest says."""
    try:
        return response.json()["error"] in ("object-damaged", "map-damaged")
    except (ValueError, KeyError, TypeError):
        return False
