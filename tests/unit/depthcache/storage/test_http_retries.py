"""Waits between attempts, and answers compared with the digest in their head."""

from __future__ import annotations

import base64
import hashlib

import httpx
import pytest

from depthcache.errors import CacheCorruptError, CacheNotFoundError, CacheUnreachableError
from depthcache.storage.http_retries import (
    LONGEST_WAIT_SECONDS,
    PassingError,
    check_digest,
    check_status,
    has_its_digest,
    is_passing,
    retry_waits,
    try_several_times,
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


@pytest.mark.parametrize("num_failures", [0, 1, 4, 5])
@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), CacheUnreachableError),
        (PassingError("it answers 503", retry_after="0"), CacheUnreachableError),
        (PassingError("other bytes", is_damage=True), CacheCorruptError),
    ],
)
def test_what_may_pass_is_tried_again_and_then_named(monkeypatch, num_failures, failure, kind):
    monkeypatch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.0)
    calls = []

    def attempt():
        calls.append(0)
        if len(calls) <= num_failures:
            raise failure
        return "answer"

    if num_failures < 5:
        assert try_several_times(attempt, "http://x", 5) == "answer"
        assert len(calls) == num_failures + 1
        return
    with pytest.raises(kind, match="http://x failed 5 times in a row"):
        try_several_times(attempt, "http://x", 5)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("failures", "num_calls"),
    [
        ([httpx.ConnectError("refused")] * 5, 3),
        ([httpx.ReadError("cut")] * 5, 5),
        ([PassingError("it answers 503", retry_after="0")] * 3 + [httpx.ConnectError("r")] * 2, 5),
    ],
)
def test_who_takes_no_connection_is_given_up_sooner(monkeypatch, failures, num_calls):
    monkeypatch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.0)
    coming = iter(failures)

    def attempt():
        raise next(coming)

    with pytest.raises(CacheUnreachableError, match=f"failed {num_calls} times in a row"):
        try_several_times(attempt, "http://x", 5, num_attempts_to_connect=3)
    assert len(list(coming)) == 5 - num_calls


def test_what_is_final_is_not_tried_again():
    calls = []

    def attempt():
        calls.append(0)
        raise CacheNotFoundError("gone")

    with pytest.raises(CacheNotFoundError):
        try_several_times(attempt, "http://x", 5)
    assert len(calls) == 1


def test_answers_worth_another_try_are_told_from_others():
    with pytest.raises(PassingError, match="503") as caught:
        check_status(httpx.Response(503, headers={"Retry-After": "7"}))
    assert caught.value.retry_after == "7"
    check_status(httpx.Response(404))
    with pytest.raises(PassingError) as caught:
        check_digest(httpx.Response(200, headers={"Repr-Digest": "sha-256=:x:"}, content=b"a"))
    assert caught.value.is_damage
