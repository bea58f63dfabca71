"""Where a cache's objects are: a folder, an HTTP server, S3 and its kin, or memory.

A store knows bytes under relative paths ("a/b/c"), nothing about depth. `put` is atomic and, on a file
system, durable: file and folder are synchronised before it returns.
"""

from __future__ import annotations

import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from depthcache.errors import CacheCorruptError, CacheUnreachableError, DepthCacheError

_counter = itertools.count()


class ObjectStore(ABC):
    """Bytes under relative paths.

    Args:
        url: where it is, for messages.
    """

    url: str

    @abstractmethod
    def get(self, path: str) -> bytes | None:
        """All bytes of an object, None if there is none."""

    @abstractmethod
    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        """Bytes [start, start + length) of an object; a negative start counts from its end."""

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write an object whole, replacing an older one."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; none is not an error."""

    @abstractmethod
    def list_objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(path, size) of all objects under a folder, in no particular order."""

    @abstractmethod
    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly in a folder, sorted."""


class LocalStore(ObjectStore):
    """A folder of this machine's file system."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.url = str(self.root)

    def get(self, path: str) -> bytes | None:
        try:
            return self._path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        try:
            descriptor = os.open(self._path(path), os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if start < 0:
                start = max(os.fstat(descriptor).st_size + start, 0)
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def put(self, path: str, data: bytes) -> None:
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.{next(_counter)}.partial")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DepthCacheError(
                f"cannot write {target}: {error.strerror}; what was computed before is kept, "
                "free space or fix permissions and run the same command again"
            ) from error
        for folder in itertools.chain([target.parent], target.parent.parents):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if folder == self.root or self.root not in folder.parents:
                break

    def delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def list_objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        base = self._path(prefix)
        for folder, _, names in os.walk(base):
            for name in names:
                file = Path(folder) / name
                yield file.relative_to(self.root).as_posix(), file.stat().st_size

    def list_folders(self, prefix: str) -> list[str]:
        base = self._path(prefix)
        if not base.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(base) if entry.is_dir())

    def _path(self, path: str) -> Path:
        return self.root / _checked(path)


class MemoryStore(ObjectStore):
    """A dictionary; for tests and for encoding shards."""

    def __init__(self) -> None:
        self.url = "memory://"
        self.objects: dict[str, bytes] = {}

    def get(self, path: str) -> bytes | None:
        return self.objects.get(_checked(path))

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        data = self.get(path)
        if data is None:
            return None
        begin = max(len(data) + start, 0) if start < 0 else start
        return data[begin : begin + length]

    def put(self, path: str, data: bytes) -> None:
        self.objects[_checked(path)] = bytes(data)

    def delete(self, path: str) -> None:
        self.objects.pop(_checked(path), None)

    def list_objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        for path, data in list(self.objects.items()):
            if not prefix or path.startswith(f"{prefix}/"):
                yield path, len(data)

    def list_folders(self, prefix: str) -> list[str]:
        skip = len(PurePosixPath(prefix).parts) if prefix else 0
        parts = (PurePosixPath(path).parts for path, _ in self.list_objects(prefix))
        return sorted({part[skip] for part in parts if len(part) > skip + 1})


class HttpStore(ObjectStore):
    """A cache served over HTTP: plain GET with Range; `catalogue.json` names caches and segments."""

    def __init__(self, url: str, *, token: str | None = None, timeout_seconds: float = 30.0) -> None:
        import httpx

        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.HTTPTransport(retries=2)
        self._client = httpx.Client(headers=headers, timeout=timeout_seconds, transport=transport)
        self._catalogue: dict[str, list[str]] | None = None

    def get(self, path: str) -> bytes | None:
        return self._request(path, {})

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        span = f"bytes={start}" if start < 0 else f"bytes={start}-{start + length - 1}"
        return self._request(path, {"Range": span}, tail=(start, length))

    def put(self, path: str, data: bytes) -> None:
        raise DepthCacheError(
            f"{self.url} is read-only; use `pipeline cache push` to upload ({path}, {len(data)} bytes)"
        )

    def delete(self, path: str) -> None:
        raise DepthCacheError(f"{self.url} is read-only, {path} was not deleted")

    def list_objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        raise DepthCacheError(f"{self.url} cannot list the objects of {prefix!r}")

    def list_folders(self, prefix: str) -> list[str]:
        if self._catalogue is None:
            text = self.get("catalogue.json")
            if text is None:
                raise CacheUnreachableError(f"{self.url} has no catalogue.json: is it a depth cache?")
            try:
                caches: list[dict[str, Any]] = json.loads(text)["caches"]
                self._catalogue = {
                    str(cache["name"]): [str(name) for name in cache["segments"]]
                    for cache in caches
                }
            except (ValueError, KeyError, TypeError) as error:
                raise CacheCorruptError(f"{self.url}/catalogue.json is malformed: {error}") from error
        parts = PurePosixPath(prefix).parts
        if not parts:
            return sorted(self._catalogue)
        if len(parts) == 2 and parts[1] == "segments":
            return sorted(self._catalogue.get(parts[0], []))
        return []

    def _request(
        self, path: str, headers: dict[str, str], tail: tuple[int, int] | None = None
    ) -> bytes | None:
        import httpx

        try:
            response = self._client.get(f"{self.url}/{quote(_checked(path))}", headers=headers)
        except httpx.HTTPError as error:
            raise CacheUnreachableError(f"{self.url} does not answer: {error}") from error
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise CacheUnreachableError(
                f"{self.url} refused the request ({response.status_code}): a token that may read is needed"
            )
        if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise CacheUnreachableError(f"{self.url}/{path} answered {response.status_code}")
        data = response.content
        if tail is not None and response.status_code == httpx.codes.OK:
            start, length = tail
            start = max(len(data) + start, 0) if start < 0 else start
            data = data[start : start + length]
        return data


class CloudStore(ObjectStore):
    """S3, GCS or Azure through obstore; credentials and endpoint from the environment."""

    def __init__(self, url: str) -> None:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise DepthCacheError(
                f"{url} needs the extra 's3': pip install 'boxdepth[s3]'"
            ) from error
        self.url = url.rstrip("/")
        insecure = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        self._store: Any = from_url(
            self.url, client_options={"allow_http": True} if insecure else None
        )

    def get(self, path: str) -> bytes | None:
        try:
            return bytes(self._store.get(_checked(path)).bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CacheUnreachableError(f"cannot read {self.url}/{path}: {error}") from error

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        try:
            if start < 0:
                result = self._store.get(_checked(path), options={"range": {"suffix": -start}})
                return bytes(result.bytes())[:length]
            return bytes(self._store.get_range(_checked(path), start=start, length=length))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CacheUnreachableError(f"cannot read {self.url}/{path}: {error}") from error

    def put(self, path: str, data: bytes) -> None:
        try:
            self._store.put(_checked(path), data)
        except Exception as error:
            raise CacheUnreachableError(f"cannot write {self.url}/{path}: {error}") from error

    def delete(self, path: str) -> None:
        self._store.delete(_checked(path))

    def list_objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        for batch in self._store.list(f"{prefix}/" if prefix else None):
            for entry in batch:
                yield str(entry["path"]), int(entry["size"])

    def list_folders(self, prefix: str) -> list[str]:
        result = self._store.list_with_delimiter(f"{prefix}/" if prefix else None)
        return sorted(PurePosixPath(str(name)).name for name in result["common_prefixes"])


def open_store(url: str | Path, *, token: str | None = None) -> ObjectStore:
    """Open the store that a URL names.

    Args:
        url: a path, file://, http(s)://, s3://, gs:// or az://.
        token: bearer token for HTTP.
    """
    text = str(url)
    if text.startswith(("http://", "https://")):
        return HttpStore(text, token=token)
    if text.startswith(("s3://", "gs://", "az://")):
        return CloudStore(text)
    return LocalStore(text.removeprefix("file://"))


def _checked(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\x00" in path:
        raise ValueError(f"{path!r} is not a relative path inside the store")
    return path
