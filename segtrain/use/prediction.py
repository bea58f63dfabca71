"""Masks for images that have no annotations at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depthcache import decode_image
from depthcache.errors import ImageDecodeError
from segtrain.use.inference import instances_to_results, load_trained_model


def predict_images(
    cfg: Any,
    weights: Path,
    images: Sequence[Path],
    *,
    file_names: Sequence[str] | None = None,
    image_ids: Sequence[int | str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[Path, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Detect objects and their masks.

    Args:
        cfg: an experiment, or a loaded config file that is one.
        weights: checkpoint.
        images: image files; one may occur again under another id.
        file_names: `file_name` of each image's results; by default the file's bare name.
        image_ids: id of each image; by default they are numbered from 1.
        on_progress: called with images done and images in all.
        on_failure: called with an unreadable image and the reason; without it such an image
            raises.

    Returns:
        A COCO result list: image_id, file_name, category_id, bbox (x, y, width, height in the
        original image), score, segmentation as RLE.

    Raises:
        ImageDecodeError, OSError: an image cannot be read and `on_failure` is not given.
    """
    names = [path.name for path in images] if file_names is None else file_names
    ids = range(1, len(images) + 1) if image_ids is None else image_ids
    model = load_trained_model(cfg, weights)
    results: list[dict[str, Any]] = []
    for done, (path, name, image_id) in enumerate(zip(images, names, ids, strict=True), start=1):
        try:
            image_rgb = decode_image(path.read_bytes())
        except (ImageDecodeError, OSError, ValueError) as error:
            if on_failure is None:
                raise
            on_failure(path, str(error))
        else:
            results += instances_to_results(
                model.detect(image_rgb),
                image_id=image_id,
                file_name=name,
                categories=model.categories,
            )
        if on_progress is not None:
            on_progress(done, len(images))
    return results
