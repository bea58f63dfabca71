"""Finished runs, read from their folders, and the report on them."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.report.page import write_report
from pipeline.report.run_result import RunResult
from pipeline.runs.manifest import FILE_NAME, Manifest, load_manifest
from pipeline.runs.method_spread import compare_results
from segtrain.run.resume_rules import describe_file

logger = logging.getLogger(__name__)


def run_report_stage(
    manifest: Manifest, results: Sequence[RunResult], *, notes: Sequence[str] = ()
) -> Path:
    """Write `report.html` of a run, unless it shows these results already.

    Args:
        manifest: run record; the report lies in its folder.
        results: what it shows; the last one is captioned as the run's own method.
        notes: sentences beside the outcome.
    """
    path = manifest.folder / "report.html"
    inputs: dict[str, Any] = {
        result.name: {
            "weights": describe_file(str(result.weights)),
            "metrics": dict(result.metrics),
            "curves": describe_file(str(result.folder / "metrics.jsonl")),
        }
        for result in results
    }
    links = find_reviews([manifest], path)
    inputs |= {"links": links, "notes": list(notes)}
    if manifest.is_done("report", inputs) and path.is_file():
        logger.info("report: written before, %s", path)
        return path
    with manifest.running("report", inputs) as record:
        write_report(
            path,
            compare_results(results),
            coverage=describe_coverage(manifest),
            environment=manifest.environment,
            links=links,
            notes=notes,
        )
        record.outputs = {"report": str(path)}
    return path


def find_reviews(manifests: Iterable[Manifest], report: Path) -> dict[str, str]:
    """Review pages of masks that stages of runs, or of a demo around them, wrote.

    Args:
        manifests: run records.
        report: page that links to them.

    Returns:
        Name → address from the report; pages that are gone are left out.
    """
    runs: dict[Path, Manifest] = {}
    for manifest in manifests:
        runs.setdefault(manifest.folder.resolve(), manifest)
        if (home := manifest.home.resolve()) not in runs and (home / FILE_NAME).is_file():
            runs[home] = load_manifest(manifest.home)
    pages = [
        (name, run.folder, Path(str(record.outputs["review"])))
        for run in runs.values()
        for name, record in run.stages.items()
        if "review" in record.outputs
    ]
    is_one = len({folder for _, folder, _ in pages}) <= 1
    return {
        f"Masks of the {name}{'' if is_one else f' in {folder}'}, to review": Path(
            os.path.relpath(page, report.parent)
        ).as_posix()
        for name, folder, page in pages
        if page.is_file()
    }


def load_results(folders: Sequence[Path]) -> list[tuple[RunResult, Manifest]]:
    """Read finished runs from their folders, each under a name of its own.

    Raises:
        UsageError: a run has no evaluation yet, is named twice, or is a folder of runs.
    """
    return [_load_result(*named) for named in zip(folders, name_runs(folders), strict=True)]


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents as tell those of the same name apart.

    Raises:
        UsageError: a folder is there twice.
    """
    paths = [folder.resolve() for folder in folders]
    names = []
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path} is named twice; name different runs")
        length = 1
        while sum(other.parts[-length:] == path.parts[-length:] for other in paths) > 1:
            length += 1
        names.append(Path(*path.parts[-length:]).as_posix())
    return names


def _load_result(folder: Path, name: str) -> tuple[RunResult, Manifest]:
    from pipeline.config import load_experiment
    from pipeline.runs.demo_data import make_absent_demo_data

    file = folder / "eval" / "metrics.json"
    if not file.is_file():
        _refuse_folder_of_runs(folder)
    manifest = load_manifest(folder)
    if review := manifest.stages.get("review"):
        page = review.outputs.get("page", "not written yet")
        raise UsageError(f"{folder} is a run of `pipeline masks`; its page is {page}")
    if not file.is_file() or "path" not in manifest.config:
        raise UsageError(f"{folder} is not evaluated yet; `pipeline resume {folder}` goes on")
    path = manifest.config["path"]
    assignments = manifest.config["assignments"]
    experiment = load_experiment(path, assignments)
    experiment = make_absent_demo_data(path, assignments, experiment, folder)
    depth = manifest.stages.get("depth")
    if depth is not None and "cache" in depth.outputs:
        experiment = experiment.with_depth_cache(depth.outputs["cache"])
    train = manifest.stages.get("train")
    weights = Path(train.outputs["weights"]) if train and "weights" in train.outputs else None
    metrics = json.loads(file.read_text(encoding="utf-8"))
    result = RunResult(
        name=name, folder=folder, experiment=experiment, weights=weights, metrics=metrics
    )
    return result, manifest


def _refuse_folder_of_runs(folder: Path) -> None:
    """Refuse a folder, such as a demo's, that evaluated runs lie in, with the command for them.

    Raises:
        UsageError: it is one.
    """
    runs = sorted(str(file.parents[1]) for file in folder.glob("*/eval/metrics.json"))
    if not runs:
        return
    report = folder / "report.html"
    existing = f" The report on all of them is {report}." if report.is_file() else ""
    raise UsageError(
        f"{folder} is not one run but holds {len(runs)} evaluated ones; to compare them: "
        f"{shlex.join(['pipeline', 'report', *runs])}.{existing}"
    )


def describe_coverage(manifest: Manifest) -> dict[str, str]:
    """What the depth stage recorded, as label → text."""
    record = manifest.stages.get("depth")
    if record is None or not record.counts:
        return {}
    num_images = record.counts.get("images", 0)
    num_failed = record.counts.get("failed", 0)
    share = (num_images - num_failed) / num_images if num_images else 0.0
    return {
        "images": str(num_images),
        "with depth": f"{num_images - num_failed} ({share:.1%})",
        "failed": str(num_failed),
        "model": str(record.inputs.get("model", "")),
        "cache": str(record.outputs.get("cache", "")),
    }
