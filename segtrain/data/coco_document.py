"""A COCO file's bytes as JSON, in any encoding that JSON may have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segtrain.errors import DatasetError

COCO_LISTS = ("images", "annotations", "categories")


def load_coco_document(
    path: str | Path, *, lists: Sequence[str] = COCO_LISTS, optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a COCO file; what stands in its lists is not looked at yet.

    UTF-8, UTF-16 and UTF-32 are told apart by their first bytes; a byte-order mark is skipped.

    Args:
        path: COCO JSON.
        lists: names of the lists that the caller reads.
        optional: of these, the ones that the file may lack; they become empty.

    Raises:
        DatasetError: no such file, no JSON, or a list is absent.
    """
    try:
        document = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"there is no annotation file {path}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON: {error}; export it again as COCO JSON"
        ) from error
    if not isinstance(document, dict):
        raise DatasetError(
            f"{path} is not a COCO file: expected an object with the lists "
            f"{', '.join(lists)}, got {type(document).__name__}"
        )
    for name in optional:
        document.setdefault(name, [])
    for name in lists:
        if not isinstance(document.get(name), list):
            has = ", ".join(sorted(map(str, document))[:8]) or "nothing"
            raise DatasetError(f"{path} is not a COCO file: it has no list {name!r}; it has {has}")
    return document
