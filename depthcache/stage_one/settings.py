"""How stage one computes: what the command line, the config and a cluster's workers all hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthcache.format.quantisation import DEFAULT_BITS, check_bits

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class StageOneSettings:
    """Settings of `precompute_depth`; revision, precision and bits decide the cache's folder.

    Args:
        revision: of a hub model.
        precision: fp32, bf16 or fp16.
        bits: significant bits of a stored map, 2 to 16; 32 keeps float32.
        device: torch device; None takes cuda when there is one.
        batch_size: images per forward pass.
        shard_rows: maps per shard.
        workers: threads that read, decode and preprocess beside the forward pass; with
            scheduler="local" the number of worker processes.
        scheduler: address of a dask scheduler whose workers see the same files, or "local"; None
            computes in this process. The cache's maps and index are the same bytes.
        upstreams: further cache roots whose maps need not be computed.

    Raises:
        ValueError: a setting is out of range.
    """

    revision: str | None = None
    precision: str = "fp32"
    bits: int = DEFAULT_BITS
    device: str | None = None
    batch_size: int = 4
    shard_rows: int = 64
    workers: int = 2
    scheduler: str | None = None
    upstreams: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is not one of {', '.join(PRECISIONS)}")
        check_bits(self.bits)
        for name in ("batch_size", "shard_rows", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
