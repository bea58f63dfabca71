"""Credentials, scopes and rates."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcache.service.access import (
    AccessPolicy,
    RateLimit,
    Scope,
    load_tokens,
    required_scope,
)
from depthcache.service.refusals import RequestRefusedError

SECRET = "a-secret-of-the-ci-0001"
OTHER = "a-secret-of-the-ops-002"


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    path.write_text(
        f'[tokens.ci]\nsecret = "{SECRET}"\nscopes = ["write"]\n'
        f'[tokens.ops]\nsha256 = "{digest}"\nscopes = ["admin"]\n'
    )
    return path


def test_tokens_of_file_and_environment_are_known_with_what_their_scopes_imply(
    tokens_file: Path,
) -> None:
    tokens = load_tokens(
        tokens_file, {"DEPTHCACHE_TOKENS": "reader:read:a-secret-with:colons-in-it"}
    )
    policy = AccessPolicy(tokens, anonymous_read=False)
    ci = policy.identify(b"Bearer " + SECRET.encode())
    ops = policy.identify(b"bearer " + OTHER.encode())
    reader = policy.identify(b"Bearer a-secret-with:colons-in-it")
    assert (ci.name, ci.scopes) == ("ci", {Scope.READ, Scope.WRITE})
    assert (ops.name, ops.scopes) == ("ops", set(Scope))
    assert (reader.name, reader.scopes) == ("reader", {Scope.READ})


@pytest.mark.parametrize(
    "credential",
    [b"", b"Bearer", b"Bearer ", b"Bearer wrong-wrong-wrong-wrong", b"Basic " + SECRET.encode()],
)
def test_an_unknown_credential_is_refused_even_where_anonymous_clients_read(
    tokens_file: Path, credential: bytes
) -> None:
    policy = AccessPolicy(load_tokens(tokens_file, {}), anonymous_read=True)
    with pytest.raises(RequestRefusedError) as refused:
        policy.identify(credential)
    assert refused.value.status == 401


def test_demand_tells_anonymous_from_too_weak(tokens_file: Path) -> None:
    policy = AccessPolicy(load_tokens(tokens_file, {}), anonymous_read=True)
    anonymous = policy.identify(None)
    policy.demand(anonymous, Scope.READ)
    with pytest.raises(RequestRefusedError) as refused:
        policy.demand(anonymous, Scope.WRITE)
    assert refused.value.status == 401
    ci = policy.identify(b"Bearer " + SECRET.encode())
    policy.demand(ci, Scope.WRITE)
    with pytest.raises(RequestRefusedError) as refused:
        policy.demand(ci, Scope.ADMIN)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tokens.ci]\nsecret = 'short'\nscopes = ['read']", "at least 16"),
        ("[tokens.ci]\nsecret = 'long-enough-secret-here'\nscopes = ['root']", "unknown scope"),
        ("[tokens.ci]\nsecret = 'long-enough-secret-here'\nscopes = []", "at least one scope"),
        ("[tokens.ci]\nscopes = ['read']", "either secret or sha256"),
        ("[tokens.ci]\nsha256 = 'abc'\nscopes = ['read']", "64 hex"),
        ("[tokens.ci]\nsecret = 'long-enough-secret-here'\nscopes = 'read'", "list of words"),
        ("[token.ci]\nsecret = 'long-enough-secret-here'", "tables"),
        ("secret = long-enough-secret-here", "not valid TOML"),
    ],
)
def test_a_malformed_tokens_file_is_refused_without_showing_a_secret(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as refused:
        load_tokens(path, {})
    assert "long-enough-secret-here" not in str(refused.value)


def test_a_name_used_twice_is_refused(tokens_file: Path) -> None:
    with pytest.raises(ValueError, match="used twice"):
        load_tokens(tokens_file, {"DEPTHCACHE_TOKENS": "ci:read:another-long-secret-1"})


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/", None),
        ("GET", "/web/page.js", None),
        ("GET", "/healthz", None),
        ("GET", "/metrics", Scope.READ),
        ("GET", "/dpt-0123456789abcdef/segments/x/zarr.json", Scope.READ),
        ("POST", "/api/v1/caches/c/lookup", Scope.READ),
        ("POST", "/api/v1/caches/c/segments/s/upload", Scope.WRITE),
        ("PUT", "/api/v1/uploads/u/objects/maps/c/0/0/0", Scope.WRITE),
        ("DELETE", "/api/v1/uploads/u", Scope.WRITE),
        ("PUT", "/api/v1/caches/c/segments/s/pin", Scope.ADMIN),
        ("DELETE", "/api/v1/caches/c/segments/s", Scope.ADMIN),
        ("POST", "/api/v1/gc", Scope.ADMIN),
        ("PATCH", "/", Scope.WRITE),
        ("POST", "/healthz", Scope.WRITE),
    ],
)
def test_required_scope(method: str, path: str, scope: Scope | None) -> None:
    assert required_scope(method, path) == scope


@given(gaps=st.lists(st.floats(0, 1), min_size=1, max_size=200), rate=st.floats(1, 50))
def test_no_more_than_the_rate_plus_a_burst_is_admitted(gaps: list[float], rate: float) -> None:
    limit = RateLimit(rate)
    now, admitted = 100.0, 0
    for gap in gaps:
        now += gap
        with contextlib.suppress(RequestRefusedError):
            limit.admit("client", now)
            admitted += 1
    assert admitted <= 2 * rate + rate * sum(gaps) + 1e-6


def test_one_client_does_not_use_up_the_rate_of_another() -> None:
    limit = RateLimit(1)
    limit.admit("a", 0.0)
    limit.admit("a", 0.0)
    with pytest.raises(RequestRefusedError) as refused:
        limit.admit("a", 0.0)
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "2"
    limit.admit("b", 0.0)
