"""The JSON endpoints, and how the parts of the service fit together."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Header, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from depthcache.errors import CacheUnreachableError, DepthCacheError
from depthcache.service.access import AccessPolicy, Token
from depthcache.service.catalogue import CATALOGUE_VERSION, CacheEntry, Catalogue, SealedSegment
from depthcache.service.depth_picture import npy_bytes, render_png
from depthcache.service.gate import Gate, RequestLimits
from depthcache.service.lifecycle import LifeCycle
from depthcache.service.metrics import EXPOSITION_TYPE, ServiceMetrics
from depthcache.service.objects import ObjectServer
from depthcache.service.refusals import RequestRefusedError, storage_unreachable
from depthcache.service.roots import ServedRoot
from depthcache.service.uploads import UploadStore

MAX_LOOKUP = 100_000
MAX_LISTED_MAPS = 200
STALE_UPLOAD_SECONDS = 24 * 3600.0
_HOUSEKEEPING_SECONDS = 60.0
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_FILES = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "sha256.js": "text/javascript; charset=utf-8",
}

log = logging.getLogger("depthcache.service")

Name = Annotated[str, PathParameter(max_length=200)]
Digest = Annotated[str, PathParameter(pattern="^[0-9a-f]{64}$", description="sha256 of the image")]


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What an operator chooses.

    Args:
        tokens: known tokens; without one that may write, nothing can be uploaded.
        anonymous_read: whether reading needs no token.
        limits: body sizes and rates.
        size_cap_bytes: most bytes of sealed segments, None = no cap.
    """

    tokens: list[Token] = field(default_factory=list)
    anonymous_read: bool = True
    limits: RequestLimits = field(default_factory=RequestLimits)
    size_cap_bytes: int | None = None


class LookupRequest(BaseModel):
    """Digests to look up."""

    digests: list[str] = Field(max_length=MAX_LOOKUP, description="sha256 of image files, 64 hex")


class UploadRequest(BaseModel):
    """The two small files of a segment's upload, as exact text."""

    fingerprint: str = Field(max_length=2**20, description="text of fingerprint.json")
    sealed: str = Field(description="text of the segment's sealed.json")


class _Service:
    def __init__(self, root: ServedRoot, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = ServiceMetrics()
        self.catalogue = Catalogue(root)
        self.life_cycle = LifeCycle(self.catalogue, self.metrics, settings.size_cap_bytes)
        self.uploads = UploadStore(self.catalogue, self.life_cycle, self.metrics)
        self.num_open_uploads = 0
        self.is_ready = False

    def cache(self, name: str) -> CacheEntry:
        self.catalogue.refresh()
        entry = self.catalogue.cache(name)
        if entry is None:
            raise RequestRefusedError(404, "no-such-cache", "no cache of this name is served")
        return entry

    def segment(self, cache: str, segment_id: str) -> SealedSegment:
        self.cache(cache)
        segment = self.catalogue.segment(cache, segment_id)
        if segment is None:
            raise RequestRefusedError(404, "no-such-segment", "no sealed segment of this name")
        return segment

    def map_of_image(self, cache: str, digest: str) -> npt.NDArray[np.float32]:
        self.cache(cache)
        location = self.catalogue.locate(cache, [digest])[0]
        segment = self.catalogue.segment(cache, location.segment_id) if location else None
        if location is None or segment is None:
            raise RequestRefusedError(404, "no-such-map", "the cache has no map of this image")
        self.life_cycle.touch(cache, location.segment_id)
        try:
            reader = self.catalogue.reader(segment)
            return reader.read(reader.bucket_names.index(location.bucket), location.row)
        except CacheUnreachableError:
            raise
        except DepthCacheError as error:
            self.metrics.corrupt_reads.inc()
            log.error("corrupt map %s in %s: %s", digest, cache, error)
            raise RequestRefusedError(
                500,
                "map-damaged",
                f"the stored map fails its checksum ({error}); run `pipeline cache verify`",
            ) from error

    def count_storage(self) -> None:
        segments = self.catalogue.all_segments()
        self.metrics.stored_segments.set(len(segments))
        self.metrics.stored_bytes.set(sum(segment.num_bytes for segment in segments))

    def tidy(self) -> None:
        self.catalogue.refresh(force=True)
        self.life_cycle.make_room(0)
        self.uploads.remove_leftovers(STALE_UPLOAD_SECONDS)
        self.life_cycle.save_last_used()


def build_service(root: ServedRoot, settings: ServiceSettings) -> Gate:
    """Put the service together.

    Args:
        root: the cache root.
        settings: the operator's choices.

    Returns:
        The ASGI application.
    """
    service = _Service(root, settings)
    policy = AccessPolicy(settings.tokens, anonymous_read=settings.anonymous_read)
    return Gate(
        api=_build_api(service),
        objects=ObjectServer(service.catalogue, service.life_cycle.touch),
        policy=policy,
        limits=settings.limits,
        metrics=service.metrics,
    )


def _build_api(service: _Service) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.tidy)
        service.is_ready = True
        housekeeping = asyncio.create_task(_keep_house(service))
        try:
            yield
        finally:
            service.is_ready = False
            housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping
            await asyncio.to_thread(service.life_cycle.save_last_used)

    api = FastAPI(
        title="Depth cache",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both documentation pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )

    @api.exception_handler(RequestRefusedError)
    async def refuse(_: Request, error: RequestRefusedError) -> JSONResponse:
        return JSONResponse(error.document(), status_code=error.status, headers=error.headers)

    @api.exception_handler(CacheUnreachableError)
    async def tell_unreachable(_: Request, error: CacheUnreachableError) -> JSONResponse:
        return await refuse(_, storage_unreachable(error))

    _add_reading(api, service)
    _add_uploading(api, service)
    _add_life_cycle(api, service)
    _add_operation(api, service)
    return api


async def _keep_house(service: _Service) -> None:
    while True:
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)
        try:
            await asyncio.to_thread(service.tidy)
        except (OSError, DepthCacheError):
            log.exception("housekeeping failed; it is tried again in a minute")


def _add_reading(api: FastAPI, service: _Service) -> None:
    @api.get("/catalogue.json")
    def catalogue() -> Response:
        """The folders and sealed segments; a static file of this name serves readers as well."""
        service.catalogue.refresh()
        document = {
            "format_version": CATALOGUE_VERSION,
            "caches": [
                {"name": entry.name, "segments": sorted(entry.segments)}
                for entry in service.catalogue.caches.values()
            ],
        }
        return _with_digest(json.dumps(document).encode(), "application/json")

    @api.get("/api/v1/caches")
    def caches() -> dict[str, Any]:
        """Every cache with its fingerprint, counts and sizes."""
        service.catalogue.refresh()
        return {"caches": [_describe(service, e) for e in service.catalogue.caches.values()]}

    @api.get("/api/v1/caches/{cache}")
    def cache(cache: Name) -> dict[str, Any]:
        """One cache with its segments and their provenance."""
        entry = service.cache(cache)
        segments = sorted(entry.segments.values(), key=lambda s: -s.sealed_time)
        return _describe(service, entry) | {
            "fingerprint": entry.fingerprint,
            "segments": [_describe_segment(service, segment) for segment in segments],
        }

    @api.post("/api/v1/caches/{cache}/lookup")
    def lookup(cache: Name, request: LookupRequest) -> Response:
        """Present or missing, and where, for up to 100,000 images.

        `locations[i]` is null, or [index into segments, index into buckets, row].
        """
        _check_digests(request.digests)
        service.cache(cache)
        document = service.catalogue.lookup_document(cache, request.digests)
        num_present = document["num_present"]
        service.metrics.looked_up.labels("present").inc(num_present)
        service.metrics.looked_up.labels("missing").inc(len(request.digests) - num_present)
        body = json.dumps(document, separators=(",", ":"))
        return Response(body, media_type="application/json")

    @api.get("/api/v1/caches/{cache}/maps")
    def maps(
        cache: Name,
        prefix: Annotated[str, Query(pattern="^[0-9a-f]{0,64}$")] = "",
        offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED_MAPS)] = 24,
    ) -> dict[str, Any]:
        """Keys of maps, those of the newest segment first; `prefix` is the beginning of a key."""
        service.cache(cache)
        num_maps, listed = service.catalogue.list_maps(cache, prefix, offset, limit)
        return {"num_maps": num_maps, "maps": listed}

    @api.get("/api/v1/caches/{cache}/maps/{digest}.npy")
    def map_npy(cache: Name, digest: Digest) -> Response:
        """The map as float32 .npy: relative inverse depth, larger = nearer."""
        body = npy_bytes(service.map_of_image(cache, digest))
        return _with_digest(body, "application/octet-stream")

    @api.get("/api/v1/caches/{cache}/maps/{digest}.png")
    def map_png(
        cache: Name, digest: Digest, side: Annotated[int | None, Query(ge=16, le=4096)] = None
    ) -> Response:
        """A picture to look at: dark = farther, bright = nearer; `side` bounds its longer side."""
        body = render_png(service.map_of_image(cache, digest), side)
        answer = _with_digest(body, "image/png")
        answer.headers["Cache-Control"] = "private, max-age=3600"  # a map never changes
        return answer


def _with_digest(body: bytes, media_type: str) -> Response:
    """An answer whose receiver can tell whether a bit changed on the way (RFC 9530)."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    return Response(body, media_type=media_type, headers={"Repr-Digest": f"sha-256=:{digest}:"})


def _add_uploading(api: FastAPI, service: _Service) -> None:
    @api.post("/api/v1/caches/{cache}/segments/{segment}/upload")
    def begin_upload(cache: Name, segment: Name, request: UploadRequest) -> dict[str, Any]:
        """Begin an upload, or find the one begun before; tells what is still to be sent."""
        try:
            fingerprint, seal = request.fingerprint.encode(), request.sealed.encode()
        except UnicodeEncodeError as error:
            raise RequestRefusedError(422, "invalid-upload", "the text is not UTF-8") from error
        upload, is_published = service.uploads.begin(cache, segment, fingerprint, seal)
        if is_published or upload is None:
            return {"state": "published", "upload": None, "missing": []}
        return {"state": "open", "upload": upload.upload_id, "missing": upload.missing()}

    @api.get("/api/v1/uploads/{upload}")
    def upload_state(upload: Name) -> dict[str, Any]:
        """What is still to be sent."""
        found = service.uploads.find(upload)
        return {
            "state": "open",
            "upload": found.upload_id,
            "cache": found.cache,
            "segment": found.segment_id,
            "missing": found.missing(),
        }

    @api.put("/api/v1/uploads/{upload}/objects/{name:path}")
    async def put_object(
        request: Request,
        upload: Name,
        name: str,
        upload_offset: Annotated[int, Header(ge=0, le=2**53)] = 0,
    ) -> dict[str, Any]:
        """Append the body to an object, from the header `Upload-Offset` on."""
        if service.num_open_uploads >= service.settings.limits.max_concurrent_uploads:
            raise RequestRefusedError(
                429,
                "too-many-uploads",
                f"{service.num_open_uploads} objects are being received; wait and repeat",
                {"Retry-After": "1"},
            )
        service.num_open_uploads += 1
        service.metrics.open_uploads.inc()
        try:
            return await service.uploads.receive(upload, name, upload_offset, _pieces(request))
        finally:
            service.num_open_uploads -= 1
            service.metrics.open_uploads.dec()

    @api.post("/api/v1/uploads/{upload}/commit")
    def commit_upload(upload: Name) -> dict[str, Any]:
        """Validate the whole segment and publish it at once."""
        return service.uploads.commit(upload)

    @api.delete("/api/v1/uploads/{upload}")
    def discard_upload(upload: Name) -> dict[str, Any]:
        """Give an upload up."""
        service.uploads.find(upload)
        service.uploads.discard(upload)
        return {"state": "removed"}


def _add_life_cycle(api: FastAPI, service: _Service) -> None:
    @api.put("/api/v1/caches/{cache}/segments/{segment}/pin")
    def pin(cache: Name, segment: Name) -> dict[str, Any]:
        """Keep a segment from eviction."""
        service.life_cycle.pin(service.segment(cache, segment), pinned=True)
        return {"pinned": True}

    @api.delete("/api/v1/caches/{cache}/segments/{segment}/pin")
    def unpin(cache: Name, segment: Name) -> dict[str, Any]:
        """Let a segment be evicted again."""
        service.life_cycle.pin(service.segment(cache, segment), pinned=False)
        return {"pinned": False}

    @api.delete("/api/v1/caches/{cache}/segments/{segment}")
    def delete_segment(cache: Name, segment: Name) -> dict[str, Any]:
        """Remove an unpinned segment."""
        service.life_cycle.delete(service.segment(cache, segment))
        return {"state": "removed"}

    @api.post("/api/v1/gc")
    def collect_garbage(
        max_age_seconds: Annotated[float, Query(ge=0)] = STALE_UPLOAD_SECONDS,
    ) -> dict[str, Any]:
        """Remove staging leftovers of an age, and come back under the size cap."""
        service.catalogue.refresh(force=True)
        return {
            "removed_leftovers": service.uploads.remove_leftovers(max_age_seconds),
            "evicted_segments": service.life_cycle.make_room(0),
        }


def _add_operation(api: FastAPI, service: _Service) -> None:
    @api.get("/healthz")
    async def is_alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @api.get("/readyz")
    def is_ready() -> dict[str, str]:
        """The root is readable and the service has looked at it."""
        if not service.is_ready or not service.catalogue.root.is_reachable():
            raise RequestRefusedError(503, "not-ready", "the cache root is not readable")
        return {"status": "ready"}

    @api.get("/metrics")
    def metrics() -> Response:
        """Counters in Prometheus' text format."""
        service.count_storage()
        return Response(service.metrics.exposition(), headers={"Content-Type": EXPOSITION_TYPE})

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html", "text/html; charset=utf-8")

    @api.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)

    @api.get("/web/{name}", include_in_schema=False)
    async def page_part(name: str) -> Response:
        if name not in _PAGE_FILES:
            raise RequestRefusedError(404, "not-found", "the page has no such part")
        return _page_file(name, _PAGE_FILES[name])


def _page_file(name: str, media_type: str) -> Response:
    headers = {
        "Content-Security-Policy": _PAGE_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(_read_page_file(name), media_type=media_type, headers=headers)


@cache
def _read_page_file(name: str) -> bytes:
    return (Path(__file__).parent / "web" / name).read_bytes()


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; one that breaks off simply ends, what came is kept for the resume."""
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _check_digests(digests: list[str]) -> None:
    """Refuse what is not an image key, without a Python loop over 100,000."""
    is_valid = not digests or (
        set(map(len, digests)) == {64} and set("".join(digests)) <= set("0123456789abcdef")
    )
    if not is_valid:
        raise RequestRefusedError(
            422,
            "invalid-digest",
            "every digest must be 64 hexadecimal digits in lower case (sha256 of the file)",
        )


def _describe(service: _Service, entry: CacheEntry) -> dict[str, Any]:
    segments = entry.segments.values()
    fingerprint = entry.fingerprint
    state: Literal["ok", "damaged"] = "damaged" if entry.damaged_segments else "ok"
    return {
        "name": entry.name,
        "state": state,
        "damaged_segments": list(entry.damaged_segments),
        "model": fingerprint.get("model"),
        "fingerprint": fingerprint,
        "licences": _told(fingerprint, segments, "licence", "license", "model_licence"),
        "datasets": _told(fingerprint, segments, "dataset"),
        "num_segments": len(entry.segments),
        "num_maps": service.catalogue.num_maps(entry.name),
        "num_failed": service.catalogue.num_failed(entry.name),
        "num_bytes": sum(segment.num_bytes for segment in segments),
    }


def _told(fingerprint: dict[str, Any], segments: Iterable[SealedSegment], *keys: str) -> list[str]:
    """What the fingerprint or a segment's provenance says under one of these keys."""
    sources = [fingerprint, *(s.seal.get("provenance") for s in segments)]
    return sorted(
        {
            str(source[key])
            for source in sources
            if isinstance(source, dict)
            for key in keys
            if source.get(key)
        }
    )


def _describe_segment(service: _Service, segment: SealedSegment) -> dict[str, Any]:
    return {
        "id": segment.segment_id,
        "sealed": segment.sealed_time,
        "num_objects": len(segment.objects),
        "num_bytes": segment.num_bytes,
        "last_used": service.life_cycle.last_used(segment),
        "pinned": service.life_cycle.is_pinned(segment),
        "seal": {key: value for key, value in segment.seal.items() if key != "objects"},
    }
