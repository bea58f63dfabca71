"""Depth of photos out of a cache, and what to say of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache import DepthCache, image_key
from depthcache.errors import CacheMissError
from pipeline.errors import UsageError
from pipeline.masks.masks_request import MasksRequest
from pipeline.runs.manifest import Manifest
from pipeline.runs.stages import digest_file_list, tell_changes

logger = logging.getLogger(__name__)

_MEANING = {"loss": "as a loss", "input": "as an input", "both": "as a loss and an input"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoDepth:
    """What depth a labeller gets.

    Attributes:
        mode: one of `masks_request.DEPTH_MODES`.
        cache: open cache; None when the mode is off.
        url: of the cache.
        num_present: photos with a map.
        num_photos: photos asked for.
    """

    mode: str = "off"
    cache: DepthCache | None = None
    url: str | None = None
    num_present: int = 0
    num_photos: int = 0

    @property
    def fingerprint(self) -> str | None:
        """Folder name of the cache, which stands for model, weights and settings."""
        return self.cache.fingerprint if self.cache else None

    def read(self, key: str, height: int, width: int) -> npt.NDArray[np.float32] | None:
        """Inverse depth (H, W) of a photo, larger = nearer; None where there is none.

        Args:
            key: `image_key` of the file's bytes.
            height: of the photo.
            width: of the photo.

        Raises:
            CacheCorruptError: stored bytes are damaged.
        """
        if self.cache is None:
            return None
        try:
            return self.cache.read(key, size=(height, width))
        except CacheMissError:
            return None

    def read_of_bytes(self, data: bytes, height: int, width: int) -> npt.NDArray[np.float32] | None:
        """`read` by the bytes of the photo's file."""
        return self.read(image_key(data), height, width) if self.cache else None

    def describe(self) -> str:
        """Which depth was used, or that none was."""
        if self.cache is None:
            return "none used (--cache or --model gives it some)"
        covered = f"{self.num_present} of {self.num_photos} photos"
        return f"{self.fingerprint} {_MEANING[self.mode]}, {covered}"


def require_cache(request: MasksRequest) -> None:
    """Refuse a cache that is not there, unless a model fills it or its depth is not wanted.

    Raises:
        CacheNotFoundError, CacheMismatchError: no cache there, or several.
    """
    if request.depth_mode != "off" and not request.depth_model:
        DepthCache.open(str(request.cache))


def open_photo_depth(
    mode: str, url: str, photos: Sequence[Path], *, fingerprint: str | None = None
) -> PhotoDepth:
    """Open a cache and count the photos that it has a map of.

    Args:
        mode: loss, input or both.
        url: root or folder of the cache.
        photos: readable files.
        fingerprint: which model's maps.

    Raises:
        UsageError: it has a map of none of them.
        CacheNotFoundError, CacheMismatchError: no cache there, or several.
    """
    cache = DepthCache.open(url, fingerprint=fingerprint)
    keys = [image_key(path.read_bytes()) for path in photos]
    missing = set(cache.missing(set(keys)))
    num_missing = sum(key in missing for key in keys)
    if num_missing == len(keys):
        raise UsageError(
            f"the depth cache {url} has a map of none of the {len(keys)} photos; give --model, "
            "which computes them, or --depth off"
        )
    if num_missing:
        logger.warning(
            "%d of %d photos have no depth in %s; they are labelled without. --model computes it",
            num_missing, len(keys), url,
        )  # fmt: skip
    return PhotoDepth(
        mode=mode,
        cache=cache,
        url=url,
        num_present=len(keys) - num_missing,
        num_photos=len(keys),
    )


def compute_photo_depth(
    request: MasksRequest, manifest: Manifest, photos: Sequence[Path], photos_digest: Any
) -> tuple[str, str, bool]:
    """Compute what the cache lacks: its folder, its fingerprint, and whether there was work.

    Args:
        request: names the model, and a cache or none.
        manifest: of the run; its stage `depth` is recorded.
        photos: those that exist.
        photos_digest: what they are, to know them again.
    """
    from pipeline.runs.experiment_files import resolve_model
    from pipeline.runs.stages import compute_depth_maps, depth_counts

    model = resolve_model(str(request.depth_model))
    root = request.cache or str((manifest.folder / "depth-cache").resolve())
    inputs = {
        "model": model,
        "model_files": digest_file_list(sorted(Path(model).glob("*"))),
        "cache_root": root,
        "photos": photos_digest,
    }
    url = str(manifest.stages["depth"].outputs.get("cache", ""))
    is_there = "://" in url or Path(url).is_dir()
    is_news = not (manifest.is_done("depth", inputs) and is_there)
    if is_news:
        tell_changes(manifest, "depth", inputs)
        with manifest.running("depth", inputs) as record:
            summary = compute_depth_maps(photos, model, root, progress_file=manifest.progress_file)
            record.outputs = {"cache": str(summary.cache_url)}
            record.counts = depth_counts(summary)
            record.failures = list(summary.failures)
            manifest.fingerprints["depth"] = str(summary.fingerprint)
    url = str(manifest.stages["depth"].outputs["cache"])
    return url, manifest.fingerprints["depth"], is_news
