"""The `depth` part of a config: which model, which cache, and how the trainer opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from depthcache import DepthCache
from segtrain.errors import TrainingConfigError


@dataclass(kw_only=True)
class DepthSettings:
    """Depth maps of a config's images, for both stages.

    Attributes:
        enabled: whether training reads depth at all; plain BoxInst does not.
        model: hub id or local folder of the depth model; `demo-dpt` is the bundled one.
        revision: of a hub model.
        cache: root of the depth cache: a path or an s3, gs, http(s) address.
        fingerprint: which model's maps of the cache to read; None when there is one.
        local_tier: folder in which maps of a remote cache are kept.
        batch_size: images at once in stage one.
        precision: `fp32`, `bf16` or `fp16` of stage one.
        device: of stage one; None chooses.
        workers: threads that read images in stage one; processes with scheduler `local`.
        shard_rows: maps per shard; None chooses.
        scheduler: address of a dask scheduler for stage one, or `local`.
    """

    enabled: bool = True
    model: str = "Intel/dpt-large"
    revision: str | None = None
    cache: str = "depth-cache"
    fingerprint: str | None = None
    local_tier: str | None = None
    batch_size: int = 4
    precision: str = "fp32"
    device: str | None = None
    workers: int = 2
    shard_rows: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        """Check what stage one would otherwise find out late."""
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise TrainingConfigError(
                f"depth.precision={self.precision!r} is not fp32, bf16 or fp16"
            )


def open_depth(settings: DepthSettings) -> DepthCache | None:
    """Open the cache that training reads.

    Args:
        settings: names the cache.

    Returns:
        The reader, or None when the config uses no depth.
    """
    if not settings.enabled:
        return None
    return DepthCache.open(
        settings.cache,
        fingerprint=settings.fingerprint,
        local_tier=Path(settings.local_tier) if settings.local_tier else None,
    )


def describe_fill_command(settings: DepthSettings, annotation_file: str, images: str) -> str:
    """The command that computes the depth of a dataset into the configured cache."""
    return (
        f"pipeline depth --coco {annotation_file} --images {images} "
        f"--model {settings.model} --cache {settings.cache}"
    )
