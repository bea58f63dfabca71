"""A store behind HTTP: a cache service, or a static server."""

from __future__ import annotations

import json
import os
import weakref
from typing import Any

from depthcache.errors import CacheCorruptError, CacheNotFoundError, CacheUnreachableError
from depthcache.format.byte_spans import check_length
from depthcache.storage.http_retries import (
    check_digest,
    check_status,
    is_damage_report,
    try_several_times,
)

_ATTEMPTS = 5


class HTTPStore:
    """A cache service, or a static server with a `catalogue.json` in its root."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._client: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "token": self.token, "_client": None, "_process": 0}

    def close(self) -> None:
        """Close this process's connections; the next request opens new ones."""
        if self._client is not None and self._process == os.getpid():
            self._client.close()
        self._client = None

    def _opened(self) -> Any:
        import httpx

        if self._client is None or self._process != os.getpid():
            own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            timeout = httpx.Timeout(30.0, connect=5.0)
            self._client = httpx.Client(timeout=timeout, headers=own, follow_redirects=True)
            weakref.finalize(self, self._client.close)
            self._process = os.getpid()
        return self._client

    def _get(self, path: str, headers: dict[str, str], expected_status: int) -> bytes:
        what = f"{self.url}/{path}"

        def attempt() -> bytes:
            response = self._opened().get(what, headers=headers)
            if response.status_code == 404:
                raise CacheNotFoundError(f"{what} does not exist")
            check_status(response)
            check_digest(response)
            if response.status_code == expected_status:
                return bytes(response.content)
            if is_damage_report(response):
                raise CacheCorruptError(f"{what}: {response.json()['detail']}")
            raise CacheUnreachableError(f"{what} answered {response.status_code}")

        return try_several_times(attempt, what, _ATTEMPTS)

    def get(self, path: str) -> bytes:
        return self._get(path, {}, 200)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        return check_length(self._get(path, headers, 206), length, path)

    def put(self, path: str, data: bytes) -> None:
        raise CacheUnreachableError(
            f"{self.url}/{path}: {len(data)} bytes not written: HTTP is read only; use push"
        )

    def list_folders(self, path: str) -> list[str]:
        try:
            caches = json.loads(self.get("catalogue.json"))["caches"]
            folders = {str(entry["name"]): list(entry["segments"]) for entry in caches}
        except (ValueError, KeyError, TypeError) as error:
            raise CacheCorruptError(f"{self.url}/catalogue.json is not a catalogue") from error
        if not path:
            return sorted(folders)
        return sorted(folders.get(path.split("/", maxsplit=1)[0], []))

    def list_objects(self, path: str) -> dict[str, int]:
        raise CacheUnreachableError(f"{self.url}/{path}: HTTP roots cannot be listed")
