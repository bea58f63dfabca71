"""Command line of the laboratory; see the package's text."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.mask_lab.experiment import BASELINES, Laboratory, Schedule, measure
from benchmarks.mask_lab.links import draw_link_table
from benchmarks.mask_lab.picture import draw_gain
from benchmarks.mask_lab.scenes import load_scenes
from benchmarks.mask_lab.supervision import ROWS
from benchmarks.mask_lab.table import draw_table, read_results
from pipeline.process_settings import restart_with_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mask_lab")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and measure what is missing")
    run.add_argument("--rows", nargs="+", default=[*BASELINES, *ROWS], choices=[*BASELINES, *ROWS])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--threads", type=int, default=1)
    for field in dataclasses.fields(Schedule):
        run.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    table = verbs.add_parser("table", help="print what was measured as markdown")
    links = verbs.add_parser("links", help="print how often each source's links are right")
    picture = verbs.add_parser("picture", help="draw what rows of seed 0 learned")
    picture.add_argument("--rows", nargs="+", default=["boxinst", "ours"], choices=ROWS)
    picture.add_argument("--titles", nargs="+", default=["BoxInst", "with depth"])
    picture.add_argument("--file", type=Path, required=True)
    for verb in (run, table, links, picture):
        verb.add_argument("--split", default="test", choices=["choose", "test"])
        verb.add_argument("--output", type=Path, default=Path("output/mask-lab"))
        verb.add_argument("--num-scenes", type=int, help="of each split; for trying the command")
    arguments = parser.parse_args(argv)
    if arguments.verb == "table":
        print(draw_table(read_results(arguments.output / "results.jsonl", arguments.split)))
        return
    scenes_folder, num_scenes = arguments.output / "scenes", arguments.num_scenes
    if arguments.verb == "links":
        print(draw_link_table(load_scenes(scenes_folder, arguments.split, num_scenes)))
        return
    if arguments.verb == "picture":
        drawn = draw_gain(
            load_scenes(scenes_folder, arguments.split, num_scenes),
            {name: _weights(arguments, name, seed=0) for name in arguments.rows},
            dict(zip(arguments.rows, arguments.titles, strict=True)),
        )
        Image.fromarray(drawn).quantize(256).save(arguments.file, optimize=True)
        return
    restart_with_settings(["train"])
    torch.set_num_threads(arguments.threads)
    schedule = Schedule(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Schedule)}
    )
    run_missing(arguments, schedule)


def run_missing(arguments: argparse.Namespace, schedule: Schedule) -> None:
    """Every row with the first seed, then with the next; what the file has is not done again."""
    file = arguments.output / "results.jsonl"
    train, held_out = (
        load_scenes(arguments.output / "scenes", split, arguments.num_scenes)
        for split in ("train", arguments.split)
    )
    laboratory: Laboratory | None = None
    for seed in arguments.seeds:
        for name in arguments.rows:
            key = _describe(name, seed, schedule, arguments)
            if any(key.items() <= done.items() for done in read_results(file, arguments.split)):
                continue
            if name in BASELINES:
                found: dict[str, object] = {"iou": measure(held_out, BASELINES[name](held_out))}
            else:
                laboratory = laboratory or Laboratory(train, held_out)
                found = laboratory.run(ROWS[name], schedule, seed, _weights(arguments, name, seed))
            print(f"{name} seed {seed}: {json.dumps(found)}", flush=True)
            with file.open("a") as results:
                results.write(json.dumps({**key, **found}) + "\n")


def _describe(
    name: str, seed: int, schedule: Schedule, arguments: argparse.Namespace
) -> dict[str, object]:
    """What makes a run another one."""
    common = {"row": name, "split": arguments.split, "num_scenes": arguments.num_scenes}
    if name in BASELINES:
        return {**common, "seed": 0}
    settings = {k: v for k, v in dataclasses.asdict(ROWS[name]).items() if k != "title"}
    return {**common, "seed": seed, "settings": settings, "schedule": dataclasses.asdict(schedule)}


def _weights(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(arguments.output) / "networks" / f"{arguments.split}-{name}-{seed}.pt"


if __name__ == "__main__":
    main()
