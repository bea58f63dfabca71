"""Stage one with a cache service as its cache: computed on this machine's disk, then pushed."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcache.errors import CacheUnreachableError

if TYPE_CHECKING:
    from depthcache.stage_one.precompute import PrecomputeSummary

logger = logging.getLogger(__name__)


def is_service(root: str) -> bool:
    """Whether a cache root is a service, which cannot be written like a folder."""
    return root.startswith(("http://", "https://"))


def local_root_of(url: str) -> str:
    """Folder that holds what this machine computes for a service, until it is pushed and after."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", url.split("://", 1)[1]).strip("-")[:60]
    return str(caches / "boxdepth" / f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:12]}")


def compute_for_service(
    compute: Callable[[str, dict[str, Any]], PrecomputeSummary], url: str, options: dict[str, Any]
) -> PrecomputeSummary:
    """Compute what a service lacks, and push it.

    A service that does not answer costs nothing but the sharing: what it may have is computed, the
    maps stay in `local_root_of(url)`, and a warning names the command that pushes them.

    Args:
        compute: called with (root, options).
        url: the service.
        options: of `depthcache.stage_one.settings.StageOneSettings`.

    Returns:
        The summary; its `cache_url` is the service's, or the local folder's when it is down.

    Raises:
        DepthCacheError: the service refused the maps; they stay in the local folder.
    """
    from depthcache.exchange.transfer import push_cache
    from depthcache.storage.object_store import TOKEN_VARIABLE

    url = url.rstrip("/")
    root = local_root_of(url)
    upstreams = (url, *(options.get("upstreams") or ()))
    summary = compute(root, {**options, "upstreams": upstreams})
    try:
        pushed = push_cache(
            root, url, os.environ.get(TOKEN_VARIABLE), fingerprint=summary.fingerprint
        )
    except CacheUnreachableError as error:
        logger.warning(
            "%s; the maps are in %s, share them later with: pipeline cache push %s %s",
            error, root, root, url,
        )  # fmt: skip
        return summary
    logger.info("pushed %d segments to %s", pushed.num_segments, url)
    summary.cache_url = f"{url}/{summary.fingerprint}"
    return summary
