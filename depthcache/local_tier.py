"""Maps of a remote cache, kept compressed on this machine's disk up to a size cap."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheCorruptError
from depthcache.format.segment_format import add_crc, parse_image_key, strip_crc
from depthcache.segments.reader import EncodedMap
from depthcache.storage.durable_files import replaced_file

DEFAULT_SIZE_CAP_BYTES = int(os.environ.get("DEPTHCACHE_LOCAL_TIER_BYTES", str(50 * 2**30)))
_HEADER = struct.Struct("<IIIff")
# Every process looks at the folder after it has written this part of the cap, and then empties it
# to `_KEPT_PART`: eight processes that look at the worst moment fill what is between.
_CHECKED_PART = 1 / 32
_KEPT_PART = 3 / 4


class LocalTier:
    """A folder of maps. Many processes may use it at once, and of many caches.

    A kept file is height, width, bits (uint32), minimum, maximum (float32), the map's chunk as in
    its shard, and crc32c, little-endian.

    Args:
        folder: made when needed. A folder that cannot be written keeps nothing; reading goes on.
        size_cap_bytes: the longest unused maps go when the files take more.

    Raises:
        ValueError: the cap is negative.
    """

    def __init__(self, folder: Path, size_cap_bytes: int = DEFAULT_SIZE_CAP_BYTES) -> None:
        if size_cap_bytes < 0:
            raise ValueError(f"size_cap_bytes={size_cap_bytes} must not be negative")
        self.folder = folder
        self.size_cap_bytes = size_cap_bytes
        self._unchecked_bytes = size_cap_bytes  # the first write looks at what is there

    def read(self, fingerprint: str, key: str) -> npt.NDArray[np.float32] | None:
        """A kept map, checked; None when it is not there or damaged."""
        path = self._path(fingerprint, key)
        try:
            payload = strip_crc(path.read_bytes(), str(path))
            height, width, bits, low, high = _HEADER.unpack_from(payload)
            # The chunk's own crc32c lies within the bytes that were checked.
            inverse_depth = EncodedMap(
                chunk=bytes(payload[_HEADER.size :]),
                shape=(height, width),
                bits=bits,
                value_range=(low, high),
                place=str(path),
            ).decode()
        except (OSError, struct.error, CacheCorruptError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return inverse_depth

    def has(self, fingerprint: str, key: str) -> bool:
        """Whether a map is kept, intact or not."""
        return self._path(fingerprint, key).is_file()

    def write(self, fingerprint: str, key: str, encoded: EncodedMap) -> None:
        """Keep a map; a full disk only means that it is not kept."""
        header = _HEADER.pack(*encoded.shape, encoded.bits, *encoded.value_range)
        data = add_crc(header + encoded.chunk)
        if len(data) > self.size_cap_bytes * (1 - _KEPT_PART):
            return
        path = self._path(fingerprint, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(path, is_durable=False) as file:
                file.write(data)
        except OSError:
            return
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes > self.size_cap_bytes * _CHECKED_PART:
            self._unchecked_bytes = 0
            self.shrink(int(self.size_cap_bytes * _KEPT_PART))

    def shrink(self, num_bytes: int) -> int:
        """Delete the longest unused maps until the rest takes this much; returns the bytes left."""
        files = []
        for path in self.folder.glob("*/*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= num_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size
        return total

    def _path(self, fingerprint: str, key: str) -> Path:
        parse_image_key(key)
        return self.folder / fingerprint / key[:2] / f"{key}.map"
