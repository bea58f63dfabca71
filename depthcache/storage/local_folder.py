"""A store of files under a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from depthcache.errors import CacheNotFoundError
from depthcache.format.byte_spans import check_length
from depthcache.storage.durable_files import make_folder_durably, write_durably
from depthcache.storage.folder_lock import hold_folder

_MAY_NOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)


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
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheNotFoundError(f"{self.root / path} does not exist") from error
        try:
            return check_length(os.pread(descriptor, length, start), length, path)
        finally:
            os.close(descriptor)

    def put(self, path: str, data: bytes) -> None:
        target = self.root / path
        try:
            make_folder_durably(target.parent)
            write_durably(target, data)
        except OSError as error:
            if error.errno in _MAY_NOT_WRITE:
                folder = next(folder for folder in target.parents if folder.is_dir())
                raise OSError(error.errno, error.strerror, str(folder)) from error
            reason = f"{error.strerror}; once there is room, the same command resumes"
            raise OSError(error.errno, reason, str(target)) from error

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
                make_folder_durably(folder)
                # The run that was waited for may have left nothing, not even the folder.
                with suppress(FileNotFoundError):
                    held.enter_context(hold_folder(folder))
                    is_held = True
            try:
                yield
            finally:
                with suppress(OSError):
                    folder.rmdir()  # when nothing was written
