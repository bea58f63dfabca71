"""Copy sealed segments between a local root and a depth-cache service: push and pull.

Both resume: a push asks the service which bytes it still lacks, a pull goes on from the bytes that
lie in `ROOT/.staging/`. Both end with checksums: nothing becomes visible on either side before
every object equals the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from depthcache.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheNotFoundError,
    CacheUnreachableError,
    DepthCacheError,
)
from depthcache.format import segment_format as fmt
from depthcache.format.seal import is_segment_id, parse_seal
from depthcache.segments.fingerprint import is_cache_name, parse_fingerprint
from depthcache.storage.durable_files import sync_folder, sync_tree, write_durably
from depthcache.storage.http_retries import (
    check_digest,
    check_status,
    is_damage_report,
    try_several_times,
)

MAX_ATTEMPTS = 8
# Of a service that has not answered yet: its address may be mistyped.
_ATTEMPTS_TO_REACH = 3
_PIECE_BYTES = 8 * 2**20
_SMALLEST_PIECE_BYTES = 2**16
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)

Progress = Callable[[str, int], None]
_Checked = TypeVar("_Checked")


@dataclass(frozen=True, kw_only=True)
class TransferSummary:
    """What a push or pull did.

    Attributes:
        num_segments: segments copied by this call.
        num_present: segments that the other side had already.
        num_objects: objects sent or received.
        num_bytes: bytes of those objects that crossed the network.
        seconds: wall-clock time.
    """

    num_segments: int
    num_present: int
    num_objects: int
    num_bytes: int
    seconds: float


def push_cache(
    root: str | Path,
    url: str,
    token: str | None,
    *,
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> TransferSummary:
    """Send every sealed segment that a service lacks.

    Args:
        root: a local cache root, or one fingerprint folder.
        url: the service.
        token: a token with the scope `write`.
        fingerprint: send only the folder of this name or prefix.
        progress: called with ("cache/segment/object", bytes sent) for each piece.

    Raises:
        CacheNotFoundError: there is no cache in the root, or none of this fingerprint.
        CacheUnreachableError: the service does not answer, after MAX_ATTEMPTS with growing waits,
            or three when nobody takes the first connection.
        CacheMismatchError: it holds another content under the same name.
        CacheCorruptError: it found an object or segment not to be what its manifest says.
        DepthCacheError: it refused for another reason: token, size cap, full disk.
    """
    started = time.monotonic()
    tally = _Tally(progress)
    with _Connection(url, token) as service:
        for cache_folder in _local_caches(Path(root), fingerprint):
            for segment in _local_segments(cache_folder):
                _push_segment(service, cache_folder, segment, tally)
    return tally.summary(started)


def pull_cache(
    url: str,
    root: str | Path,
    token: str | None,
    *,
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> TransferSummary:
    """Fetch every sealed segment that a local root lacks.

    Args:
        url: the service, or a static HTTP server with a `catalogue.json`.
        root: the local cache root; made when absent.
        token: a token with the scope `read`; None where reading is anonymous.
        fingerprint: fetch only the folder of this name or prefix.
        progress: called with ("cache/segment/object", bytes received) for each piece.

    Raises:
        CacheNotFoundError: the service has no cache, or none of this fingerprint.
        CacheUnreachableError: the service does not answer, after MAX_ATTEMPTS with growing waits,
            or three when nobody takes the first connection.
        CacheMismatchError: the root holds another content under the same name.
        CacheCorruptError: what arrives is not what its manifest says, twice in a row.
        DepthCacheError: it refused for another reason, for example the token.
    """
    started = time.monotonic()
    tally = _Tally(progress)
    destination = Path(root)
    destination.mkdir(parents=True, exist_ok=True)
    with _Connection(url, token) as service:
        for cache, segment_ids in _remote_caches(service, fingerprint):
            text = service.get(f"{cache}/{fmt.FINGERPRINT}")
            parse_fingerprint(text, cache)
            for segment_id in segment_ids:
                _pull_segment(
                    service, destination, cache, segment_id, fingerprint=text, tally=tally
                )
    return tally.summary(started)


def _push_segment(service: _Connection, cache_folder: Path, segment: Path, tally: _Tally) -> None:
    name = f"{cache_folder.name}/{segment.name}"
    begin = {
        "fingerprint": (cache_folder / fmt.FINGERPRINT).read_text(encoding="utf-8"),
        "sealed": (segment / fmt.SEALED).read_text(encoding="utf-8"),
    }
    begin_path = f"api/v1/caches/{quote(cache_folder.name)}/segments/{quote(segment.name)}/upload"
    for _ in range(MAX_ATTEMPTS):
        answer = service.request("POST", begin_path, json=begin).json()
        if answer["state"] == "published":
            tally.num_present += 1
            return
        try:
            for missing in answer["missing"]:
                _push_object(service, answer["upload"], segment, missing, name=name, tally=tally)
            service.request("POST", f"api/v1/uploads/{answer['upload']}/commit")
        except _UploadGoneError:
            # Published by the attempt whose answer was lost, or removed: begin tells which.
            continue
        tally.num_segments += 1
        return
    raise CacheUnreachableError(f"the upload of {name} was removed {MAX_ATTEMPTS} times meanwhile")


def _push_object(
    service: _Connection,
    upload: str,
    segment: Path,
    missing: Mapping[str, Any],
    *,
    name: str,
    tally: _Tally,
) -> None:
    path, size, offset = missing["path"], missing["size"], missing["offset"]
    url_path = f"api/v1/uploads/{upload}/objects/{quote(path)}"
    num_wrong = 0
    with (segment / path).open("rb") as file:
        is_complete = False
        while not is_complete:
            file.seek(offset)
            piece = file.read(service.piece_bytes)
            if not piece and offset < size:
                raise CacheCorruptError(f"{segment / path} is shorter than its manifest says")
            try:
                answer = service.request(
                    "PUT", url_path, content=piece, headers={"Upload-Offset": str(offset)}
                ).json()
            except _WrongOffsetError as error:
                offset = error.offset
                continue
            except _PieceTooLargeError:
                service.piece_bytes //= 2
                continue
            except _WrongChecksumError as error:
                num_wrong += 1
                if num_wrong > 1:
                    raise CacheCorruptError(f"{segment / path}: {error}") from error
                offset = 0
                continue
            tally.add(f"{name}/{path}", len(piece))
            offset, is_complete = answer["offset"], answer["complete"]
    tally.num_objects += 1


def _pull_segment(
    service: _Connection,
    destination: Path,
    cache: str,
    segment_id: str,
    *,
    fingerprint: bytes,
    tally: _Tally,
) -> None:
    base = fmt.segment_prefix(cache, segment_id)
    seal_text = service.get(f"{base}/{fmt.SEALED}")
    seal = parse_seal(seal_text, f"{base}/{fmt.SEALED}")
    target = destination / base
    if _is_present(target, seal_text):
        tally.num_present += 1
        return
    _place_fingerprint(destination / cache, fingerprint)
    content = b"\0".join([base.encode(), seal_text])
    staging = destination / fmt.STAGING / f"pull-{hashlib.sha256(content).hexdigest()[:32]}"
    for path, entry in seal["objects"].items():
        _pull_object(service, f"{base}/{path}", staging / path, entry, tally)
    write_durably(staging / fmt.SEALED, seal_text)
    sync_tree(staging)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging.rename(target)
    except OSError:
        if not _is_present(target, seal_text):
            raise
        shutil.rmtree(staging, ignore_errors=True)  # another pull was faster
    sync_folder(target.parent)
    tally.num_segments += 1


def _pull_object(
    service: _Connection, url_path: str, file: Path, entry: Mapping[str, Any], tally: _Tally
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        service.download(url_path, file, entry["size"], tally)
        with file.open("rb") as received:
            digest = hashlib.file_digest(received, "sha256").hexdigest()
            os.fsync(received.fileno())
        if digest == entry["sha256"]:
            tally.num_objects += 1
            return
        file.unlink()
    raise CacheCorruptError(
        f"{url_path} arrived twice with sha256 {digest}, its manifest says {entry['sha256']}; "
        "run `pipeline cache verify` where the service's root is"
    )


def _is_present(segment: Path, seal_text: bytes) -> bool:
    try:
        present = (segment / fmt.SEALED).read_bytes()
    except FileNotFoundError:
        if segment.exists():
            raise CacheMismatchError(
                f"{segment} exists unsealed: a run is writing it, or was killed; finish that run "
                "or remove the folder"
            ) from None
        return False
    if present != seal_text:
        raise CacheMismatchError(
            f"{segment} is sealed with another content than the service's; move it away first"
        )
    return True


def _place_fingerprint(cache_folder: Path, text: bytes) -> None:
    path = cache_folder / fmt.FINGERPRINT
    if path.is_file():
        if path.read_bytes() != text:
            raise CacheMismatchError(f"{path} differs from the service's fingerprint of that name")
        return
    cache_folder.mkdir(parents=True, exist_ok=True)
    write_durably(path, text)


def _local_caches(root: Path, fingerprint: str | None) -> list[Path]:
    if (root / fmt.FINGERPRINT).is_file():
        folders = [root]
    else:
        folders = sorted(path.parent for path in root.glob(f"*/{fmt.FINGERPRINT}"))
    folders = [
        folder
        for folder in folders
        if is_cache_name(folder.name) and folder.name.startswith(fingerprint or "")
    ]
    if not folders:
        wanted = f" of fingerprint {fingerprint!r}" if fingerprint else ""
        raise CacheNotFoundError(f"{root} holds no cache{wanted}")
    return folders


def _local_segments(cache_folder: Path) -> Iterator[Path]:
    for seal in sorted(cache_folder.glob(f"{fmt.SEGMENTS}/*/{fmt.SEALED}")):
        yield seal.parent


def _remote_caches(service: _Connection, fingerprint: str | None) -> list[tuple[str, list[str]]]:
    try:
        document = json.loads(service.get("catalogue.json"))
        if document["format_version"] != 1:
            raise ValueError(f"catalogue version {document['format_version']}, expected 1")
        caches = [(str(c["name"]), [str(s) for s in c["segments"]]) for c in document["caches"]]
        for name, segments in caches:
            # Names become folders here, so a lying server must not choose them freely.
            if not is_cache_name(name) or not all(is_segment_id(s) for s in segments):
                raise ValueError(f"the catalogue holds a name that is not of the format: {name!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise CacheCorruptError(f"catalogue.json is not of the format: {error}") from error
    caches = [entry for entry in caches if entry[0].startswith(fingerprint or "")]
    if not caches:
        wanted = f" of fingerprint {fingerprint!r}" if fingerprint else ""
        raise CacheNotFoundError(f"{service.url} serves no cache{wanted}")
    return caches


class _Tally:
    def __init__(self, progress: Progress | None) -> None:
        self.num_segments = self.num_present = self.num_objects = self.num_bytes = 0
        self._progress = progress

    def add(self, name: str, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self._progress is not None:
            self._progress(name, num_bytes)

    def summary(self, started: float) -> TransferSummary:
        return TransferSummary(
            num_segments=self.num_segments,
            num_present=self.num_present,
            num_objects=self.num_objects,
            num_bytes=self.num_bytes,
            seconds=time.monotonic() - started,
        )


class _WrongOffsetError(Exception):
    def __init__(self, offset: int) -> None:
        super().__init__(f"the service goes on from byte {offset}")
        self.offset = offset


class _WrongChecksumError(Exception):
    pass


class _PieceTooLargeError(Exception):
    pass


class _UploadGoneError(Exception):
    pass


class _Connection:
    """HTTP with retries, and answers translated into this package's errors."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self.piece_bytes = _PIECE_BYTES
        self._has_answered = False
        headers = {"Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str) -> bytes:
        return self.request("GET", quote(path)).content

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request until it is answered for good."""

        def attempt() -> httpx.Response:
            response = self._client.request(method, f"{self.url}/{path}", **arguments)
            self._has_answered = True
            check_status(response)
            check_digest(response)
            _raise_for_refusal(response)
            return response

        reaching = None if self._has_answered else _ATTEMPTS_TO_REACH
        return try_several_times(attempt, self.url, MAX_ATTEMPTS, num_attempts_to_connect=reaching)

    def download(self, path: str, file: Path, size: int, tally: _Tally) -> None:
        """Fetch an object into a file, going on from the bytes that it holds."""

        def attempt() -> None:
            offset = file.stat().st_size if file.exists() else 0
            if offset > size:
                file.unlink()
                offset = 0
            if offset == size and (size or file.exists()):
                return
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            url = f"{self.url}/{quote(path)}"
            with self._client.stream("GET", url, headers=headers) as response:
                check_status(response)
                if response.is_error:
                    response.read()
                _raise_for_refusal(response)
                self._save(response, file, offset=offset, size=size, path=path, tally=tally)

        try_several_times(attempt, self.url, MAX_ATTEMPTS)

    def _save(
        self,
        response: httpx.Response,
        file: Path,
        *,
        offset: int,
        size: int,
        path: str,
        tally: _Tally,
    ) -> None:
        is_resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        received = offset if is_resumed else 0
        with file.open("ab" if is_resumed else "wb") as output:
            for piece in response.iter_bytes():
                received += len(piece)
                if received > size:
                    raise CacheCorruptError(f"{path} is longer than its manifest says")
                output.write(piece)
                tally.add(path, len(piece))
        if received != size:
            raise CacheCorruptError(f"{path} has {received} bytes, its manifest says {size}")


def _raise_for_refusal(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        document = response.json()
        code, detail = str(document.get("error")), str(document.get("detail"))
    except (ValueError, AttributeError):
        code, detail = "", response.text[:200]
    if code == "wrong-offset":
        raise _WrongOffsetError(int(response.headers["Upload-Offset"]))
    if code == "wrong-checksum":
        raise _WrongChecksumError(detail)
    if code == "body-too-large" and len(response.request.content) > _SMALLEST_PIECE_BYTES:
        raise _PieceTooLargeError
    if code in ("no-such-upload", "incomplete"):
        raise _UploadGoneError
    message = f"{response.request.method} {response.request.url.path}: {response.status_code} "
    message += detail
    match response.status_code:
        case 404:
            raise CacheNotFoundError(message)
        case 409:
            raise CacheMismatchError(message)
        case 422:
            raise CacheCorruptError(message)
        case _ if is_damage_report(response):
            raise CacheCorruptError(message)
        case _:
            raise DepthCacheError(message)
