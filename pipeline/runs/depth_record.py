"""The record of `pipeline depth`, which has no run folder: it lies with the cache, for `status`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.runs.manifest import (
    MAX_RECORDED_FAILURES,
    Manifest,
    StageRecord,
    locked_run,
    open_manifest,
)
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
    computed all the same. The record of a call that is done stays as it is when the same call finds
    every map there.

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
        inputs = _describe_maps(model, options)
        begin = functools.cache(lambda: held.enter_context(manifest.running("depth", inputs)))
        if not manifest.is_done("depth", inputs):
            begin()
        summary = compute_depth_maps(
            images, model, root,
            progress_file=manifest.progress_file, on_work=begin, **options,
        )  # fmt: skip
        found = StageRecord(
            outputs={"cache": _absolute(summary.cache_url), "seconds": summary.seconds},
            counts=depth_counts(summary),
            failures=[item | {"path": _absolute(item["path"])} for item in summary.failures],
        )
        kept = manifest.stages["depth"]
        if kept.state != "done" or _outcome(kept) != _outcome(found):
            record = begin()
            record.outputs, record.counts = found.outputs, found.counts
            record.failures = found.failures
            manifest.fingerprints["depth"] = summary.fingerprint
        manifest.progress_file.unlink(missing_ok=True)
    return summary


def _describe_maps(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What maps depend on besides the image, as the record's inputs."""
    names = ("revision", "precision", "bits")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    return {"model": _absolute(model) if Path(model).is_dir() else model, **chosen}


def _absolute(place: str) -> str:
    """A local path from the root of the disk, since records are read from anywhere."""
    return place if "://" in place else str(Path(place).absolute())


def _outcome(record: StageRecord) -> tuple[Any, ...]:
    """What a call found, whoever computed it and when."""
    counts = [record.counts.get(name) for name in ("images", "unique", "failed")]
    return record.outputs.get("cache"), counts, record.failures[:MAX_RECORDED_FAILURES]


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
