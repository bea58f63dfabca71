"""The stages of a run: depth, train, eval. Each is recorded in the manifest and skipped when done.

A stage names what it depends on (`inputs`). Done with the same inputs: skipped, and its record
stays as it is. Done or stopped with other inputs: what changed is named, and the stage runs again;
the cache and the checkpoints make that cheap. Training refuses to go on under settings that would
make it another experiment: `segtrain.run.resume_rules` says which those are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcache.errors import CacheNotFoundError
from pipeline.datasets.image_lists import list_coco_images, merge_image_lists
from pipeline.errors import FailedItemsError, UsageError
from pipeline.model_hub import require_model
from pipeline.output import require_writable
from pipeline.progress import ProgressReporter
from pipeline.runs.experiment_files import (
    DEMO_MODEL_NAME,
    dataset_paths,
    existing_annotations,
    existing_checkpoint,
    existing_dataset_paths,
    refuse_small_file,
    resolve_model,
)
from pipeline.runs.manifest import Manifest
from pipeline.runs.service_cache import compute_for_service, is_service
from segtrain.run.devices import require_device
from segtrain.run.resume_rules import (
    describe_file,
    describe_refusal,
    describe_trajectory,
    find_changes,
    has_iterations,
)
from segtrain.run.setting_rules import refuse_contradictions
from segtrain.run.starting_weights import require_starting_weights

if TYPE_CHECKING:
    from depthcache import DepthCache
    from depthcache.stage_one.precompute import PrecomputeSummary
    from depthcache.stage_one.settings import StageOneSettings
    from segtrain.depth_source import DepthSettings
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)

# Generated scenes are PNG files.
PHOTOS = frozenset({".jpg", ".jpeg", ".heic", ".webp"})


def run_depth_stage(
    manifest: Manifest, experiment: Experiment, cache_root: str, splits: Sequence[str]
) -> str:
    """Compute the depth of all images of an experiment.

    Args:
        manifest: run record.
        experiment: names the images and the depth model.
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
            for paths in (existing_dataset_paths(experiment, split) for split in splits)
        ]
    )
    model = resolve_model(experiment.depth.model)
    inputs = {
        "model": model,
        "model_files": digest_file_list(sorted(Path(model).glob("*"))),
        "revision": experiment.depth.revision,
        "precision": experiment.depth.precision,
        "cache_root": cache_root,
        "images": digest_file_list(images),
        "num_images": len(images),
    }
    if manifest.is_done("depth", inputs):
        url = str(manifest.stages["depth"].outputs["cache"])
        if "://" in url or Path(url).is_dir():
            logger.info("depth: done before, %d images in %s", len(images), url)
            return url
    tell_changes(manifest, "depth", inputs)
    with manifest.running("depth", inputs) as record:
        summary = compute_depth_maps(
            images,
            model,
            cache_root,
            progress_file=manifest.progress_file,
            **stage_one_options(experiment.depth),
        )
        record.outputs = {"cache": str(summary.cache_url)}
        record.counts = depth_counts(summary)
        record.failures = list(summary.failures)
        manifest.fingerprints["depth"] = str(summary.fingerprint)
        if summary.num_failed:
            raise FailedItemsError(describe_depth_failures(summary.failures))
    return str(summary.cache_url)


def run_train_stage(manifest: Manifest, experiment: Experiment) -> Path:
    """Train, or go on training.

    Args:
        manifest: run record; its folder gets the checkpoints.
        experiment: its data sets and its cache are there.

    Returns:
        The final checkpoint.

    Raises:
        UsageError: the run was started as another experiment.
        TrainingConfigError: settings contradict each other, or name a GPU that is not there.
        CheckpointError: the weights to start from cannot be had.
        MissingDepthError: photos have no depth in the cache.
    """
    inputs = train_inputs(experiment)
    record = manifest.stages.get("train")
    if record is not None and manifest.is_done("train", inputs):
        weights = Path(record.outputs["weights"])
        if weights.is_file():
            logger.info("train: done before, %s", weights)
            return weights
    paths = existing_dataset_paths(experiment, "train")
    from segtrain.depth_source import open_depth

    refuse_unmet_needs(experiment)
    cache = open_depth(experiment.depth)  # raises where there is none
    if cache is not None:
        tell_other_model(cache, experiment.depth.model)
    refuse_other_experiment(manifest, inputs)
    refuse_small_file(paths.annotations, lambda: _read_with_depth(experiment, cache))
    with (
        manifest.running("train", inputs) as record,
        ProgressReporter("train", "iterations") as bar,
    ):
        from segtrain.run.trainer import train_model  # seconds, in which status tells of the run

        summary = train_model(
            experiment,
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


def refuse_unmet_needs(experiment: Experiment) -> None:
    """Refuse a training that cannot start, before torch is loaded and depth is computed for it.

    Raises:
        TrainingConfigError: settings contradict each other, or name a GPU that is not there.
        CheckpointError: the weights to start from cannot be had.
        UsageError: they are no weights.
    """
    refuse_contradictions(experiment)
    require_device(experiment.train.device)
    start = experiment.train.init_checkpoint
    require_starting_weights(start)
    if start and "://" not in start:
        existing_checkpoint(Path(start), "set train.init_checkpoint to another, or to null")


def _read_with_depth(experiment: Experiment, cache: DepthCache | None) -> None:
    """Refuse training files, and photos without depth, as the training would."""
    from segtrain.run.dataset_records import read_training_data, require_depth_maps

    dataset = read_training_data(experiment)
    if cache is not None:
        require_depth_maps(experiment, cache, dataset.records)


def run_eval_stage(manifest: Manifest, experiment: Experiment, weights: Path) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split.

    Args:
        manifest: run record; `eval/metrics.json` in its folder gets the result.
        experiment: names the test split.
        weights: checkpoint.

    Returns:
        COCO metrics, `{"bbox": {...}, "segm": {...}}`.
    """
    from segtrain.run.dataset_records import read_test_data

    file = manifest.folder / "eval" / "metrics.json"
    inputs = {
        "weights": describe_file(str(weights)),
        "annotations": describe_file(str(existing_annotations(experiment, "test"))),
        "images": str(dataset_paths(experiment, "test").images),
        "cityscapes_truth": experiment.data.test_cityscapes_truth,
        "model": experiment.to_plain()["model"],
        "precision": experiment.train.precision,
        "test_size": dataclasses.asdict(experiment.test_size),
    }
    if manifest.is_done("eval", inputs) and file.is_file():
        logger.info("eval: done before, %s", file)
        return read_metrics(file)
    paths = existing_dataset_paths(experiment, "test")
    refuse_small_file(paths.annotations, lambda: read_test_data(experiment))
    tell_changes(manifest, "eval", inputs)
    from segtrain.use.evaluation import evaluate_model

    with (
        manifest.running("eval", inputs) as record,
        ProgressReporter("eval", "images", kept_in=manifest.progress_file) as bar,
    ):
        evaluate_model(experiment, weights, file.parent, on_progress=bar.update)
        record.outputs = {"metrics": str(file), "weights": str(weights)}
    return read_metrics(file)


def read_metrics(file: Path) -> dict[str, Any]:
    """The COCO metrics that an evaluation wrote."""
    return dict(json.loads(file.read_text(encoding="utf-8")))


def stage_one_options(settings: DepthSettings) -> dict[str, Any]:
    """What of a config's `depth` part stage one takes; see `DepthSettings`."""
    return {
        "revision": settings.revision,
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "device": settings.device,
        "workers": settings.workers,
        "shard_rows": settings.shard_rows,
        "scheduler": settings.scheduler,
    }


def compute_depth_maps(
    images: Sequence[Path],
    model: str,
    cache_root: str,
    *,
    progress_file: Path | None = None,
    on_work: Callable[[], object] = lambda: None,
    **options: Any,
) -> PrecomputeSummary:
    """Stage one with progress on stderr.

    Args:
        images: image files.
        model: hub id or local folder.
        cache_root: where the cache is kept: a folder, a bucket, or a service.
        progress_file: of a run, for `pipeline status`.
        on_work: called when maps are missing, before the first is computed, and later again.
        options: of `depthcache.stage_one.settings.StageOneSettings`; None is left out.
    """

    def compute(root: str, given: dict[str, Any]) -> PrecomputeSummary:
        settings = stage_one_settings(given)
        require_writable_root(root)
        from depthcache.stage_one.precompute import precompute_depth

        with ProgressReporter("depth", "images", kept_in=progress_file) as bar:

            def tell_reading(num_done: int, num_total: int, num_failed: int) -> None:
                bar.turn_to("reading")
                bar.update(num_done, num_total, num_failed=num_failed)

            def tell(num_done: int, num_total: int, num_failed: int) -> None:
                on_work()
                bar.turn_to("depth")
                bar.update(num_done, num_total, num_failed=num_failed)

            return precompute_depth(
                images, model, root, settings, progress=tell, reading_progress=tell_reading
            )

    require_model(model, options.get("revision"))
    if Path(model).name == DEMO_MODEL_NAME and any(
        path.suffix.lower() in PHOTOS for path in images
    ):
        logger.warning(
            "the demo depth model has seen generated scenes only: its depth of photos is poor; "
            "name another with --model, for example depth-anything/Depth-Anything-V2-Small-hf"
        )
    given = {key: value for key, value in options.items() if value is not None}
    if is_service(cache_root):
        return compute_for_service(compute, cache_root, given)
    return compute(cache_root, given)


def stage_one_settings(given: Mapping[str, Any]) -> StageOneSettings:
    """Settings of stage one from options that are given.

    Raises:
        UsageError: a value out of range.
    """
    from depthcache.stage_one.settings import StageOneSettings

    try:
        return StageOneSettings(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def require_writable_root(root: str) -> None:
    """Refuse a local cache root that cannot be made or written, before a model is loaded for it.

    Raises:
        UsageError: with the path.
    """
    if "://" not in root:
        require_writable(Path(root), is_folder=True)


def depth_counts(summary: PrecomputeSummary) -> dict[str, int]:
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


def train_inputs(experiment: Experiment) -> dict[str, Any]:
    """What training depends on: settings, the content of its files, and the depth it reads.

    A finished training needs its cache no more, so one that is gone has no fingerprint here.

    Raises:
        UsageError: the annotations are not there.
    """
    from segtrain.depth_source import open_depth

    existing_annotations(experiment, "train")
    try:
        cache = open_depth(experiment.depth)
    except CacheNotFoundError:
        cache = None
    return describe_trajectory(experiment, None if cache is None else cache.fingerprint)


def refuse_other_experiment(manifest: Manifest, inputs: Mapping[str, Any]) -> None:
    """Stop when a begun training would go on under other settings.

    One that failed before its first iteration has nothing to go on with, and takes new ones.

    Raises:
        UsageError: names each field with its value before and now.
    """
    record = manifest.stages.get("train")
    if record is None or not record.inputs:
        return
    if record.state != "done" and not has_iterations(manifest.folder):
        return
    if changes := find_changes(record.inputs, inputs):
        raise UsageError(
            f"training in {manifest.folder} was started with other settings, choose another "
            f"--output: {describe_refusal(changes)}"
        )


def tell_changes(manifest: Manifest, stage: str, inputs: Mapping[str, Any]) -> None:
    """Log every input of a stage that differs from its last run."""
    for key, change in manifest.changed(stage, inputs).items():
        logger.info("%s: changed since the last run: %s: %s", stage, key, change)


def tell_other_model(cache: DepthCache, wanted: str) -> None:
    """Warn when a cache holds another model's depth than the config names."""
    info = cache.info()
    sources = {entry.get("model_source") for entry in info["provenance"]}
    names = {str(info["model"]), *(Path(source).name for source in sources if source)}
    if wanted not in names and Path(wanted).name not in names:
        logger.warning(
            "depth.cache=%s holds the depth of %s, the config names depth.model=%s: the cache's is "
            "read; compute the other one with `pipeline depth`, or set depth.model",
            cache.url, info["model"], wanted,
        )  # fmt: skip


def digest_file_list(files: Iterable[Path]) -> str:
    """Digest of names, sizes and times, so that an edited file is noticed without reading it.

    Folders do not count: a run may be moved with its images.
    """
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat() if path.is_file() else None
        identity = (path.name, stat.st_size, stat.st_mtime_ns) if stat else (path.name, -1, -1)
        digest.update(repr(identity).encode())
    return digest.hexdigest()
