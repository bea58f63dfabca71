"""The stages of a run: depth, train, eval. Each is recorded in the manifest and skipped when done.

A stage names what it depends on (`inputs`). Done with the same inputs: skipped. Done or stopped
with other inputs: what changed is named, and the stage runs again; the cache and the checkpoints
make that cheap. Training refuses to go on under settings that would make it another experiment.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import flatten, take_snapshot
from pipeline.errors import FailedItemsError, UsageError
from pipeline.runs.experiment import (
    dataset_paths,
    depth_model,
    existing_annotations,
    existing_dataset_paths,
    set_depth_cache,
)
from pipeline.datasets.image_lists import list_coco_images, merge_image_lists
from pipeline.runs.manifest import Manifest, digest_file, write_atomically
from pipeline.output import to_jsonable
from pipeline.progress import ProgressReporter
from pipeline.runs.service_cache import compute_for_service, is_service

logger = logging.getLogger(__name__)

# A run may go on when these differ: they change how long or how fast, not what is learnt so far.
_RESUMABLE_KEYS = (
    "train.max_iter",
    "train.checkpoint_period",
    "train.keep_checkpoints",
    "train.log_period",
    "train.tensorboard",
    "train.output_dir",
    "train.device",
    "train.num_processes",
    "train.num_machines",
    "train.machine_rank",
    "train.dist_url",
    "schedule",  # the trainer itself refuses a schedule that contradicts the iterations done
    "dataloader.train.num_workers",
    "dataloader.train.prefetch_batches",
    "data.train_json",  # its digest counts, not where it lies
    "data.train_images",
)
_KEYS_OF_OTHER_STAGES = ("dataloader.test", "depth", "data.test")


def run_depth_stage(manifest: Manifest, config: Any, cache_root: str, splits: Sequence[str]) -> str:
    """Compute the depth of all images of a config, and point the config at the cache.

    Args:
        manifest: run record.
        config: loaded config; its cache is set.
        cache_root: where the cache is kept.
        splits: splits whose images are needed.

    Returns:
        URL of the cache folder.

    Raises:
        FailedItemsError: some images have no depth, so training could not use them.
    """
    images = merge_image_lists(
        [
            list_coco_images(paths.annotations, paths.images)
            for paths in (existing_dataset_paths(config, split) for split in splits)
        ]
    )
    inputs = {
        "model": depth_model(config),
        "revision": config.depth.get("revision"),
        "precision": str(config.depth.get("precision", "fp32")),
        "cache_root": cache_root,
        "images": digest_image_list(images),
        "num_images": len(images),
    }
    if manifest.is_done("depth", inputs):
        url = str(manifest.stages["depth"].outputs["cache"])
        logger.info("depth: done before, %d images in %s", len(images), url)
        set_depth_cache(config, url)
        return url
    tell_changes(manifest, "depth", inputs)
    with manifest.running("depth", inputs) as record:
        summary = compute_depth_maps(
            images,
            inputs["model"],
            cache_root,
            revision=config.depth.get("revision"),
            precision=inputs["precision"],
            batch_size=config.depth.get("batch_size"),
        )
        record.outputs = {"cache": str(summary.cache_url)}
        record.counts = depth_counts(summary)
        record.failures = list(summary.failures)
        manifest.fingerprints["depth"] = str(summary.fingerprint)
        if summary.num_failed:
            raise FailedItemsError(describe_depth_failures(summary.failures))
    set_depth_cache(config, str(summary.cache_url))
    return str(summary.cache_url)


def run_train_stage(manifest: Manifest, config: Any) -> Path:
    """Train, or go on training.

    Args:
        manifest: run record; its folder gets the checkpoints.
        config: loaded config, with data sets and cache set.

    Returns:
        The final checkpoint.

    Raises:
        UsageError: the run was started with other settings.
    """
    record = manifest.stages.get("train")
    if record is not None and record.state == "done":
        weights = Path(record.outputs["weights"])
        if manifest.is_done("train", train_inputs(config)) and weights.is_file():
            logger.info("train: done before, %s", weights)
            return weights
    from segtrain.run.train_settings import TrainSettings, read_settings
    from segtrain.run.trainer import train_model

    read_settings(config.train, TrainSettings)  # a wrong setting before a missing file
    inputs = train_inputs(config)
    existing_dataset_paths(config, "train")
    tell_changes(manifest, "train", inputs)
    refuse_other_experiment(manifest, inputs)
    with (
        manifest.running("train", inputs) as record,
        ProgressReporter("train", "iterations") as bar,
    ):
        summary = train_model(
            config,
            manifest.folder,
            resume=True,
            on_progress=lambda iteration, max_iter, _: bar.update(iteration, max_iter),
        )
        record.outputs = {"weights": str(summary.final_weights), "seconds": summary.seconds}
        record.counts = {
            "iterations": summary.num_iterations,
            "images": summary.num_images,
            "boxes": summary.num_boxes,
        }
        record.failures = [
            {"reason": reason, "count": count} for reason, count in summary.dropped.items() if count
        ]
    return Path(record.outputs["weights"])


def run_eval_stage(manifest: Manifest, config: Any, weights: Path) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split.

    Args:
        manifest: run record; `eval/metrics.json` in its folder gets the result.
        config: loaded config.
        weights: checkpoint.

    Returns:
        COCO metrics, `{"bbox": {...}, "segm": {...}}`.
    """
    file = manifest.folder / "eval" / "metrics.json"
    inputs = {
        "weights": digest_file(weights),
        "annotations": digest_file(existing_annotations(config, "test")),
        "images": str(dataset_paths(config, "test").images),
        "settings": {
            key: value
            for key, value in flatten(take_snapshot(config))
            if key.startswith("dataloader.test")
        },
    }
    if manifest.is_done("eval", inputs) and file.is_file():
        logger.info("eval: done before, %s", file)
        return dict(json.loads(file.read_text(encoding="utf-8")))
    existing_dataset_paths(config, "test")
    tell_changes(manifest, "eval", inputs)
    from segtrain.use.evaluation import evaluate_model

    with manifest.running("eval", inputs) as record, ProgressReporter("eval", "images") as bar:
        file.parent.mkdir(parents=True, exist_ok=True)
        metrics = dict(evaluate_model(config, weights, file.parent, on_progress=bar.update))
        write_atomically(file, json.dumps(to_jsonable(metrics), indent=2) + "\n")
        record.outputs = {"metrics": str(file), "weights": str(weights)}
    return dict(json.loads(file.read_text(encoding="utf-8")))


def compute_depth_maps(images: Sequence[Path], model: str, cache_root: str, **options: Any) -> Any:
    """Stage one with progress on stderr.

    Args:
        images: image files.
        model: hub id or local folder.
        cache_root: where the cache is kept: a folder, a bucket, or a service.
        options: further arguments of `depthcache.stage_one.precompute.precompute_depth`; None is left out.

    Returns:
        `depthcache.stage_one.precompute.PrecomputeSummary`.
    """
    from depthcache.stage_one.precompute import precompute_depth

    def compute(root: str, given: dict[str, Any]) -> Any:
        with ProgressReporter("depth", "images") as progress:
            return precompute_depth(images, model, root, progress=progress.update, **given)

    given = {key: value for key, value in options.items() if value is not None}
    if is_service(cache_root):
        return compute_for_service(compute, cache_root, given)
    return compute(cache_root, given)


def depth_counts(summary: Any) -> dict[str, int]:
    """The counts of a stage-one summary."""
    names = ("num_images", "num_unique", "num_present", "num_computed", "num_failed")
    return {name.removeprefix("num_"): int(getattr(summary, name)) for name in names}


def describe_depth_failures(failures: Sequence[Mapping[str, Any]]) -> str:
    """A message naming the first failed images with their reasons."""
    shown = "; ".join(f"{item['path']}: {item['reason']}" for item in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return (
        f"{len(failures)} images have no depth: {shown}{more}. "
        "Repair or remove them (and their entries in the annotations), then run the command again"
    )


def train_inputs(config: Any) -> dict[str, Any]:
    """What training depends on: its part of the config and the annotation file's digest."""
    settings = {
        key: value
        for key, value in flatten(take_snapshot(config))
        if not key.startswith(_KEYS_OF_OTHER_STAGES)
    }
    annotations = existing_annotations(config, "train")
    return {"settings": settings, "annotations": digest_file(annotations)}


def refuse_other_experiment(manifest: Manifest, inputs: Mapping[str, Any]) -> None:
    """Stop when a begun training would go on under other settings.

    Raises:
        UsageError: names each field with its value before and now.
    """
    record = manifest.stages.get("train")
    if record is None or record.state == "pending":
        return
    blocking = {
        key: change
        for key, change in manifest.changed("train", inputs).items()
        if not key.removeprefix("settings.").startswith(_RESUMABLE_KEYS)
    }
    if blocking:
        named = "; ".join(
            f"{key.removeprefix('settings.')}: {text}" for key, text in blocking.items()
        )
        raise UsageError(
            f"training in {manifest.folder} was started with other settings ({named}); "
            "set them back, or choose another --output"
        )


def tell_changes(manifest: Manifest, stage: str, inputs: Mapping[str, Any]) -> None:
    """Log every input of a stage that differs from its last run."""
    for key, change in manifest.changed(stage, inputs).items():
        logger.info("%s: changed since the last run: %s: %s", stage, key, change)


def digest_image_list(images: Sequence[Path]) -> str:
    """Digest of names, sizes and times, so that an edited image is noticed without reading it."""
    import hashlib

    digest = hashlib.sha256()
    for path in images:
        stat = path.stat() if path.is_file() else None
        identity = (str(path), stat.st_size, stat.st_mtime_ns) if stat else (str(path), -1, -1)
        digest.update(repr(identity).encode())
    return digest.hexdigest()
