"""Labels as they are made, one line a photo, so that what is done stays done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from depthcache.storage.durable_files import read_json_lines


class LabelJournal:
    """Appends labels of photos to a file; use as a context manager.

    A line that a killed process left half written is cut off at the next start.

    Args:
        path: file, made if absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def __enter__(self) -> LabelJournal:
        if self.path.is_file():
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                with self.path.open("r+b") as file:
                    file.truncate(len(whole))
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, index: int, objects: list[dict[str, Any]], *, has_depth: bool) -> None:
        """Keep the labels of a photo.

        Args:
            index: of the photo.
            objects: `{position, segmentation, area, score, mask_source}` each.
            has_depth: whether depth was used for it.
        """
        assert self._file is not None
        entry = {"photo": index, "has_depth": has_depth, "objects": objects}
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self._file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """What was kept, in the order of keeping."""
        return read_json_lines(self.path)
