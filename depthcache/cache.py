"""Reading a depth cache: the union of its sealed segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from depthcache.errors import CacheMismatchError, CacheMissError, CacheNotFoundError
from depthcache.fingerprint import Fingerprint
from depthcache.local_tier import TieredStore
from depthcache.object_store import ObjectStore, open_store
from depthcache.segment_reader import SegmentReader


class DepthCache:
    """One fingerprint's depth maps, from any store.

    Opens its segments on first use, in the process that uses it: it can be handed to DataLoader workers,
    forked or spawned.
    """

    def __init__(
        self, url: str, folder: str, *, local_tier: Path | None = None, token: str | None = None
    ) -> None:
        self.url = url
        self.fingerprint = folder
        self._local_tier = local_tier
        self._token = token
        self._segments: list[SegmentReader] | None = None
        self._identity: Fingerprint | None = None

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        fingerprint: str | None = None,
        local_tier: Path | None = None,
        token: str | None = None,
    ) -> DepthCache:
        """Open a cache.

        Args:
            url: a cache root (path, s3://, gs://, http(s)://) or a fingerprint folder in one.
            fingerprint: folder name or a unique beginning of it, for a root with several.
            local_tier: folder that keeps what was fetched from a remote store.
            token: bearer token for HTTP.

        Raises:
            CacheNotFoundError: no cache is there.
            CacheMismatchError: several are and `fingerprint` does not choose one, or a newer format.
            CacheUnreachableError: the store does not answer.
        """
        root, folder = find_cache(str(url), fingerprint, token=token)
        return cls(root, folder, local_tier=local_tier, token=token)

    @property
    def identity(self) -> Fingerprint:
        """The fingerprint's fields."""
        self._load()
        if self._identity is None:
            raise CacheNotFoundError(f"{self.url}/{self.fingerprint} has no fingerprint.json")
        return self._identity

    @property
    def segments(self) -> list[SegmentReader]:
        """Its sealed segments, by id."""
        return self._load()

    def read(self, key: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Read one depth map.

        Args:
            key: `image_key` of the image's bytes.
            size: (h, w) to resize to, bilinear; None for the map's own size.

        Returns:
            (h, w) float32, relative inverse depth, larger = nearer, whatever the model said.

        Raises:
            CacheMissError: no depth for this image.
            CacheCorruptError: its bytes are damaged.
            ValueError: not a key.
        """
        digest = _digest(key)
        for segment in self._load():
            position = segment.find(digest)
            if position is not None:
                values = to_nearer_is_larger(segment.read(position), self.identity)
                return values if size is None else resize_map(values, size)
        raise CacheMissError(
            f"{self.url}/{self.fingerprint} has no depth for image {key[:16]}…; "
            "`pipeline depth` with the same cache fills the gap"
        )

    def read_many(
        self, keys: Sequence[str], size: tuple[int, int] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Read several maps, in the order of their keys; errors as in `read`."""
        return [self.read(key, size) for key in keys]

    def __contains__(self, key: str) -> bool:
        digest = _digest(key)
        return any(segment.find(digest) is not None for segment in self._load())

    def __len__(self) -> int:
        return len(set(self.keys()))

    def keys(self) -> list[str]:
        """Keys of all images with depth."""
        found = {row.tobytes().hex() for segment in self._load() for row in segment.digests}
        return sorted(found)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that have no depth, in their order, once each."""
        return [key for key in dict.fromkeys(keys) if key not in self]

    def info(self) -> dict[str, Any]:
        """Counts, convention and size, ready for JSON."""
        identity, segments = self.identity, self.segments
        return {
            "url": self.url,
            "fingerprint": self.fingerprint,
            "model": identity.model_id,
            "quantity": identity.quantity,
            "larger_is": identity.larger_is,
            "precision": identity.precision,
            "encoding": identity.encoding,
            "licence": identity.licence,
            "format_version": identity.format_version,
            "num_segments": len(segments),
            "num_maps": sum(segment.num_maps for segment in segments),
            "num_bytes": sum(
                int(entry["size"]) for segment in segments for entry in segment.objects.values()
            ),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_segments": None, "_identity": None}

    def _load(self) -> list[SegmentReader]:
        if self._segments is None:
            store: ObjectStore = open_store(self.url, token=self._token)
            if self._local_tier is not None:
                store = TieredStore(store, self._local_tier)
            text = store.get(f"{self.fingerprint}/fingerprint.json")
            if text is None:
                raise CacheNotFoundError(f"{self.url}/{self.fingerprint} has no fingerprint.json")
            self._identity = Fingerprint.from_json(text, place=f"{self.url}/{self.fingerprint}")
            self._segments = open_segments(store, self.fingerprint)
        return self._segments


def find_cache(url: str, fingerprint: str | None, *, token: str | None = None) -> tuple[str, str]:
    """Split a URL into cache root and fingerprint folder.

    Raises:
        CacheNotFoundError, CacheMismatchError: see `DepthCache.open`.
    """
    url = url.rstrip("/")
    names = list_caches(open_store(url, token=token))
    if not names and "/" in url and fingerprint is None:
        root, _, folder = url.rpartition("/")
        root = root or "/"
        if not root.endswith(("/", ":")) and folder in list_caches(open_store(root, token=token)):
            return root, folder
    if not names and not url.startswith("http"):
        local = Path(url).absolute()
        if (local / "fingerprint.json").is_file():
            return str(local.parent), local.name
    if fingerprint is not None:
        names = [name for name in names if name == fingerprint] or [
            name for name in names if name.startswith(fingerprint)
        ]
    if not names:
        raise CacheNotFoundError(
            f"no depth cache at {url}"
            + (f" with fingerprint {fingerprint}" if fingerprint else "")
            + "; `pipeline depth --cache ROOT` makes one"
        )
    if len(names) > 1:
        raise CacheMismatchError(
            f"{url} holds {len(names)} caches, choose one by its fingerprint: {', '.join(names)}"
        )
    return url, names[0]


def list_caches(store: ObjectStore) -> list[str]:
    """Fingerprint folders of a root."""
    return [name for name in store.list_folders("") if _has_fingerprint(store, name)]


def open_segments(store: ObjectStore, folder: str) -> list[SegmentReader]:
    """All sealed segments of a cache; unsealed ones are somebody's work in progress."""
    return [
        SegmentReader(store, f"{folder}/segments/{name}")
        for name in store.list_folders(f"{folder}/segments")
        if store.get(f"{folder}/segments/{name}/sealed.json") is not None
    ]


def to_nearer_is_larger(
    values: npt.NDArray[np.float32], identity: Fingerprint
) -> npt.NDArray[np.float32]:
    """Convert stored values to relative depth with larger = nearer.

    Metric depth becomes its inverse, 1 / metres; other values that grow with distance change sign.
    """
    if identity.larger_is == "nearer":
        return values
    if identity.quantity == "depth_metres":
        return np.reciprocal(np.maximum(values, np.float32(1e-3)))
    return -values


def resize_map(
    values: npt.NDArray[np.float32], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Resize (H, W) to (h, w): bilinear, antialiased when shrinking, pixel centres aligned."""
    if values.shape == size:
        return values
    picture = Image.fromarray(np.ascontiguousarray(values))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _has_fingerprint(store: ObjectStore, name: str) -> bool:
    return "-" in name and store.get(f"{name}/fingerprint.json") is not None


def _digest(key: str) -> bytes:
    try:
        digest = bytes.fromhex(key)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError(f"{key!r} is not an image key (64 hexadecimal digits); see image_key()")
    return digest


