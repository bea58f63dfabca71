"""Every kind of credential on every kind of route."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = ["none", "wrong", "reader", "writer", "admin"]
READ, WRITE, ADMIN, OPEN = "read", "write", "admin", "open"
HOLDS = {"none": set(), "reader": {READ}, "writer": {READ, WRITE}, "admin": {READ, WRITE, ADMIN}}


@pytest.fixture(scope="module", params=["anonymous", "token"])
def service(
    request: pytest.FixtureRequest,
    start_service: Callable[..., Any],
    make_cache: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Any, str, str]:
    root = tmp_path_factory.mktemp("root")
    folder = make_cache(root)
    return start_service(root, read=request.param), request.param, folder.name


def _routes(cache: str) -> list[tuple[str, str, str, set[int]]]:
    """Method, path, scope that it needs, statuses with that scope."""
    upload = "/api/v1/uploads/" + "0" * 32
    segment = f"/api/v1/caches/{cache}/segments/absent"
    return [
        ("GET", "/", OPEN, {200}),
        ("GET", "/web/page.js", OPEN, {200}),
        ("GET", "/web/absent", OPEN, {404}),
        ("GET", "/healthz", OPEN, {200}),
        ("GET", "/readyz", OPEN, {200}),
        ("GET", "/metrics", READ, {200}),
        ("GET", "/openapi.json", READ, {200}),
        ("GET", "/catalogue.json", READ, {200}),
        ("GET", "/api/v1/caches", READ, {200}),
        ("GET", f"/api/v1/caches/{cache}", READ, {200}),
        ("GET", f"/{cache}/fingerprint.json", READ, {200}),
        ("HEAD", f"/{cache}/fingerprint.json", READ, {200}),
        ("GET", f"/{cache}/absent", READ, {404}),
        ("GET", f"/api/v1/caches/{cache}/maps", READ, {200}),
        ("GET", f"/api/v1/caches/{cache}/maps/{'0' * 64}.npy", READ, {404}),
        ("GET", f"/api/v1/caches/{cache}/maps/{'0' * 64}.png", READ, {404}),
        ("POST", f"/api/v1/caches/{cache}/lookup", READ, {422}),
        ("GET", upload, READ, {404}),
        ("POST", f"{segment}/upload", WRITE, {422}),
        ("PUT", f"{upload}/objects/zarr.json", WRITE, {404}),
        ("POST", f"{upload}/commit", WRITE, {404}),
        ("DELETE", upload, WRITE, {404}),
        ("PUT", f"/{cache}/fingerprint.json", WRITE, {405}),
        ("POST", f"/{cache}/fingerprint.json", WRITE, {405}),
        ("PATCH", "/api/v1/caches", WRITE, {405}),
        ("PUT", f"{segment}/pin", ADMIN, {404}),
        ("DELETE", f"{segment}/pin", ADMIN, {404}),
        ("DELETE", segment, ADMIN, {404}),
        ("DELETE", f"/{cache}/fingerprint.json", ADMIN, {405}),
        ("POST", "/api/v1/gc", ADMIN, {200}),
    ]


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_each_route_opens_to_its_scope_and_to_no_other(
    service: tuple[Any, str, str], credential: str
) -> None:
    server, read, cache = service
    known = None if credential in ("none", "wrong") else credential
    with server.client(known) as client:
        if credential == "wrong":
            client.headers["Authorization"] = "Bearer no-such-secret-0123456789"
        for method, path, scope, statuses in _routes(cache):
            status = client.request(method, path).status_code
            may = credential != "wrong" and (
                scope == OPEN
                or scope in HOLDS[credential]
                or (scope == READ and read == "anonymous")
            )
            if may:
                assert status in statuses, (method, path, status)
            else:
                assert status == (403 if known else 401), (method, path, status)


def test_secrets_are_never_logged(service: tuple[Any, str, str], secrets: dict[str, str]) -> None:
    server, _, cache = service
    with server.client("writer") as client:
        client.post(f"/api/v1/caches/{cache}/segments/x/upload", content=b"{")
        client.get("/api/v1/caches")
    text = server.log.read_text()
    assert '"token": "writer"' in text
    assert not any(secret in text for secret in secrets.values())


def test_a_client_over_its_rate_is_told_to_wait(
    start_service: Callable[..., Any], tmp_path: Path
) -> None:
    server = start_service(tmp_path, request_rate=2.0)
    with server.client() as client:
        answers = [client.get("/healthz") for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)


def test_a_root_that_the_service_makes_is_announced_once(
    tmp_path: Path, start_service: Callable[..., Any]
) -> None:
    root = tmp_path / "shared" / "depth"
    for is_announced in (True, False):
        service = start_service(root)
        service.stop()
        assert (f"new, empty cache root {root}" in service.log.read_text()) is is_announced


def test_a_second_server_over_the_same_root_is_refused(
    service: tuple[Any, str, str], start_service: Callable[..., Any]
) -> None:
    with pytest.raises(AssertionError, match="another server serves"):
        start_service(service[0].root)
