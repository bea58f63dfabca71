"""Named bytes on a disk, in memory, behind HTTP or in an S3 bucket: get, get a range, list."""

from __future__ import annotations

import json
import os
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

from depthcache.errors import CacheCorruptError, CacheNotFoundError, CacheUnreachableError
from depthcache.storage.folder_lock import hold_folder
from depthcache.storage.http_retries import has_its_digest, is_passing, retry_waits, wait_asked_for

TOKEN_VARIABLE = "PIPELINE_CACHE_TOKEN"  # noqa: S105  (a name, not a secret)
_HTTP_ATTEMPTS = 5


class ObjectStore(Protocol):
    """What reading and writing segments needs of a store."""

    def get(self, path: str) -> bytes:
        """All bytes. Raises CacheNotFoundError, CacheUnreachableError."""

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Part of the bytes; raises CacheCorruptError when there are fewer."""

    def put(self, path: str, data: bytes) -> None:
        """Write whole, atomically and durably."""

    def list_folders(self, path: str) -> list[str]:
        """Names of the folders directly under `path`, sorted."""

    def list_objects(self, path: str) -> dict[str, int]:
        """Relative paths and sizes of everything under `path`."""


def open_store(url: str | Path, *, token: str | None = None) -> ObjectStore:
    """Choose the store by the address: a path, http(s)://, s3:// or gs://.

    Args:
        url: the address.
        token: for a service that asks for one; None takes it from PIPELINE_CACHE_TOKEN.
    """
    text = str(url)
    if text.startswith(("http://", "https://")):
        return HTTPStore(text, token or os.environ.get(TOKEN_VARIABLE))
    if text.startswith(("s3://", "gs://")):
        return BucketStore(text)
    return LocalStore(text.removeprefix("file://"))


class LocalStore:
    """Files under a folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def get(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheNotFoundError(f"{self.root / path} does not exist") from error

    def get_range(self, path: str, start: int, length: int) -> bytes:
        try:
            descriptor = os.open(f"{self.root}/{path}", os.O_RDONLY)
        except FileNotFoundError as error:
            raise CacheNotFoundError(f"{self.root / path} does not exist") from error
        try:
            return _checked_length(os.pread(descriptor, length, start), length, path)
        finally:
            os.close(descriptor)

    def put(self, path: str, data: bytes) -> None:
        target = self.root / path
        new_folders = _make_folders(target.parent)
        temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:12]}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = f"{error.strerror}; once there is room, the same command resumes"
            raise OSError(error.errno, reason, str(target)) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
        for folder in new_folders:
            _sync_folder(folder.parent)

    def list_folders(self, path: str) -> list[str]:
        try:
            return sorted(e.name for e in os.scandir(self.root / path) if e.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def list_objects(self, path: str) -> dict[str, int]:
        base = self.root / path
        return {
            file.relative_to(base).as_posix(): file.stat().st_size
            for file in sorted(base.rglob("*"))
            if file.is_file()
        }

    @contextmanager
    def exclusive(self, path: str) -> Iterator[None]:
        """Keep other processes that ask for the same out of a folder; waits for its holder."""
        folder = self.root / path
        with ExitStack() as held:
            is_held = False
            while not is_held:
                for new in _make_folders(folder):
                    _sync_folder(new.parent)
                # The run that was waited for may have left nothing, not even the folder.
                with suppress(FileNotFoundError):
                    held.enter_context(hold_folder(folder))
                    is_held = True
            try:
                yield
            finally:
                with suppress(OSError):
                    folder.rmdir()  # when nothing was written


class MemoryStore:
    """A dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, path: str) -> bytes:
        if path not in self.objects:
            raise CacheNotFoundError(f"{path} does not exist")
        return self.objects[path]

    def get_range(self, path: str, start: int, length: int) -> bytes:
        return _checked_length(self.get(path)[start : start + length], length, path)

    def put(self, path: str, data: bytes) -> None:
        self.objects[path] = data

    def list_folders(self, path: str) -> list[str]:
        prefix = f"{path.rstrip('/')}/" if path else ""
        rest = (name[len(prefix) :] for name in self.objects if name.startswith(prefix))
        return sorted({name.split("/")[0] for name in rest if "/" in name})

    def list_objects(self, path: str) -> dict[str, int]:
        prefix = f"{path.rstrip('/')}/" if path else ""
        return {
            name[len(prefix) :]: len(data)
            for name, data in sorted(self.objects.items())
            if name.startswith(prefix)
        }


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

    def _get(self, path: str, headers: dict[str, str], allowed: tuple[int, ...]) -> bytes:
        import httpx

        if self._client is None or self._process != os.getpid():
            own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            timeout = httpx.Timeout(30.0, connect=5.0)
            self._client = httpx.Client(timeout=timeout, headers=own, follow_redirects=True)
            weakref.finalize(self, self._client.close)
            self._process = os.getpid()
        what = f"{self.url}/{path}"
        for wait_seconds in retry_waits(_HTTP_ATTEMPTS):
            failure: CacheUnreachableError | CacheCorruptError
            retry_after = None
            try:
                response = self._client.get(what, headers=headers)
            except httpx.HTTPError as error:
                failure = CacheUnreachableError(f"{what}: {error or type(error).__name__}")
            else:
                status = response.status_code
                if status == 404:
                    raise CacheNotFoundError(f"{what} does not exist")
                if status in allowed and has_its_digest(response):
                    return bytes(response.content)
                if status in allowed:
                    failure = CacheCorruptError(f"{what} arrived with another sha256 than its own")
                elif is_passing(status):
                    retry_after = response.headers.get("Retry-After")
                    failure = CacheUnreachableError(f"{what} answered {status}")
                elif _is_damaged(response):
                    raise CacheCorruptError(f"{what}: {response.json()['detail']}")
                else:
                    raise CacheUnreachableError(f"{what} answered {status}")
            if wait_seconds is None:
                raise failure
            time.sleep(wait_asked_for(retry_after, wait_seconds))
        raise AssertionError("the last wait is None")

    def get(self, path: str) -> bytes:
        return self._get(path, {}, (200,))

    def get_range(self, path: str, start: int, length: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        return _checked_length(self._get(path, headers, (206,)), length, path)

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


class BucketStore:
    """An S3 or Google bucket through obstore (extra `s3`); settings come from the environment.

    Processes that read one must be spawned: obstore answers from threads that every store of a
    process shares, and in a child forked after their start a request would wait for ever.
    """

    _process_of_threads: ClassVar[int | None] = None

    def __init__(self, url: str) -> None:
        self.url = url
        self._store: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_store": None}

    def _opened(self) -> Any:
        if BucketStore._process_of_threads is None:
            BucketStore._process_of_threads = os.getpid()
        if BucketStore._process_of_threads != os.getpid():
            raise CacheUnreachableError(
                f"{self.url}: this process was forked from one that had used a bucket, and "
                "obstore's threads do not survive that; start workers with spawn, for example "
                "DataLoader(..., multiprocessing_context='spawn')"
            )
        if self._store is None:
            import obstore.store

            options: dict[str, Any] = {}
            if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
                options["client_options"] = {"allow_http": True}
            self._store = obstore.store.from_url(self.url, **options)
        return self._store

    def get(self, path: str) -> bytes:
        import obstore

        try:
            return bytes(obstore.get(self._opened(), path).bytes())
        except FileNotFoundError as error:
            raise CacheNotFoundError(f"{self.url}/{path} does not exist") from error
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error

    def get_range(self, path: str, start: int, length: int) -> bytes:
        import obstore

        try:
            data = bytes(obstore.get_range(self._opened(), path, start=start, length=length))
        except FileNotFoundError as error:
            raise CacheNotFoundError(f"{self.url}/{path} does not exist") from error
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error
        return _checked_length(data, length, path)

    def put(self, path: str, data: bytes) -> None:
        import obstore

        try:
            obstore.put(self._opened(), path, data)
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one of this name; tells whether it was written."""
        import obstore

        try:
            obstore.put(self._opened(), path, data, mode="create", use_multipart=False)
        except obstore.exceptions.AlreadyExistsError:
            return False
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error
        return True

    def delete(self, path: str) -> None:
        """Remove an object; one that is gone already is no error."""
        import obstore

        try:
            obstore.delete(self._opened(), path)
        except FileNotFoundError:
            return
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error

    def list_folders(self, path: str) -> list[str]:
        import obstore

        try:
            answer = obstore.list_with_delimiter(self._opened(), path or None)
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error
        return sorted(
            str(prefix).rstrip("/").split("/")[-1] for prefix in answer["common_prefixes"]
        )

    def list_objects(self, path: str) -> dict[str, int]:
        return {name: int(entry["size"]) for name, entry in self._list(path).items()}

    def list_times(self, path: str) -> dict[str, float]:
        """Relative paths of everything under `path`, and when it was written (Unix time)."""
        return {
            n: float(entry["last_modified"].timestamp()) for n, entry in self._list(path).items()
        }

    def _list(self, path: str) -> dict[str, Any]:
        import obstore

        prefix = f"{path.rstrip('/')}/" if path else ""
        try:
            return {
                str(entry["path"])[len(prefix) :]: entry
                for batch in obstore.list(self._opened(), path or None)
                for entry in batch
            }
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error


def _is_damaged(response: Any) -> bool:
    """Whether a service says that its disk no longer holds what the manifest says."""
    try:
        return response.json()["error"] in ("object-damaged", "map-damaged")
    except (ValueError, KeyError, TypeError):
        return False


def _checked_length(data: bytes, length: int, path: str) -> bytes:
    if len(data) != length:
        raise CacheCorruptError(f"{path}: {len(data)} bytes where {length} were expected")
    return data


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns the new ones, which their parents must record."""
    new = []
    existing = folder
    while not existing.exists() and existing != existing.parent:
        new.append(existing)
        existing = existing.parent
    folder.mkdir(parents=True, exist_ok=True)
    return new


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
