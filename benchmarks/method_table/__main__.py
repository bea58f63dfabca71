"""Command line of the table; see the package's text."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.method_table.labels import cut_scenes, label_scenes
from benchmarks.method_table.processes import Job, run_jobs
from benchmarks.method_table.rows import ROWS
from benchmarks.method_table.scenes import Scenes, make_scenes, make_start_scenes, predict_depth
from benchmarks.method_table.table import draw_table, read_results
from benchmarks.method_table.training import BUDGETS, Budget, run_row, train_start, warm_up
from pipeline.resources import demo_dpt_path
from segtrain.run.resume_rules import describe_file

# The first of the laboratory's.
_NUM_SCENES = {"train": 300, "choose": 80, "test": 80}
LABELLERS = {
    "labels": {"reads_depth": False, "learns_painted": False},
    "labels-with-depth": {"reads_depth": True, "learns_painted": False},
    "labels-salient": {"reads_depth": False, "learns_painted": True},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method_table")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and measure what is missing")
    run.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--workers", type=int, default=1, help="processes side by side")
    run.add_argument("--threads", type=int, default=1, help="of each of them")
    run.add_argument("--seconds", type=float, default=1e9, help="after which nothing begins")
    run.add_argument("--start", type=Path, help="weights that all seeds start from; else trained")
    run.add_argument("--depth-model", type=Path, help="for predicted depth, if it exists by then")
    run.add_argument("--scratch", type=Path, help="for pictures and weights; else in the output")
    run.add_argument("--num-scenes", type=int, help="of each split; for trying the command")
    run.add_argument(
        "--budget", default="gpu", choices=list(BUDGETS), help="what follows changes it"
    )
    for field in dataclasses.fields(Budget):
        run.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    table = verbs.add_parser("table", help="print what was measured as markdown")
    for verb in (run, table):
        verb.add_argument("--split", default="test", choices=["choose", "test"])
        verb.add_argument("--output", type=Path, default=Path("output/method-table"))
    arguments = parser.parse_args(argv)
    if arguments.verb == "table":
        print(draw_table(read_results(arguments.output / "results.jsonl", arguments.split)))
        return
    os.environ.update(OMP_NUM_THREADS=str(arguments.threads), OMP_WAIT_POLICY="PASSIVE")
    run_missing(arguments)


def run_missing(arguments: argparse.Namespace) -> None:
    """Every row with the first seed, then with the next; what the file has is not done again."""
    began = time.time()
    file = arguments.output / "results.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Budget)}
    changes = {name: value for name, value in given.items() if value is not None}
    budget = dataclasses.replace(BUDGETS[arguments.budget], **changes)
    arguments.scratch = arguments.scratch or arguments.output
    scenes = Scenes(
        folder=arguments.scratch / "scenes",
        num_scenes={
            split: arguments.num_scenes or _NUM_SCENES[split]
            for split in ("train", arguments.split)
        },
    )
    jobs = _plan(arguments, budget, scenes, read_results(file, arguments.split))
    if not jobs:
        print("nothing is missing")
        return
    outcomes = run_jobs(
        jobs,
        num_workers=arguments.workers,
        deadline=began + arguments.seconds,
        warm_up=functools.partial(warm_up, arguments.threads),
        prepare=functools.partial(_prepare, arguments, scenes),
    )
    for outcome in outcomes:
        found = {"error": outcome.error} if outcome.error else outcome.result
        line = {**outcome.job.about, **found, "at_seconds": round(time.time() - began, 1)}
        print(json.dumps(line), flush=True)
        with file.open("a") as results:
            results.write(json.dumps(line) + "\n")


def _prepare(arguments: argparse.Namespace, scenes: Scenes) -> None:
    make_scenes(scenes, max(arguments.workers, os.cpu_count() or 1))
    if arguments.start is None:
        make_start_scenes(scenes)


def _plan(
    arguments: argparse.Namespace, budget: Budget, scenes: Scenes, done: list[dict[str, Any]]
) -> list[Job]:
    """Jobs that are missing, in order: tiers outermost, then seeds; each after what it needs."""
    split, order = arguments.split, list(ROWS)
    common = {
        "split": split,
        "num_scenes": arguments.num_scenes,
        "budget": dataclasses.asdict(budget),
    }
    if arguments.start:
        common["start"] = describe_file(str(arguments.start))
    jobs: dict[str, Job] = {}

    def ask(about: dict[str, Any], call: Any, *needs: str, **own: Any) -> str:
        """Plan a job unless the results have it; its name."""
        about = json.loads(json.dumps({**about, **common}))
        name = f"{about['row']} {about['seed']}"
        if name not in jobs and not any(about.items() <= line.items() for line in done):
            jobs[name] = Job(
                name=name,
                about=about,
                call=call,
                arguments={"scenes": scenes, **own},
                needs=tuple(each for each in needs if each in jobs),
            )
        return name

    wanted = [(ROWS[name].tier, seed, order.index(name)) for name in arguments.rows
              for seed in arguments.seeds]  # fmt: skip
    for _, seed, index in sorted(wanted):
        name = order[index]
        row = ROWS[name]
        settings = {k: v for k, v in dataclasses.asdict(row).items() if k not in ("title", "tier")}
        about = {"row": name, "seed": seed, "settings": settings}
        if any(json.loads(json.dumps({**about, **common})).items() <= x.items() for x in done):
            continue
        shared = {"budget": budget, "split": split, "seed": seed}
        runs = arguments.scratch / "runs"
        start, needs = arguments.start, []
        if start is None:
            folder = runs / f"start-{seed}"
            start = folder / "start.pth"
            needs = [ask({"row": "start", "seed": seed}, train_start, **shared, folder=folder)]
        masks = row.masks
        if masks in LABELLERS:
            masks = f"{row.masks}-{seed}"
            needs.append(
                ask(
                    {"row": row.masks, "seed": seed},
                    label_scenes,
                    name=masks,
                    **LABELLERS[row.masks],
                    split=split,
                    iterations=budget.label_iterations,
                    seed=seed,
                )
            )
        if masks == "cut-by-depth":
            about_cuts = {"row": masks, "seed": 0}
            needs.append(ask(about_cuts, cut_scenes, name=masks, split=split))
        if row.depth == "predicted":
            models = [arguments.depth_model] if arguments.depth_model else []
            needs.append(
                ask(
                    {"row": "predicted-depth", "seed": 0},
                    predict_depth,
                    models=[*models, demo_dpt_path()],
                )
            )
        ask(
            about,
            run_row,
            *needs,
            **shared,
            row=row,
            folder=runs / f"{name}-{seed}",
            start=start,
            depth=row.depth,
            masks=masks,
        )
    return list(jobs.values())


if __name__ == "__main__":
    main()
