"""Which caches a root holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthcache.cache_reader import DepthCache
from depthcache.errors import CacheNotFoundError
from depthcache.format import segment_format as fmt
from depthcache.storage.object_stores import open_store


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
