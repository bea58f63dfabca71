"""The demo: the same scenes, start and schedule for BoxInst, its control and depth."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import load_experiment
from pipeline.masks.masks_demo import MasksDemo, run_masks_demo
from pipeline.report.run_result import RunResult
from pipeline.runs.demo_data import make_demo_split
from pipeline.runs.experiment_files import SPLITS
from pipeline.runs.manifest import Manifest, locked_run, open_manifest
from pipeline.runs.method_spread import compare_results
from pipeline.runs.results import run_report_stage
from pipeline.runs.stages import run_depth_stage, run_eval_stage, run_train_stage

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)

# Name in the table → config. They differ only in the switches of the method. Whoever claims that
# depth helps has to beat the control, which links the background as the depth term does. Ours is
# what won in docs/results.md; the paper's own method is configs/demo/full.py.
METHODS = {
    "BoxInst": "configs/demo/boxinst.py",
    "control": "configs/demo/control.py",
    "ours": "configs/demo/depth_links.py",
}
# Trained first; all methods start from its weights.
START = "configs/demo/start.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made.

    Attributes:
        metrics: method → COCO metrics in per cent.
        report: the report file.
        weights: method → checkpoint.
        cache: the depth cache.
        labelled: what the labeller made of other scenes, from boxes alone.
        seconds: wall-clock time of this call.
    """

    metrics: dict[str, dict[str, Any]]
    report: Path
    weights: dict[str, Path]
    cache: str
    labelled: MasksDemo
    seconds: float


def run_demo(output: Path, *, seed: int) -> DemoResult:
    """Make scenes, compute depth, train all methods, evaluate, label, report. Resumes.

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
            stages=["data", "depth", "start", *METHODS, "labeller", "report"],
        )
        experiments = {path: load_experiment(path) for path in (START, *METHODS.values())}
        experiments = _make_data(manifest, experiments, seed)
        cache = run_depth_stage(manifest, experiments[START], str(output / "depth-cache"), SPLITS)
        experiments = {path: one.with_depth_cache(cache) for path, one in experiments.items()}
        with manifest.repeating("start", {"seed": seed, "config": START}) as record:
            start = experiments[START]
            start_weights = run_train_stage(_open_run(output, START, start, ["train"]), start)
            record.outputs = {"weights": str(start_weights)}
        results = []
        for name, path in METHODS.items():
            experiment = experiments[path].with_train(init_checkpoint=str(start_weights))
            with manifest.repeating(name, {"seed": seed, "config": path}) as record:
                results.append(_train_and_evaluate(output, name, path, experiment))
                record.outputs = {"weights": str(results[-1].weights)}
        results = compare_results(results)
        with manifest.repeating("labeller", {"seed": seed}) as record:
            # A finished one is read again rather than made: the same call resumes.
            held_out = Path(experiments[START].data.test_json).parent
            labelled = run_masks_demo(output / "labeller", held_out, seed=seed)
            record.outputs = {"review": str(labelled.review), "masks": str(labelled.masks)}
        report = run_report_stage(manifest, results, notes=[labelled.describe_held_out()])
    return DemoResult(
        metrics={result.name: dict(result.metrics) for result in results},
        report=report,
        weights={result.name: result.weights for result in results if result.weights is not None},
        cache=cache,
        labelled=labelled,
        seconds=time.monotonic() - started,
    )


def _make_data(
    manifest: Manifest, experiments: dict[str, Experiment], seed: int
) -> dict[str, Experiment]:
    with manifest.repeating("data", {"seed": seed}) as record:
        for split in SPLITS:
            # The seed is in the name: another seed must not reuse these scenes.
            folder = manifest.folder / "data" / f"seed-{seed}" / split
            made = make_demo_split(folder, split, seed=seed)
            record.outputs[split] = str(folder)
            experiments = {
                path: experiment.with_dataset(split, made.annotations, made.images)
                for path, experiment in experiments.items()
            }
    return {path: one.with_train(seed=seed) for path, one in experiments.items()}


def _train_and_evaluate(output: Path, name: str, path: str, experiment: Experiment) -> RunResult:
    manifest = _open_run(output, path, experiment, ["train", "eval"])
    weights = run_train_stage(manifest, experiment)
    metrics = run_eval_stage(manifest, experiment, weights)
    return RunResult(
        name=name, folder=manifest.folder, experiment=experiment, weights=weights, metrics=metrics
    )


def _open_run(output: Path, path: str, experiment: Experiment, stages: list[str]) -> Manifest:
    """The manifest of one config's own folder under the demo's."""
    return open_manifest(
        output / Path(path).stem,
        command=[],
        config={"path": path, "assignments": [], "resolved": experiment.to_plain()},
        stages=stages,
        home=output,
    )
