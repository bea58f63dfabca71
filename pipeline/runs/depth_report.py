"""What calls of `pipeline depth` did, in words, from their records beside the maps."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.output import format_seconds
from pipeline.progress import format_progress_line
from pipeline.runs.depth_record import records_folder
from pipeline.runs.manifest import FILE_NAME, Manifest, load_manifest

_GONE = "the cache is no longer there"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthCall:
    """One call of `pipeline depth`.

    Attributes:
        folder: its record.
        state: done, running, stopped, interrupted or failed.
        outcome: what happened, in one sentence.
        next: what to do next.
        facts: label → text: command, model, cache, convention, times.
        counts: of images and maps, as the record has them.
        failures: {"path", "reason"} of images without depth; of many the first 1000.
        environment: versions, as the manifest has them.
    """

    folder: Path
    state: str
    outcome: str
    next: str
    facts: dict[str, str]
    counts: dict[str, int]
    failures: list[dict[str, str]]
    environment: dict[str, Any]


def find_depth_records(place: str) -> list[Path]:
    """Records of `pipeline depth` that a name means; none for a folder that is something else.

    Args:
        place: one record, or a cache root: a folder, a bucket or a service.

    Raises:
        UsageError: it is a cache without a record on this machine, or one cache in a root.
    """
    from depthcache.format.segment_format import FINGERPRINT

    folder, records = Path(place), records_folder(place)
    if (folder / FILE_NAME).is_file():
        return [folder] if load_manifest(folder).command[:1] == ["depth"] else []
    if found := sorted(file.parent for file in records.glob(f"*/{FILE_NAME}")):
        return found
    if (folder / FINGERPRINT).is_file():
        raise UsageError(
            f"{place} is one cache in a root of caches: `pipeline report "
            f"{shlex.quote(str(folder.absolute().parent))}` says what `pipeline depth` did there, "
            f"`pipeline cache info {shlex.quote(place)}` what this one holds"
        )
    if "://" in place or any(folder.glob(f"*/{FINGERPRINT}")):
        raise UsageError(
            f"{place} has no record of `pipeline depth` on this machine; "
            f"`pipeline cache ls {shlex.quote(place)}` says what it holds"
        )
    return []


def describe_depth_call(run: Mapping[str, Any]) -> DepthCall:
    """Say what a call did.

    Args:
        run: its state, as `pipeline.commands.status.describe_run` gives it.
    """
    folder = Path(run["run"])
    manifest, stage = load_manifest(folder), run["stages"]["depth"]
    cache = str(stage["outputs"].get("cache", ""))
    facts = _list_facts(manifest, cache)
    return DepthCall(
        folder=folder,
        state=stage["state"],
        outcome=_tell_outcome(run, stage, _short_name(facts.get("model", "a model"))),
        next=_tell_next(run, stage, cache, is_gone=facts.get("maps in the cache") == _GONE),
        facts=facts,
        counts=dict(stage["counts"]),
        failures=list(stage["failures"]),
        environment=manifest.environment,
    )


def _tell_outcome(run: Mapping[str, Any], stage: Mapping[str, Any], model: str) -> str:
    progress = run["progress"]
    so_far = "" if progress is None else f": {format_progress_line(progress)}"
    if stage["state"] == "running":
        return f"Depth from {model} is being computed{so_far or ': nothing is counted yet'}."
    if stage["state"] == "failed":
        return f"The call failed: {stage['error']}; the maps that are done are kept."
    if stage["state"] != "done":
        return f"The call was stopped before its end{so_far}; the maps that are done are kept."
    counts, seconds = stage["counts"], stage["outputs"].get("seconds")
    num_images, num_failed = counts["images"], counts["failed"]
    images = _count(num_images, "image")
    if counts["unique"] < num_images:
        images += f" ({counts['unique']} different)"
    num_covered = num_images - num_failed
    whole = {0: "None of", num_images: "All"}.get(num_covered, f"{num_covered} of")
    parts = []
    if counts["computed"]:
        parts.append(f"{_count(counts['computed'], 'map')} computed")
        if seconds:
            rate = counts["computed"] / seconds
            parts[0] += f" in {format_seconds(seconds)} ({rate:.{1 if rate >= 1 else 2}f} maps/s)"
    if counts["present"]:
        parts.append(f"{_count(counts['present'], 'map')} there before")
    if num_failed:
        parts.append(f"{_count(num_failed, 'image')} failed")
    return f"{whole} {images} have depth from {model}: {', '.join(parts)}."


def _tell_next(
    run: Mapping[str, Any], stage: Mapping[str, Any], cache: str, *, is_gone: bool
) -> str:
    again = shlex.join(["pipeline", "resume", run["run"]])
    if stage["state"] == "running":
        return f"wait; {shlex.join(['pipeline', 'status', run['run']])} says how far it is"
    if stage["state"] != "done":
        return again
    if is_gone:
        return f"the maps are no longer there; to compute them again: {again}"
    if stage["counts"]["failed"]:
        return f"repair or remove the images that failed, then {again}"
    root = cache.rpartition("/")[0]
    return f"give the maps to `pipeline masks` as --cache {root}, or to a config as depth.cache"


def _list_facts(manifest: Manifest, cache: str) -> dict[str, str]:
    from depthcache import DepthCache
    from depthcache.errors import CacheNotFoundError, DepthCacheError

    record = manifest.stages["depth"]
    facts = {name: str(value) for name, value in record.inputs.items()}
    if cache:
        facts["cache"], facts["fingerprint"] = cache, cache.rpartition("/")[2]
        try:
            info = DepthCache.open(cache).info()
        except CacheNotFoundError:
            facts["maps in the cache"] = _GONE
        except DepthCacheError as error:
            facts["convention"] = f"not known: {error}"
        else:
            facts.setdefault("model", str(info["model"]))
            facts["convention"] = str((info["convention"] or {}).get("stored", "not recorded"))
            facts["maps in the cache"] = str(info["num_maps"])
    facts |= {name: str(count) for name, count in record.counts.items()}
    if "seconds" in record.outputs:
        facts["duration"] = format_seconds(record.outputs["seconds"])
    facts["recorded"] = manifest.updated
    return facts | {"command": shlex.join(["pipeline", *manifest.command])}


def _short_name(model: str) -> str:
    """A hub id as it is; of a local folder its last part."""
    return Path(model).name if Path(model).is_absolute() else model


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
