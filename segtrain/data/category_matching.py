"""Which class of a test file each class of a model is, by their names."""

from __future__ import annotations

import logging
from typing import Any

from segtrain.errors import DatasetError

logger = logging.getLogger(__name__)


def match_categories(
    known: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The test file's category of each class that the weights know.

    Args:
        known: `{"id", "name"}` by class index, as the weights name them.
        wanted: the test file's categories, in the order of their ids.

    Returns:
        `wanted` in the order of `known` when both name the same classes, whatever ids each file
        uses. As it is, class by class, which the log tells, when the weights name none.

    Raises:
        DatasetError: the weights name other classes.
    """
    by_name = {item["name"]: item for item in wanted}
    names = [item["name"] for item in known]
    if len(by_name) == len(wanted) and set(names) == set(by_name):
        return [by_name[name] for name in names]
    if names == [item["name"] for item in wanted]:  # two classes share a name
        return wanted
    texts = ", ".join(map(str, names[:10])), ", ".join(str(item["name"]) for item in wanted[:10])
    message = "the weights know the classes {}, the test file names {}".format(*texts)
    if names != [item["name"] for item in numbered_categories(len(wanted))]:
        raise DatasetError(f"{message}; rename the file's categories, or name other weights")
    logger.warning("%s; they are taken in this order", message)
    return wanted


def numbered_categories(num_classes: int) -> list[dict[str, Any]]:
    """Classes that nobody has named."""
    return [{"id": i + 1, "name": f"class {i + 1}"} for i in range(num_classes)]
