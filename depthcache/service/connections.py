"""One connection's limits that uvicorn lacks, and bytes from a file to a socket without a copy."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# ASGI's name: https://asgi.readthedocs.io/en/latest/extensions.html#zero-copy-send
ZERO_COPY = "http.response.zerocopysend"
HEAD_SECONDS = 15.0
STALLED_READER_SECONDS = 60.0
# The least that must be taken in STALLED_READER_SECONDS.
_PIECE_BYTES = 2**20


class GuardedProtocol(HttpToolsProtocol):
    """An HTTP/1.1 connection that has to go on.

    The head of a request must be complete HEAD_SECONDS after the connection was opened or the last
    answer ended, however many bytes trickle in. A client that stops taking the bytes of an answer
    is disconnected after STALLED_READER_SECONDS, so that it holds neither file nor memory.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._application: Any = self.app
        self.app = self._run
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Stop waiting, and offer the way without a copy where there is one."""
        _cancel(self._head_timer)
        # Encrypted connections need the bytes in memory; other event loops lack the call.
        if self.scheme == "http" and isinstance(self.loop, asyncio.SelectorEventLoop):
            self.scope["extensions"] = {ZERO_COPY: {}}
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next head, unless it is here already."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next and not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """Begin to wait for a client that is slower than the server."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALLED_READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken what was sent."""
        super().resume_writing()
        _cancel(self._stall_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        _cancel(self._head_timer)
        _cancel(self._stall_timer)
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        _cancel(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, with one kind of message that uvicorn does not know."""
        cycle: RequestResponseCycle = send.__self__

        async def send_or_copy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == ZERO_COPY:
                await self._send_file(cycle, message)
            else:
                await send(message)

        await self._application(scope, receive, send_or_copy)

    async def _send_file(
        self, cycle: RequestResponseCycle, message: MutableMapping[str, Any]
    ) -> None:
        """Let the kernel copy a part of a file; it belongs inside a body of announced length."""
        offset, stop = message["offset"], message["offset"] + message["count"]
        cycle.expected_content_length -= message["count"]
        try:
            while offset < stop and not cycle.disconnected:
                async with asyncio.timeout(STALLED_READER_SECONDS):
                    num_sent = await self.loop.sendfile(
                        self.transport, message["file"], offset, min(stop - offset, _PIECE_BYTES)
                    )
                if not num_sent:
                    break  # the file has become shorter
                offset += num_sent
        except (OSError, RuntimeError):  # timed out, or the client is gone
            pass
        if offset < stop:
            # An answer cut short must not look like one that is whole.
            cycle.disconnected = True
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
