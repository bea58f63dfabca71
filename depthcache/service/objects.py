"""Objects of sealed segments over plain GET, so that any zarr client reads a cache from the URL.

Only what a segment's manifest lists is ever opened: a name that is not in it is a 404, whatever it
would mean to the file system.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from depthcache.service.byte_ranges import resolve_range
from depthcache.service.catalogue import Catalogue, StoredObject
from depthcache.service.connections import ZERO_COPY
from depthcache.service.refusals import RequestRefusedError
from depthcache.service.roots import ServedRoot


class ObjectServer:
    """ASGI application for GET and HEAD of `/{cache}/…`.

    Args:
        catalogue: what there is.
        on_read: called with (cache, segment id) of a segment's object; keeps it from eviction.
    """

    def __init__(self, catalogue: Catalogue, on_read: Callable[[str, str], None]) -> None:
        self._catalogue = catalogue
        self._on_read = on_read

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],  # noqa: ARG002  (ASGI)
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request.

        Raises:
            RequestRefusedError: 404, 405 or 416; 500 when the object on disk has another size
                than its manifest says.
        """
        method = scope["method"]
        if method not in ("GET", "HEAD"):
            raise RequestRefusedError(
                405, "method-not-allowed", "objects can be read only", {"Allow": "GET, HEAD"}
            )
        stored = self._catalogue.find_object(scope["path"])
        if stored is None and await asyncio.to_thread(self._catalogue.refresh):
            stored = self._catalogue.find_object(scope["path"])
        if stored is None:
            raise RequestRefusedError(404, "not-found", "no such object in a sealed segment")
        if stored.segment_id is not None:
            self._on_read(stored.cache, stored.segment_id)
        await _send_object(self._catalogue.root, stored, scope, send)


async def _send_object(
    root: ServedRoot,
    stored: StoredObject,
    scope: MutableMapping[str, Any],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    method = scope["method"]
    request_headers = dict(scope["headers"])
    etag = b'"%s"' % stored.sha256.encode()
    headers = [
        (b"etag", etag),
        (b"accept-ranges", b"bytes"),
        (b"content-type", _content_type(stored.path)),
        # A segment never changes; "no-cache" lets an evicted one disappear from caches too.
        (b"cache-control", b"no-cache"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if _matches(request_headers.get(b"if-none-match"), etag):
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body"})
        return
    start, stop, status = 0, stored.size, 200
    may_be_partial = request_headers.get(b"if-range", etag) == etag
    if method == "GET" and may_be_partial:
        span = resolve_range(request_headers.get(b"range"), stored.size)
        if span is not None:
            (start, stop), status = span, 206
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, stored.size)))
    if status == 200:
        digest = base64.b64encode(bytes.fromhex(stored.sha256))
        headers.append((b"repr-digest", b"sha-256=:%s:" % digest))
    headers.append((b"content-length", b"%d" % (stop - start)))
    opened = await root.open(stored.path, stored.size)
    try:
        start_message = {"type": "http.response.start", "status": status, "headers": headers}
        if method == "HEAD":
            await send(start_message)
            await send({"type": "http.response.body"})
        elif (
            opened.file is not None
            and stop - start > opened.piece_bytes
            and ZERO_COPY in scope.get("extensions", {})
        ):
            await opened.read(start, 1)  # from a disk that is slow only here, in a thread
            await send(start_message)
            part = {"file": opened.file, "offset": start, "count": stop - start}
            await send({"type": ZERO_COPY, **part})
            await send({"type": "http.response.body"})
        else:
            piece = await opened.read(start, min(stop - start, opened.piece_bytes))
            await send(start_message)
            position = start + len(piece)
            while position < stop:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await opened.read(position, min(stop - position, opened.piece_bytes))
                position += len(piece)
            await send({"type": "http.response.body", "body": piece})
    finally:
        opened.close()


def _matches(if_none_match: bytes | None, etag: bytes) -> bool:
    if if_none_match is None:
        return False
    candidates = [candidate.strip() for candidate in if_none_match.split(b",")]
    return b"*" in candidates or any(
        candidate.removeprefix(b"W/") == etag for candidate in candidates
    )


def _content_type(path: str) -> bytes:
    return b"application/json" if path.endswith(".json") else b"application/octet-stream"
