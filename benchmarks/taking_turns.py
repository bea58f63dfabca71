"""Compares programs fairly: each side in a process of its own, taking turns on one machine.

glibc reads its allocator's settings at start and peak memory belongs to a process, hence processes;
other load on the machine meets all sides alike, hence turns. Figures are medians, ratios medians of
the ratios of neighbouring repetitions. CPU seconds are less sensitive to other load than wall time.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.process_settings import MALLOC_SETTINGS, THREAD_SETTINGS

# What commands give themselves; the rule of the comparison that is called "tuned".
TUNED = {**os.environ, **THREAD_SETTINGS, **MALLOC_SETTINGS}
DEFAULT = {name: value for name, value in os.environ.items() if name not in MALLOC_SETTINGS}


@dataclass(frozen=True)
class Side:
    """One of the compared programs: what it runs, and in which environment."""

    name: str
    task: str
    environment: dict[str, str]


def compare(
    script: str, sides: Sequence[Side], options: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Run all sides in turns.

    Args:
        script: file that calls `serve` when it gets `--worker TASK`.
        sides: what to compare.
        options: further words of each process's command line.
        rounds: repetitions after one that warms up.

    Returns:
        Per side: `seconds` and `cpu_seconds` of each repetition, `peak_mib` of the process and
        `extra_mib` above what it held before its repetition.
    """
    workers = [_start_worker(script, side, options) for side in sides]
    try:
        for worker in workers:  # they start side by side, which takes most of a short comparison
            _await_ready(worker)
        measured: list[dict[str, Any]] = [{"seconds": [], "cpu_seconds": []} for _ in sides]
        for repetition in range(rounds + 1):
            for worker, result in zip(workers, measured, strict=True):
                answer = _ask(worker)
                result |= {key: answer[key] for key in ("peak_mib", "extra_mib")}
                if repetition == 0:  # warms caches up; its memory is that of a fresh process
                    result["first_extra_mib"] = answer["extra_mib"]
                    continue
                for key in ("seconds", "cpu_seconds"):
                    result[key].append(answer[key])
        return measured
    finally:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()


def ratio(own: dict[str, Any], other: dict[str, Any], key: str) -> float:
    """Median ratio of neighbouring repetitions of two sides."""
    return statistics.median(a / b for a, b in zip(own[key], other[key], strict=True))


def report(sides: Sequence[Side], measured: Sequence[dict[str, Any]]) -> None:
    """Print a line per side, with its ratios to the first."""
    first = measured[0]
    for side, result in zip(sides, measured, strict=True):
        print(
            f"{side.name:45s} {statistics.median(result['seconds']):7.3f} s"
            f" (x{ratio(result, first, 'seconds'):.3f}),"
            f" {statistics.median(result['cpu_seconds']):7.3f} CPU s"
            f" (x{ratio(result, first, 'cpu_seconds'):.3f}), peak {result['peak_mib']:6.0f} MiB"
            f" (x{result['peak_mib'] / first['peak_mib']:.2f}), extra"
            f" {result['first_extra_mib']:6.0f} MiB"
            f" (x{result['first_extra_mib'] / max(first['first_extra_mib'], 1):.2f})",
            flush=True,
        )


def serve(run: Callable[[], None]) -> None:
    """Be a side: run once for each line of input and answer with the cost."""
    print("ready", flush=True)
    for _ in sys.stdin:
        before = memory_mib("VmRSS")
        forget_peak()
        started, cpu_started = time.perf_counter(), time.process_time()
        run()
        answer = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
            "peak_mib": memory_mib("VmHWM"),
            "extra_mib": memory_mib("VmHWM") - before,
        }
        print(json.dumps(answer), flush=True)


def forget_peak() -> None:
    """Let the high-water mark of this process's memory, VmHWM, start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_mib(field: str) -> float:
    """A size of this process as the kernel states it."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def _start_worker(script: str, side: Side, options: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", script, "--worker", side.task, *options]
    return subprocess.Popen(
        command, env=side.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _await_ready(worker: subprocess.Popen[str]) -> None:
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        raise SystemExit(f"{worker.args} did not start")


def _ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("run\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer
