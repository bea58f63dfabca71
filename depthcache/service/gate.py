"""What every request passes: credential, rate, body limits; and what is recorded of it.

Plain ASGI rather than middleware of the framework: object reads are the bulk of the traffic, and
they go from here straight to `objects.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from depthcache.errors import CacheUnreachableError
from depthcache.service.access import AccessPolicy, Identity, RateLimit, required_scope
from depthcache.service.metrics import ServiceMetrics
from depthcache.service.objects import ObjectServer
from depthcache.service.refusals import RequestRefusedError, storage_unreachable

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

access_log = logging.getLogger("depthcache.service.access")
log = logging.getLogger("depthcache.service")

_FRAMEWORK_PATHS = frozenset(
    {"/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/favicon.ico", "/catalogue.json"}
)


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How large and how slow a request may be.

    Args:
        max_bytes: largest body of one upload request.
        max_json_bytes: largest JSON body; 100,000 digests take 6.7 MB.
        body_timeout_seconds: longest wait for the next piece of a body.
        min_bytes_per_second: slower bodies are refused once body_timeout_seconds have passed.
        request_rate: requests a second for each client; 0 = no limit.
        max_concurrent_uploads: object bodies received at a time.
    """

    max_bytes: int = 64 * 2**20
    max_json_bytes: int = 16 * 2**20
    body_timeout_seconds: float = 30.0
    min_bytes_per_second: float = 1024.0
    request_rate: float = 0.0
    max_concurrent_uploads: int = 8


class Gate:
    """The outermost ASGI application.

    Args:
        api: the framework's application: JSON endpoints and the page.
        objects: plain objects of sealed segments.
        policy: credentials and scopes.
        limits: sizes and rates.
        metrics: counters.
    """

    def __init__(
        self,
        *,
        api: Application,
        objects: ObjectServer,
        policy: AccessPolicy,
        limits: RequestLimits,
        metrics: ServiceMetrics,
    ) -> None:
        self._api = api
        self._objects = objects
        self._policy = policy
        self._limits = limits
        self._rate_limit = RateLimit(limits.request_rate)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection; anything but HTTP goes to the framework (lifespan)."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._api(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        identity: Identity | None = None
        try:
            identity = self._identify(scope, exchange)
            self._policy.demand(identity, required_scope(scope["method"], scope["path"]))
            exchange.refuse_large_body()
            scope["depthcache.identity"] = identity
            if exchange.route == "object":
                await self._objects(scope, exchange.receive, exchange.send)
            else:
                await self._api(scope, exchange.receive, exchange.send)
        except RequestRefusedError as refusal:
            await exchange.answer_refusal(refusal)
        except CacheUnreachableError as error:
            await exchange.answer_refusal(storage_unreachable(error))
        except Exception:
            log.exception("request failed: %s %s", scope["method"], scope["path"])
            await exchange.answer_refusal(
                RequestRefusedError(500, "internal-error", "the service failed; see its log")
            )
        finally:
            self._record(scope, exchange, identity)

    def _identify(self, scope: Scope, exchange: _Exchange) -> Identity:
        """Whose request it is, counted against their rate; guessing tokens counts too."""
        client = exchange.client
        try:
            identity = self._policy.identify(_header(scope, b"authorization"))
            client = identity.name or client
        finally:
            self._rate_limit.admit(client)
        return identity

    def _record(self, scope: Scope, exchange: _Exchange, identity: Identity | None) -> None:
        seconds = time.perf_counter() - exchange.started
        method = scope["method"] if scope["method"] in _KNOWN_METHODS else "other"
        metrics = self._metrics
        metrics.requests.labels(exchange.route, method, str(exchange.status)).inc()
        metrics.seconds.labels(exchange.route).observe(seconds)
        metrics.sent_bytes.labels(exchange.route).inc(exchange.num_sent)
        metrics.received_bytes.inc(exchange.num_received)
        if access_log.isEnabledFor(logging.INFO):
            access_log.info(
                json.dumps(
                    {
                        "time": round(time.time(), 3),
                        "client": exchange.client,
                        "token": identity.name if identity else None,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": exchange.status,
                        "received": exchange.num_received,
                        "sent": exchange.num_sent,
                        "seconds": round(seconds, 6),
                    }
                )
            )


_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class _Exchange:
    """One request and its answer: counts bytes, and enforces the limits on the body."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: RequestLimits) -> None:
        self.started = time.perf_counter()
        self.status = 0
        self.num_sent = 0
        self.num_received = 0
        client = scope.get("client")
        self.client = client[0] if client else "local"
        path: str = scope["path"]
        self.route = _route_class(path)
        self._scope = scope
        self._receive = receive
        self._send = send
        is_object_upload = self.route == "upload" and scope["method"] == "PUT"
        self._max_body = limits.max_bytes if is_object_upload else limits.max_json_bytes
        self._limits = limits
        self._body_complete = False
        self._refusal: RequestRefusedError | None = None
        self._answer_replaced = False

    def refuse_large_body(self) -> None:
        """Refuse by the announced length, before a byte of the body is read."""
        announced = _header(self._scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> RequestRefusedError:
        return RequestRefusedError(
            413, "body-too-large", f"a body here may have at most {self._max_body} bytes"
        )

    async def receive(self) -> Message:
        """The next piece of the body, or the end of the connection."""
        if self._body_complete:
            return await self._receive()
        patience = self._limits.body_timeout_seconds
        credit = patience + self.num_received / self._limits.min_bytes_per_second
        elapsed = time.perf_counter() - self.started
        try:
            message = await asyncio.wait_for(self._receive(), min(patience, credit - elapsed))
        except TimeoutError:
            self._refusal = RequestRefusedError(
                408,
                "body-too-slow",
                f"{self.num_received} bytes of the body came in {elapsed:.0f} seconds; the next "
                f"are expected within {patience:g} seconds, and in the long run "
                f"{self._limits.min_bytes_per_second:g} a second",
                {"Connection": "close"},
            )
            raise self._refusal from None
        if message["type"] == "http.request":
            self.num_received += len(message.get("body", b""))
            self._body_complete = not message.get("more_body", False)
            if self.num_received > self._max_body:
                self._refusal = self._too_large()
                raise self._refusal
        return message

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on; a refusal met inside the framework replaces it."""
        if self._answer_replaced:
            return
        if self._refusal is not None and self.status == 0:
            await self.answer_refusal(self._refusal)
            self._answer_replaced = True
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.num_sent += message.get("count", 0) or len(message.get("body", b""))
        await self._send(message)

    async def answer_refusal(self, refusal: RequestRefusedError) -> None:
        """Answer with the refusal's document, unless an answer has begun."""
        if self.status:
            return
        self.status = refusal.status
        body = json.dumps(refusal.document()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in refusal.headers.items()
        ]
        await self._send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        is_head = self._scope["method"] == "HEAD"
        self.num_sent = 0 if is_head else len(body)
        await self._send({"type": "http.response.body", "body": b"" if is_head else body})


def _route_class(path: str) -> str:
    if path in _FRAMEWORK_PATHS or path.startswith("/web/"):
        return "page"
    if not path.startswith("/api/"):
        return "object"
    if path.endswith("/lookup"):
        return "lookup"
    if path.startswith("/api/v1/uploads/"):
        return "upload"
    return "map" if "/maps/" in path else "api"


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
