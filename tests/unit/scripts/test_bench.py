"""`make bench` runs every benchmark that needs no data of its own, with options that it knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

NEED_DATA_OR_HOURS = {"labeller_iou", "labeller_trials"}


def test_every_benchmark_is_run_with_options_that_it_has(repository: Path) -> None:
    script = (repository / "scripts" / "bench").read_text()
    parts = [shlex.split(part) for part in re.findall(r'^  "(.+)"$', script, re.MULTILINE)]
    programs = {
        path.stem: path.read_text()
        for path in (repository / "benchmarks").glob("*.py")
        if "add_argument(" in path.read_text()
    }
    assert {name for name, *_ in parts} == programs.keys() - NEED_DATA_OR_HOURS
    for name, *words in parts:
        unknown = [
            w for w in words if w.startswith("--") and f'add_argument("{w}"' not in programs[name]
        ]
        assert unknown == [], name
