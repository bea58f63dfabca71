"""A store in an S3 or Google bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from depthcache.errors import CacheNotFoundError, CacheUnreachableError
from depthcache.format.byte_spans import check_length


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

    @contextmanager
    def _translated(self, path: str) -> Iterator[Any]:
        """Obstore's module; its errors leave the block as this package's."""
        import obstore

        try:
            yield obstore
        except FileNotFoundError as error:
            raise CacheNotFoundError(f"{self.url}/{path} does not exist") from error
        except obstore.exceptions.BaseError as error:
            raise CacheUnreachableError(f"{self.url}/{path}: {error}") from error

    def get(self, path: str) -> bytes:
        with self._translated(path) as obstore:
            return bytes(obstore.get(self._opened(), path).bytes())

    def get_range(self, path: str, start: int, length: int) -> bytes:
        with self._translated(path) as obstore:
            data = obstore.get_range(self._opened(), path, start=start, length=length)
            return check_length(bytes(data), length, path)

    def put(self, path: str, data: bytes) -> None:
        with self._translated(path) as obstore:
            obstore.put(self._opened(), path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one of this name; tells whether it was written."""
        with self._translated(path) as obstore:
            try:
                obstore.put(self._opened(), path, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        """Remove an object; one that is gone already is no error."""
        with suppress(CacheNotFoundError), self._translated(path) as obstore:
            obstore.delete(self._opened(), path)

    def list_folders(self, path: str) -> list[str]:
        with self._translated(path) as obstore:
            answer = obstore.list_with_delimiter(self._opened(), path or None)
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
        prefix = f"{path.rstrip('/')}/" if path else ""
        with self._translated(path) as obstore:
            return {
                str(entry["path"])[len(prefix) :]: entry
                for batch in obstore.list(self._opened(), path or None)
                for entry in batch
            }
