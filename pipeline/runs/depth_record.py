"""The record of `pipeline depth`, which has no run folder: it lies with the cache, for `status`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.runs.manifest import Manifest, locked_run, open_manifest
from pipeline.runs.service_cache import local_root_of

if TYPE_CHECKING:
    from depthcache.stage_one.precompute import PrecomputeSummary

logger = logging.getLogger(__name__)

# Readers of a cache root pass over names that start with a dot.
_FOLDER_NAME = ".runs"


def records_folder(root: str) -> Path:
    """Folder of the records on a cache root; of a bucket and of a service it is on this machine."""
    home = local_root_of(root.rstrip("/")) if "://" in root else root
    return Path(home).absolute() / _FOLDER_NAME


def compute_recorded_maps(
    images: Sequence[Path],
    model: str,
    root: str,
    *,
    command: Sequence[str],
    identity: Sequence[str],
    options: Mapping[str, Any],
) -> PrecomputeSummary:
    """`compute_depth_maps` with a record beside the maps.

    Nothing depends on the record: where it cannot be kept, or another process keeps it, depth is
    computed all the same.

    Args:
        images: image files.
        model: hub id or local folder.
        root: cache root.
        command: arguments that `pipeline resume` repeats.
        identity: those of them that say which maps are meant; equal ones share a record.
        options: of `depthcache.stage_one.settings.StageOneSettings`; None is left out.

    Raises:
        UsageError: an option is out of range, or the root cannot be written; no record is made.
    """
    from pipeline.runs.stages import (
        compute_depth_maps,
        depth_counts,
        require_writable_root,
        stage_one_settings,
    )

    stage_one_settings({key: value for key, value in options.items() if value is not None})
    require_writable_root(root)
    with contextlib.ExitStack() as held:
        manifest = _open_record(held, root, command, identity)
        if manifest is None:
            return compute_depth_maps(images, model, root, **options)
        with manifest.running("depth", {}) as record:
            summary = compute_depth_maps(
                images, model, root, progress_file=manifest.progress_file, **options
            )
            record.outputs = {"cache": str(summary.cache_url)}
            record.counts = depth_counts(summary)
            record.failures = list(summary.failures)
    return summary


def _open_record(
    held: contextlib.ExitStack, root: str, command: Sequence[str], identity: Sequence[str]
) -> Manifest | None:
    name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:12]
    folder = records_folder(root) / name
    try:
        held.enter_context(locked_run(folder))
        home = folder.parents[1]
        return open_manifest(folder, command=command, config={}, stages=["depth"], home=home)
    except (PipelineError, OSError) as error:
        logger.info("no record of this call for `pipeline status`: %s", error)
        return None
