"""The cache as readers see it: the union of all sealed segments of one model's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from depthcache import segment_format as fmt
from depthcache.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheMissError,
    CacheNotFoundError,
)
from depthcache.object_stores import ObjectStore, open_store
from depthcache.segment_reader import SegmentReader


class DepthCache:
    """Reads depth maps by image key. Open with `DepthCache.open`.

    Picklable, and safe in forked and spawned workers: each process opens its own stores. The set
    of segments is fixed when a process first uses the cache; `refresh` looks again.

    Args:
        url: root address.
        fingerprint: folder name of the model's maps.
        token: for a service that asks for one.
        local_tier: folder that keeps maps of a remote cache.
        store: an open store instead of the address's.
    """

    def __init__(
        self,
        url: str,
        fingerprint: str,
        *,
        token: str | None = None,
        local_tier: Path | None = None,
        store: ObjectStore | None = None,
    ) -> None:
        self.url = url
        self.fingerprint = fingerprint
        self.local_tier = local_tier
        self._token = token
        self._given_store = store
        self._process = 0
        self._segments: list[SegmentReader] = []
        self._keys: dict[bytes, tuple[int, int]] = {}

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        fingerprint: str | None = None,
        local_tier: Path | None = None,
        token: str | None = None,
        store: ObjectStore | None = None,
    ) -> DepthCache:
        """Open a root, or one model's folder in it.

        Args:
            url: path, http(s)://, s3:// or gs:// address of a root or of a fingerprint folder.
            fingerprint: folder name, or the start of exactly one.
            local_tier: folder that keeps maps of a remote cache.
            token: for a service that asks for one.
            store: an open store instead of the address's.

        Raises:
            CacheNotFoundError: there is no cache.
            CacheMismatchError: several fit; the message lists them.
            CacheUnreachableError: the service does not answer.
        """
        root = str(url).rstrip("/")
        opened = store or open_store(root, token=token)
        if store is None:
            parent, _, name = root.rpartition("/")
            inside = _is_fingerprint_folder(root, opened)
            if inside:
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
        _read_fingerprint(opened, fitting[0])
        return cls(root, fitting[0], token=token, local_tier=local_tier, store=store)

    def read(self, key: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Relative inverse depth of an image; larger = nearer; finite.

        Args:
            key: `image_key` of the file's bytes.
            size: (height, width) to resize to, bilinear; None keeps the network's size.

        Raises:
            CacheMissError: the cache has no map of this image.
            CacheCorruptError: stored bytes are damaged; names segment and row.
        """
        self._load()
        place = self._keys.get(_digest(key))
        if place is None:
            raise CacheMissError(
                f"no depth of image {key} in {self.url}/{self.fingerprint}; "
                f"compute it with `pipeline depth --cache {self.url}`"
            )
        segment = self._segments[place[0]]
        position = place[1]
        inverse_depth = self._read_through_tier(key, segment, position)
        if size is None or size == inverse_depth.shape:
            return inverse_depth
        resized = Image.fromarray(inverse_depth).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR
        )
        return np.array(resized, dtype=np.float32)

    def read_batch(
        self, keys: Sequence[str], size: tuple[int, int] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """`read` for several images, in order."""
        return [self.read(key, size) for key in keys]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those keys that have no map, in order."""
        self._load()
        return [key for key in keys if _digest(key) not in self._keys]

    def keys(self) -> Iterator[str]:
        """All image keys, sorted."""
        self._load()
        return (digest.hex() for digest in sorted(self._keys))

    def failures(self) -> dict[str, str]:
        """Image key → reason, of images that a run recorded as impossible."""
        self._load()
        recorded: dict[str, str] = {}
        for segment in self._segments:
            recorded.update(segment.failures)
        return {key: why for key, why in recorded.items() if _digest(key) not in self._keys}

    def info(self) -> dict[str, Any]:
        """Model, convention, counts, bytes and provenance."""
        self._load()
        document = _read_fingerprint(self._store(), self.fingerprint)
        return {
            "fingerprint": self.fingerprint,
            "model": document.get("model"),
            "revision": document.get("revision"),
            "precision": document.get("precision"),
            "convention": document.get("convention"),
            "encoding": document.get("encoding"),
            "num_maps": len(self._keys),
            "num_failed": len(self.failures()),
            "num_segments": len(self._segments),
            "num_bytes": sum(sum(s.sizes.values()) for s in self._segments),
            "provenance": [s.seal.get("provenance", {}) for s in self._segments],
        }

    def refresh(self) -> None:
        """See segments that were sealed since this process first used the cache."""
        self._process = 0

    def __contains__(self, key: object) -> bool:
        self._load()
        return isinstance(key, str) and _digest(key) in self._keys

    def __len__(self) -> int:
        self._load()
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_segments": [], "_keys": {}}

    def _store(self) -> ObjectStore:
        return self._given_store or open_store(self.url, token=self._token)

    def _load(self) -> None:
        if self._process == os.getpid():
            return
        store = self._store()
        self._segments, self._keys = [], {}
        folder = f"{self.fingerprint}/segments"
        for segment_id in store.list_folders(folder):
            try:
                segment = SegmentReader(store, f"{folder}/{segment_id}")
            except CacheNotFoundError:
                continue  # not sealed: a run is writing it, or was killed
            number = len(self._segments)
            self._segments.append(segment)
            digests = segment.digests.tobytes()
            for position in range(segment.num_maps):
                digest = digests[32 * position : 32 * position + 32]
                self._keys.setdefault(digest, (number, position))
        self._process = os.getpid()

    def _read_through_tier(
        self, key: str, segment: SegmentReader, position: int
    ) -> npt.NDArray[np.float32]:
        bucket, row = int(segment.buckets[position]), int(segment.rows[position])
        if self.local_tier is None:
            return segment.read(bucket, row)
        from depthcache.local_tier import read_kept_map, write_kept_map

        kept = read_kept_map(self.local_tier, self.fingerprint, key)
        if kept is not None:
            return kept
        inverse_depth = segment.read(bucket, row)
        write_kept_map(self.local_tier, self.fingerprint, key, inverse_depth)
        return inverse_depth


def _digest(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError as error:
        raise CacheMissError(f"{key!r} is not an image key (64 hexadecimal digits)") from error


def _is_fingerprint_folder(root: str, store: ObjectStore) -> bool:
    try:
        store.get(fmt.FINGERPRINT)
    except CacheNotFoundError:
        return False
    return "-" in root.rpartition("/")[2]


def _read_fingerprint(store: ObjectStore, folder: str) -> dict[str, Any]:
    try:
        text = store.get(f"{folder}/{fmt.FINGERPRINT}")
        document = json.loads(text)
        expected = fmt.fingerprint_folder(document)
    except CacheNotFoundError:
        raise
    except (ValueError, AttributeError) as error:
        raise CacheCorruptError(f"{folder}/fingerprint.json is damaged: {error}") from error
    version = document.get("format_version")
    if isinstance(version, int) and version > fmt.FORMAT_VERSION:
        raise CacheMismatchError(
            f"{folder} has format version {version}; this release reads {fmt.FORMAT_VERSION}"
        )
    if text != fmt.canonical_json(document):
        raise CacheCorruptError(f"{folder}/fingerprint.json is not in canonical form")
    if expected.rpartition("-")[2] != folder.rpartition("-")[2]:
        raise CacheCorruptError(f"{folder}/fingerprint.json belongs to {expected}")
    return dict(document)
