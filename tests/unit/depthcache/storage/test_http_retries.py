"""Waits between attempts, and answers compared with the digest in their head."""

from __future__ import annotations

import base64
import hashlib

import httpx
import pytest

from depthcache.storage.http_retries import (
    LONGEST_WAIT_SECONDS,
    has_its_digest,
    is_passing,
    retry_waits,
    wait_asked_for,
)


def test_waits_grow_to_a_limit_and_end():
    *waits, last = retry_waits(12)
    assert last is None
    assert len(waits) == 11
    assert all(0.05 <= wait <= LONGEST_WAIT_SECONDS for wait in waits)
    assert waits[-1] > 10 * waits[0]
    assert list(retry_waits(1)) == [None]


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, 1.0), ("0", 1.0), ("3", 3.0), ("3600", 10.0), ("soon", 1.0)]
)
def test_the_servers_wish_counts_within_reason(asked, expected):
    assert wait_asked_for(asked, 1.0) == expected


def test_what_may_pass_is_told_from_what_stays():
    assert [s for s in (200, 401, 404, 408, 409, 422, 429, 500, 503) if is_passing(s)] == [
        408, 429, 503,
    ]  # fmt: skip


def test_a_whole_answer_is_compared_with_its_digest():
    digest = base64.b64encode(hashlib.sha256(b"depth").digest()).decode()
    headers = {"Repr-Digest": f"sha-256=:{digest}:"}
    assert has_its_digest(httpx.Response(200, headers=headers, content=b"depth"))
    assert not has_its_digest(httpx.Response(200, headers=headers, content=b"depti"))
    assert has_its_digest(httpx.Response(206, headers=headers, content=b"dep"))  # of the whole
    assert has_its_digest(httpx.Response(200, content=b"depth"))
