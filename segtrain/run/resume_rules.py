"""What a run must share with the run that it resumes: one rule for the trainer and the command."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

# Settings that a resumed run may change. They do not move the weights, but for rounding where the
# number of processes changes: losses are normalised over all of them.
FREE_ON_RESUME = {
    "train": (
        "deterministic",
        "device",
        "checkpoint_period",
        "keep_checkpoints",
        "log_period",
        "tensorboard",
        "output_dir",
        "deliver",
        "num_processes",
        "num_machines",
        "machine_rank",
        "dist_url",
    ),
    "dataloader": (
        "test",
        "train.num_workers",
        "train.prefetch_batches",
        "train.keep_in_memory",
    ),
    # Files count by their content, wherever they lie.
    "data": (
        "name",
        "train_images",
        "test_json",
        "test_images",
        "test_cityscapes_truth",
    ),
}
_ABSENT = "absent"


def describe_trajectory(experiment: Experiment, depth_fingerprint: str | None) -> dict[str, Any]:
    """What determines a run's weights: all settings but the free ones, and what its files hold.

    Args:
        experiment: the run's.
        depth_fingerprint: of the cache that training reads; None when it reads none.

    Returns:
        Dotted setting → plain value. Files stand there as the sha256 of their content, so that a
        folder may be moved; depth as its fingerprint, which names the model and how it was run.
    """
    plain = experiment.to_plain()
    plain["data"]["train_json"] = describe_file(experiment.data.train_json)
    if experiment.train.init_checkpoint is not None:
        plain["train"]["init_checkpoint"] = describe_file(experiment.train.init_checkpoint)
    plain["depth"] = {"enabled": experiment.depth.enabled, "fingerprint": depth_fingerprint}
    return {
        name: value
        for part, settings in plain.items()
        for name, value in _flatten(settings, part)
        if not _is_free(name)
    }


def has_iterations(run_dir: Path) -> bool:
    """Whether a run made iterations that are kept or told; one that made none may start anew."""
    metrics, weights = run_dir / "metrics.jsonl", run_dir / "model_final.pth"
    return (
        weights.is_file()
        or (metrics.is_file() and metrics.stat().st_size > 0)
        or any((run_dir / "checkpoints").glob("iteration_*.pth"))
    )


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Settings in which two trajectories differ, so that one cannot go on as the other.

    Args:
        before: of the run's past iterations.
        now: of what is to come.

    Returns:
        Dotted setting → `before → now`.
    """
    return {
        name: f"{before.get(name, _ABSENT)} → {now.get(name, _ABSENT)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, _ABSENT) != now.get(name, _ABSENT)
    }


def describe_refusal(changes: Mapping[str, str]) -> str:
    """Why a run with these changes is another one, and what to do; names at most eight."""
    named = "; ".join(f"{name}: {change}" for name, change in list(changes.items())[:8])
    more = f"; and {len(changes) - 8} more" if len(changes) > 8 else ""
    return (
        f"{named}{more}. Learning rate, warm-ups and distillation are shares of the whole run, and "
        "images are drawn by seed and batch, so the past iterations would have been others; "
        "restore the setting, or start a new run in another folder, for example from these weights "
        "with train.init_checkpoint"
    )


def describe_file(name: str) -> str:
    """A file as `sha256:` and the digest of its content; what is no file here keeps its name."""
    path = Path(name)
    if not path.is_file():
        return name
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _flatten(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, item in value.items() for leaf in _flatten(item, f"{name}.{key}")]
    return [(name, value)]


def _is_free(name: str) -> bool:
    part, _, rest = name.partition(".")
    return any(rest == free or rest.startswith(f"{free}.") for free in FREE_ON_RESUME.get(part, ()))
