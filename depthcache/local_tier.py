"""Maps of a remote cache, kept on this machine's disk up to a size cap."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheCorruptError
from depthcache.segment_format import add_crc, strip_crc

SIZE_CAP_BYTES = int(os.environ.get("DEPTHCACHE_LOCAL_TIER_BYTES", str(50 * 2**30)))
_WRITES_PER_CHECK = 256
_num_writes = [0]


def read_kept_map(tier: Path, fingerprint: str, key: str) -> npt.NDArray[np.float32] | None:
    """A kept map, checked; None when it is not there or damaged."""
    path = _path(tier, fingerprint, key)
    try:
        payload = strip_crc(path.read_bytes(), str(path))
        os.utime(path)
    except (FileNotFoundError, CacheCorruptError):
        return None
    height, width = np.frombuffer(payload[:8], dtype="<u4")
    return np.frombuffer(payload[8:], dtype="<f4").reshape(int(height), int(width)).copy()


def write_kept_map(
    tier: Path, fingerprint: str, key: str, inverse_depth: npt.NDArray[np.float32]
) -> None:
    """Keep a map; a full disk only means that it is not kept."""
    path = _path(tier, fingerprint, key)
    header = np.array(inverse_depth.shape, dtype="<u4").tobytes()
    data = add_crc(header + inverse_depth.astype("<f4").tobytes())
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return
    _num_writes[0] += 1
    if _num_writes[0] % _WRITES_PER_CHECK == 0:
        shrink_tier(tier, SIZE_CAP_BYTES)


def shrink_tier(tier: Path, size_cap_bytes: int) -> int:
    """Delete the longest unused maps until the rest fits; returns the bytes left."""
    files = []
    for path in tier.glob("*/*/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= size_cap_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


def _path(tier: Path, fingerprint: str, key: str) -> Path:
    return tier / fingerprint / key[:2] / f"{key}.map"
