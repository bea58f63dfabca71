"""The demo: the same scenes, initialisation and schedule for plain BoxInst and the full method."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import load_config, take_snapshot
from pipeline.runs.experiment import SPLITS, set_dataset_paths, set_depth_cache
from pipeline.runs.manifest import Manifest, locked_run, open_manifest
from pipeline.report.page import RunResult, write_report
from pipeline.runs.run_config import make_demo_split
from pipeline.runs.stages import run_depth_stage, run_eval_stage, run_train_stage

logger = logging.getLogger(__name__)

# Name in the table → config. The two differ only in the switches of the method.
METHODS = {"BoxInst": "configs/demo/boxinst.py", "ours": "configs/demo/full.py"}
# Trained first; both methods start from its weights.
START = "configs/demo/start.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made.

    Attributes:
        metrics: method → COCO metrics in per cent.
        report: the report file.
        weights: method → checkpoint.
        cache: the depth cache.
        seconds: wall-clock time of this call.
    """

    metrics: dict[str, dict[str, Any]]
    report: Path
    weights: dict[str, Path]
    cache: str
    seconds: float


def run_demo(output: Path, *, seed: int) -> DemoResult:
    """Make scenes, compute depth, train both methods, evaluate, report. Resumes what is begun.

    Args:
        output: folder for everything.
        seed: of scenes, initialisation and data order.
    """
    started = time.monotonic()
    with locked_run(output):
        manifest = open_manifest(
            output,
            command=["demo", "--output", str(output), "--seed", str(seed)],
            config={"resolved": {"seed": seed, "methods": METHODS}},
            stages=["data", "depth", "start", *METHODS, "report"],
        )
        configs = {name: load_config(path) for name, path in METHODS.items()}
        start = load_config(START)
        _make_data(manifest, [start, *configs.values()], seed)
        cache = _compute_depth(manifest, configs)
        with manifest.running("start", {"seed": seed, "config": START}) as record:
            start_weights = run_train_stage(_open_stage(output, START, start, ["train"]), start)
            record.outputs = {"weights": str(start_weights)}
        results = []
        for name, config in configs.items():
            config.train.init_checkpoint = str(start_weights)
            with manifest.running(name, {"seed": seed, "config": METHODS[name]}) as record:
                results.append(_train_and_evaluate(output, name, config))
                record.outputs = {"weights": str(results[-1].weights)}
        with manifest.running("report", {}) as record:
            report = write_report(output / "report.html", results, manifest)
            record.outputs = {"report": str(report)}
    return DemoResult(
        metrics={result.name: dict(result.metrics) for result in results},
        report=report,
        weights={result.name: result.weights for result in results if result.weights is not None},
        cache=cache,
        seconds=time.monotonic() - started,
    )


def _make_data(manifest: Manifest, configs: Sequence[Any], seed: int) -> None:
    with manifest.running("data", {"seed": seed}) as record:
        for split in SPLITS:
            # The seed is in the name: another seed must not reuse these scenes.
            folder = manifest.folder / "data" / f"seed-{seed}" / split
            paths = make_demo_split(folder, split, seed=seed)
            record.outputs[split] = str(folder)
            for config in configs:
                set_dataset_paths(config, split, paths)
                config.train.seed = seed


def _compute_depth(manifest: Manifest, configs: dict[str, Any]) -> str:
    first, *others = configs.values()
    cache = run_depth_stage(manifest, first, str(manifest.folder / "depth-cache"), SPLITS)
    for config in others:
        set_depth_cache(config, cache)
    return cache


def _train_and_evaluate(output: Path, name: str, config: Any) -> RunResult:
    manifest = _open_stage(output, METHODS[name], config, ["train", "eval"])
    weights = run_train_stage(manifest, config)
    metrics = run_eval_stage(manifest, config, weights)
    return RunResult(
        name=name, folder=manifest.folder, config=config, weights=weights, metrics=metrics
    )


def _open_stage(output: Path, path: str, config: Any, stages: list[str]) -> Manifest:
    """The manifest of one config's own folder under the demo's."""
    return open_manifest(
        output / Path(path).stem,
        command=[],
        config={"path": path, "assignments": [], "resolved": take_snapshot(config)},
        stages=stages,
    )
