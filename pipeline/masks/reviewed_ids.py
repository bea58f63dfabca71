"""What a reviewer marked on the review page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError


def read_reviewed_ids(path: Path) -> set[Any]:
    """Annotation ids that the review page's download names.

    Raises:
        UsageError: not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        ids = document["annotation_ids"] if isinstance(document, dict) else document
        return set(ids)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no list of annotation ids: {error}; expected what the review page "
            'downloads, {"annotation_ids": […]}'
        ) from error
