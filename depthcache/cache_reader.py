"""The cache as readers see it: the union of all sealed segments of one model's folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from depthcache.errors import (
    CacheMismatchError,
    CacheMissError,
    CacheNotFoundError,
    CacheUnreachableError,
)
from depthcache.format import segment_format as fmt
from depthcache.local_tier import DEFAULT_SIZE_CAP_BYTES, LocalTier
from depthcache.segments.fingerprint import read_fingerprint
from depthcache.segments.reader import SegmentReader
from depthcache.storage.bucket import BucketStore
from depthcache.storage.http import HTTPStore
from depthcache.storage.object_store import ObjectStore, open_store

log = logging.getLogger(__name__)


class DepthCache:
    """Reads depth maps by image key. Open with `DepthCache.open`.

    Picklable, and safe in threads and in forked and spawned workers: a forked worker shares the
    index with its parent and opens connections of its own; workers that read a bucket must be
    spawned (`survives_fork`). The set of segments is fixed when the cache is first used; `refresh`
    looks again. `close`, or the end of a `with`, ends connections.

    Args:
        url: root address.
        fingerprint: folder name of the model's maps.
        token: for a service that asks for one.
        local_tier: folder that keeps maps of a remote cache.
        local_tier_bytes: size that this folder may have.
        store: an open store instead of the address's.
    """

    def __init__(
        self,
        url: str,
        fingerprint: str,
        *,
        token: str | None = None,
        local_tier: Path | None = None,
        local_tier_bytes: int = DEFAULT_SIZE_CAP_BYTES,
        store: ObjectStore | None = None,
    ) -> None:
        self.url = url
        self.fingerprint = fingerprint
        self._tier = None if local_tier is None else LocalTier(local_tier, local_tier_bytes)
        self._token = token
        self._given_store = store
        self._own_store: ObjectStore | None = None
        self._segments: list[SegmentReader] | None = None

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        fingerprint: str | None = None,
        local_tier: Path | None = None,
        local_tier_bytes: int = DEFAULT_SIZE_CAP_BYTES,
        token: str | None = None,
        store: ObjectStore | None = None,
    ) -> DepthCache:
        """Open a root, or one model's folder in it.

        Args:
            url: path, http(s)://, s3:// or gs:// address of a root or of a fingerprint folder.
            fingerprint: folder name, or the start of exactly one.
            local_tier: folder that keeps maps of a remote cache.
            local_tier_bytes: size that this folder may have.
            token: for a service that asks for one.
            store: an open store instead of the address's.

        Raises:
            CacheNotFoundError: there is no cache.
            CacheMismatchError: several fit; the message lists them.
            CacheUnreachableError: the service does not answer, and the local tier keeps no cache
                that fits.
        """
        root = str(url).rstrip("/")
        opened: ObjectStore | None = None
        try:
            root, name, opened = _choose_cache(root, fingerprint, token, store)
        except CacheUnreachableError as error:
            kept = _choose_kept(root, fingerprint, local_tier)
            if kept is None:
                raise
            log.warning("%s; going on with the maps in %s", error, local_tier)
            root, name = kept
        cache = cls(
            root,
            name,
            token=token,
            local_tier=local_tier,
            local_tier_bytes=local_tier_bytes,
            store=store,
        )
        if store is None:
            cache._own_store = opened
        return cache

    def read(self, key: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Relative inverse depth of an image; larger = nearer; finite.

        Args:
            key: `image_key` of the file's bytes.
            size: (height, width) to resize to, bilinear; None keeps the network's size.

        Raises:
            CacheMissError: the cache has no map of this image.
            CacheCorruptError: stored bytes are damaged; names segment and row.
        """
        if self._tier is not None:
            return self.read_batch([key], size)[0]
        segment, place = self._place(key)
        return _resize(segment.read(*place), size)

    def read_batch(
        self, keys: Sequence[str], size: tuple[int, int] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """`read` for several images, in order; maps that lie side by side share a request."""
        maps = self._read_kept(keys)
        places: dict[SegmentReader, dict[str, tuple[int, int]]] = {}
        for key in dict.fromkeys(keys):
            if key not in maps:
                segment, place = self._place(key)
                places.setdefault(segment, {})[key] = place
        for segment, wanted in places.items():
            fetched = segment.fetch_many(list(wanted.values()))
            for key, encoded in zip(wanted, fetched, strict=True):
                maps[key] = encoded.decode()
                if self._tier is not None:
                    self._tier.write(self.fingerprint, key, encoded)
        return [_resize(maps[key], size) for key in keys]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those keys that have no map, in order.

        Raises:
            CacheUnreachableError: the service does not answer, and the local tier lacks some.
        """
        wanted = list(keys)
        try:
            return [key for key in wanted if self._find(key) is None]
        except CacheUnreachableError:
            tier = self._tier
            if tier is None or not all(tier.has(self.fingerprint, key) for key in wanted):
                raise
            return []

    def keys(self) -> Iterator[str]:
        """All image keys, sorted."""
        return (digest.tobytes().hex() for digest in self._all_digests())

    def failures(self) -> dict[str, str]:
        """Image key → reason, of images that a run recorded as impossible."""
        recorded: dict[str, str] = {}
        for segment in self._loaded():
            recorded.update(segment.failures)
        return {key: why for key, why in recorded.items() if self._find(key) is None}

    def info(self) -> dict[str, Any]:
        """Model, convention, counts, bytes and provenance."""
        segments = self._loaded()
        document = read_fingerprint(self._store(), self.fingerprint)
        return {
            "fingerprint": self.fingerprint,
            "model": document.get("model"),
            "revision": document.get("revision"),
            "precision": document.get("precision"),
            "convention": document.get("convention"),
            "encoding": document.get("encoding"),
            "num_maps": len(self),
            "num_failed": len(self.failures()),
            "num_segments": len(segments),
            "num_bytes": sum(sum(s.sizes.values()) for s in segments),
            "provenance": [s.seal.get("provenance", {}) for s in segments],
        }

    @property
    def survives_fork(self) -> bool:
        """Whether forked workers can read it too; those of a bucket must be spawned."""
        return not isinstance(self._store(), BucketStore)

    def refresh(self) -> None:
        """See segments that were sealed since the cache was first used."""
        self._segments = None

    def close(self) -> None:
        """End this process's connections; reading opens new ones."""
        if self._own_store is not None:
            _close(self._own_store)

    def __enter__(self) -> DepthCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __len__(self) -> int:
        segments = self._loaded()
        return segments[0].num_maps if len(segments) == 1 else len(self._all_digests())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_segments": None, "_own_store": None}

    def _store(self) -> ObjectStore:
        if self._given_store is not None:
            return self._given_store
        if self._own_store is None:
            self._own_store = open_store(self.url, token=self._token)
        return self._own_store

    def _loaded(self) -> list[SegmentReader]:
        if self._segments is not None:
            return self._segments
        store = self._store()
        folder = f"{self.fingerprint}/{fmt.SEGMENTS}"
        segments = []
        for segment_id in store.list_folders(folder):
            # One that is not sealed is being written, or its run was killed.
            with contextlib.suppress(CacheNotFoundError):
                segments.append(SegmentReader(store, f"{folder}/{segment_id}"))
        self._segments = segments
        return segments

    def _find(self, key: str) -> tuple[SegmentReader, int] | None:
        digest = _digest(key)
        for segment in self._loaded():
            position = segment.find(digest)
            if position is not None:
                return segment, position
        return None

    def _all_digests(self) -> npt.NDArray[Any]:
        """Digests of all maps as byte strings, sorted, each once."""
        found = [np.ascontiguousarray(s.digests).view("S32").reshape(-1) for s in self._loaded()]
        return np.unique(np.concatenate(found)).view("V32") if found else np.empty(0, "V32")

    def _place(self, key: str) -> tuple[SegmentReader, tuple[int, int]]:
        """The segment that has a map, and the map's bucket and row in it."""
        place = self._find(key)
        if place is None:
            raise CacheMissError(
                f"no depth of image {key} in {self.url}/{self.fingerprint}; "
                f"compute it with `pipeline depth --cache {self.url}`"
            )
        segment, position = place
        return segment, (int(segment.buckets[position]), int(segment.rows[position]))

    def _read_kept(self, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Maps in the local tier: these need no service, not even its index."""
        if self._tier is None:
            return {}
        for key in keys:
            _digest(key)
        kept = {key: self._tier.read(self.fingerprint, key) for key in set(keys)}
        return {key: found for key, found in kept.items() if found is not None}


def list_caches(root: str | Path, *, token: str | None = None) -> list[dict[str, Any]]:
    """`DepthCache.info` of every fingerprint folder under a root.

    Args:
        root: path or address.
        token: for a service that asks for one.
    """
    store = open_store(root, token=token)
    found = []
    for name in store.list_folders(""):
        try:
            store.get(f"{name}/{fmt.FINGERPRINT}")
        except CacheNotFoundError:
            continue
        found.append(DepthCache.open(root, fingerprint=name, token=token).info())
    return found


def _resize(
    inverse_depth: npt.NDArray[np.float32], size: tuple[int, int] | None
) -> npt.NDArray[np.float32]:
    if size is None or size == inverse_depth.shape:
        return inverse_depth
    resized = Image.fromarray(inverse_depth).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.float32)


def _choose_cache(
    url: str, fingerprint: str | None, token: str | None, store: ObjectStore | None
) -> tuple[str, str, ObjectStore]:
    """Root and fingerprint folder that an address and a wish mean, and the root's open store."""
    root = url
    opened = store or open_store(root, token=token)
    if store is None:
        parent, _, name = root.rpartition("/")
        inside = _is_fingerprint_folder(root, opened)
        if inside:
            _close(opened)
            root = parent or ("." if "/" not in root else "/")
            opened, fingerprint = open_store(root, token=token), name
    found = [name for name in opened.list_folders("") if not name.startswith(".")]
    fitting = [n for n in found if fingerprint is None or n.startswith(fingerprint)]
    if fingerprint in found:
        fitting = [str(fingerprint)]
    if not fitting:
        wanted = f" with fingerprint {fingerprint}" if fingerprint else ""
        raise CacheNotFoundError(
            f"no depth cache{wanted} in {url}; found {found or 'nothing'}; "
            "`pipeline depth --cache ROOT` makes one"
        )
    if len(fitting) > 1:
        raise CacheMismatchError(
            f"{url} has several caches, choose one with fingerprint=…: {', '.join(fitting)}"
        )
    read_fingerprint(opened, fitting[0])
    return root, fitting[0], opened


def _choose_kept(
    root: str, fingerprint: str | None, local_tier: Path | None
) -> tuple[str, str] | None:
    """The same among the caches of which a local tier keeps maps; None when unclear."""
    found = [] if local_tier is None else [p.name for p in local_tier.glob("*") if p.is_dir()]
    parent, _, name = root.rpartition("/")
    if name in found:
        return parent, name
    fitting = [n for n in found if n.startswith(fingerprint or "")]
    return (root, fitting[0]) if len(fitting) == 1 else None


def _digest(key: str) -> bytes:
    try:
        return fmt.parse_image_key(key)
    except ValueError as error:
        raise CacheMissError(str(error)) from error


def _close(store: ObjectStore) -> None:
    if isinstance(store, HTTPStore):
        store.close()


def _is_fingerprint_folder(root: str, store: ObjectStore) -> bool:
    try:
        store.get(fmt.FINGERPRINT)
    except CacheNotFoundError:
        return False
    return "-" in root.rpartition("/")[2]
