"""Jobs wait for each other, fail, are cut and end. Light imports: every process repeats them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.method_table import processes
from benchmarks.method_table.processes import Job, Outcome, run_jobs


def _answer(value: int, on_progress: Callable[[str], None]) -> dict[str, int]:
    return {"value": value}


def _fail(on_progress: Callable[[str], None]) -> None:
    raise ValueError("no good")


def _die(on_progress: Callable[[str], None]) -> None:
    os._exit(3)


def _go_on(on_progress: Callable[[str], None]) -> None:
    for step in range(10_000):
        time.sleep(0.01)
        on_progress(f"step {step}")


def _sleep(on_progress: Callable[[str], None]) -> None:
    time.sleep(600)


def _run(jobs: list[Job], seconds: float = 60, num_workers: int = 1) -> dict[str, Outcome]:
    prepared: list[bool] = []
    outcomes = run_jobs(
        jobs, num_workers=num_workers, deadline=time.time() + seconds, warm_up=_nothing,
        prepare=lambda: prepared.append(True),
    )  # fmt: skip
    found = {outcome.job.name: outcome for outcome in outcomes}
    assert prepared
    return found


def _nothing() -> None:
    """A module-level function, as other processes import it."""


def _job(name: str, call: Callable[..., Any], *needs: str, **arguments: Any) -> Job:
    return Job(name=name, about={}, call=call, arguments=arguments, needs=needs)


def test_jobs_wait_fail_and_lose_their_process() -> None:
    found = _run(
        [
            _job("late", _answer, "early", value=2),
            _job("bad", _fail),
            _job("lost", _answer, "bad", value=3),
            _job("dead", _die),
            _job("early", _answer, value=1),
        ]
    )
    assert list(found) == ["bad", "dead", "early", "late"]
    assert found["late"].result == {"value": 2}
    assert found["bad"].error == "ValueError: no good"
    assert "code 3" in found["dead"].error


def test_jobs_are_cut_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 120)  # however slowly a process starts
    found = _run([_job("long", _go_on), _job("next", _answer, value=1)], seconds=1)
    assert list(found) == ["long"]
    assert "cut at step" in found["long"].error


def test_a_job_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0)
    found = _run([_job("silent", _sleep)], seconds=0.5)
    assert "did not answer" in found["silent"].error
