"""Masks for images that have no annotations at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from depthcache import decode_image
from depthcache.errors import ImageDecodeError
from segtrain.use.inference import instances_to_results, load_trained_model

logger = logging.getLogger(__name__)


def predict_images(
    cfg: Any,
    weights: Path,
    images: Sequence[Path],
    *,
    relative_to: Path | None = None,
    image_ids: Mapping[str, int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[Path, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Detect objects and their masks.

    Args:
        cfg: the loaded config file.
        weights: checkpoint.
        images: image files.
        relative_to: `file_name` of a result is relative to this folder; else the bare name.
        image_ids: id by `file_name`; images without one are numbered from 1 in their order.
        on_progress: called with images done and images in all.
        on_failure: called with an unreadable image and the reason; without it such an image
            raises.

    Returns:
        A COCO result list: image_id, file_name, category_id, bbox (x, y, width, height in the
        original image), score, segmentation as RLE.

    Raises:
        ImageDecodeError, OSError: an image cannot be read and `on_failure` is not given.
    """
    model = load_trained_model(cfg, weights)
    results: list[dict[str, Any]] = []
    for position, path in enumerate(images, start=1):
        file_name = path.relative_to(relative_to).as_posix() if relative_to else path.name
        try:
            image_rgb = decode_image(path.read_bytes())
        except (ImageDecodeError, OSError) as error:
            if on_failure is None:
                raise
            on_failure(path, str(error))
        else:
            results += instances_to_results(
                model.detect(image_rgb),
                image_id=(image_ids or {}).get(file_name, position),
                file_name=file_name,
                categories=model.categories,
            )
        if on_progress is not None:
            on_progress(position, len(images))
    return results
