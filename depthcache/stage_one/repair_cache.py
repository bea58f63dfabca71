"""Mends a cache: finds what is damaged, and computes anew only the maps that are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheMismatchError, ImageDecodeError
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import ALL_BITS, describe_encoding
from depthcache.segments.repair import has_index, repair_segment
from depthcache.segments.verification import split_root, verify_cache
from depthcache.segments.writer import hold_segment
from depthcache.stage_one.depth_models import MapShapes, load_with_settings
from depthcache.stage_one.image_contents import read_contents
from depthcache.stage_one.settings import PRECISIONS, StageOneSettings
from depthcache.stage_one.shard_computation import load_image, predict_maps
from depthcache.storage.local_folder import LocalStore

_DEFAULTS = StageOneSettings()
_BETWEEN = f"/{fmt.SEGMENTS}/"


def repair_cache(
    root: str | Path,
    images: Sequence[Path],
    model: str | Path,
    settings: StageOneSettings = _DEFAULTS,
) -> dict[str, int]:
    """Replace exactly what is damaged or missing, remove what is stray.

    Intact maps are copied; lost ones are computed anew. A segment of which a map is lost whose
    image was not given stays as it is, and so do all later ones. A segment that a run is still
    writing is left to that run. Precision and encoding are the damaged cache's own.

    Args:
        root: local root, or one fingerprint folder.
        images: files whose depth may have to be computed.
        model: depth model of the cache.
        settings: revision, device and batch_size count.

    Returns:
        num_removed: stray objects; num_computed: maps; num_failed: always 0.

    Raises:
        CacheIncompleteError: an image is missing; the message lists the sha256 of such images.
        CacheMismatchError: a damaged cache is another model's.
    """
    folder, _ = split_root(root)
    problems = verify_cache(root).problems
    store = LocalStore(folder)
    totals = {"num_removed": 0, "num_computed": 0, "num_failed": 0}
    places = [
        place
        for place in dict.fromkeys(problem.segment for problem in problems)
        if _BETWEEN not in place
        or (folder / place / fmt.SEALED).is_file()
        or has_index(store, place)
    ]
    caches = sorted({place.partition(_BETWEEN)[0] for place in places})
    if len(caches) > 1:
        raise CacheMismatchError(
            f"several caches are damaged: {', '.join(caches)}; repair one at a time, by its folder"
        )
    if not caches:
        return totals
    depths = ImageDepths(images, model, caches[0], settings)
    for place in places:
        cache, _, segment_id = place.partition(_BETWEEN)
        if not segment_id:
            store.put(f"{cache}/{fmt.FINGERPRINT}", fmt.canonical_json(depths.fingerprint))
            continue
        with hold_segment(store, place):
            done = repair_segment(
                store,
                place,
                fingerprint=depths.fingerprint,
                shapes=depths.shapes,
                compute=depths.compute,
                provenance={"model_source": depths.source, "repaired": True},
            )
        totals["num_removed"] += done.num_removed
        totals["num_computed"] += done.num_computed
    return totals


class ImageDepths:
    """Maps of given images, computed when asked for: what repair needs of stage one.

    Args:
        images: image files; those that cannot be read are left out.
        model: depth model.
        folder: name of the cache folder; its hash tells precision and encoding.
        settings: revision, device and batch_size count.

    Raises:
        CacheMismatchError: the folder is another model's.
    """

    def __init__(
        self, images: Sequence[Path], model: str | Path, folder: str, settings: StageOneSettings
    ) -> None:
        loaded = load_with_settings(model, settings)
        precision, bits = _find_settings(loaded.fingerprint, folder)
        if (precision, bits) != (settings.precision, settings.bits):
            loaded = load_with_settings(model, replace(settings, precision=precision, bits=bits))
        self._model = loaded
        self._batch_size = settings.batch_size
        self.source = str(model)
        self.fingerprint = loaded.fingerprint
        contents = read_contents(images)
        self._paths = contents.paths
        shape_of = MapShapes(loaded)
        shapes = {key: shape_of(size) for key, size in contents.sizes.items()}
        self.shapes = {key: s for key, s in shapes.items() if not isinstance(s, str)}

    def compute(self, keys: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Maps of these images; those that fail are absent."""
        wanted = list(keys)
        maps: dict[str, npt.NDArray[np.float32]] = {}
        for start in range(0, len(wanted), self._batch_size):
            pixels = {}
            for key in wanted[start : start + self._batch_size]:
                with contextlib.suppress(ImageDecodeError, OSError):
                    pixels[key] = load_image(self._model, self._paths[key], key)
            found = predict_maps(self._model, pixels)
            maps.update({key: m for key, m in found.items() if np.isfinite(m).all()})
        return maps


def _find_settings(fingerprint: dict[str, Any], folder: str) -> tuple[str, int]:
    """Precision and bits with which a model's folder has this name."""
    for precision in PRECISIONS:
        for bits in ALL_BITS:
            document = {**fingerprint, "precision": precision, "encoding": describe_encoding(bits)}
            if fmt.fingerprint_folder(document).rpartition("-")[2] == folder.rpartition("-")[2]:
                return precision, bits
    raise CacheMismatchError(
        f"{folder} is not of this model, whose folder in fp32 is "
        f"{fmt.fingerprint_folder(fingerprint)}; give the model that made it"
    )
