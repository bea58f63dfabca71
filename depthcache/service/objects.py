"""Objects of sealed segments over plain GET, so that any zarr client reads a cache from the URL.

Only what a segment's manifest lists is ever opened: a name that is not in it is a 404, whatever it
would mean to the file system.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from depthcache.service.byte_ranges import resolve_range
from depthcache.service.catalogue import Catalogue, StoredObject
from depthcache.service.refusals import RequestRefusedError

# Measured: larger pieces cost twice the CPU time, they are copied in the socket's buffer.
CHUNK_BYTES = 2**18


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
        await _send_object(stored, method, dict(scope["headers"]), send)


async def _send_object(
    stored: StoredObject,
    method: str,
    request_headers: dict[bytes, bytes],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
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
    descriptor = _open(stored)
    try:
        first = b""
        if method == "GET":
            first = await _read(descriptor, start, min(stop - start, CHUNK_BYTES))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        position = start + len(first)
        while method == "GET" and position < stop:
            await send({"type": "http.response.body", "body": first, "more_body": True})
            first = await _read(descriptor, position, min(stop - position, CHUNK_BYTES))
            position += len(first)
        await send({"type": "http.response.body", "body": first})
    finally:
        os.close(descriptor)


def _open(stored: StoredObject) -> int:
    try:
        descriptor = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise RequestRefusedError(404, "not-found", "the segment has just been removed") from None
    except OSError as error:
        raise _damaged(f"the object cannot be opened: {error.strerror}") from error
    size = os.fstat(descriptor).st_size
    if size != stored.size:
        os.close(descriptor)
        raise _damaged(f"the object has {size} bytes, its manifest says {stored.size}")
    return descriptor


async def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Read exactly `length` bytes; on the event loop only when they are in the page cache."""
    if not length:
        return b""
    buffer = bytearray(length)
    try:
        num_read = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # not in memory, or a file system that cannot tell
        num_read = 0
    if num_read == length:
        return bytes(buffer)
    data = await asyncio.to_thread(os.pread, descriptor, length, offset)
    if len(data) != length:
        raise _damaged("the object became shorter while it was read")
    return data


def _damaged(detail: str) -> RequestRefusedError:
    return RequestRefusedError(500, "object-damaged", f"{detail}; run `pipeline cache verify`")


def _matches(if_none_match: bytes | None, etag: bytes) -> bool:
    if if_none_match is None:
        return False
    candidates = [candidate.strip() for candidate in if_none_match.split(b",")]
    return b"*" in candidates or any(
        candidate.removeprefix(b"W/") == etag for candidate in candidates
    )


def _content_type(path: str) -> bytes:
    return b"application/json" if path.endswith(".json") else b"application/octet-stream"
