"""Jobs that wait for each other, over processes side by side that never outlive the time."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

_GRACE_SECONDS = 10.0


class TimeIsUpError(Exception):
    """A job was cut."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: for others' needs.
        about: what its line in the results begins with.
        call: importable function, called with `arguments` and `on_progress`, which is to be told
            now and then what is being done, and raises when the time is up.
        arguments: by name.
        needs: names of jobs that must have succeeded.
    """

    name: str
    about: dict[str, Any]
    call: Callable[..., Any]
    arguments: dict[str, Any]
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(kw_only=True, frozen=True)
class Outcome:
    """What became of a job: its `result`, or why there is none."""

    job: Job
    result: Any = None
    error: str = ""


class _Worker:
    def __init__(self, deadline: float, warm_up: Callable[[], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # No daemon: data loaders are processes of its own.
        self.process = context.Process(target=_work, args=(theirs, deadline, warm_up))
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job = job
        self.pipe.send(job)

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(0.2 if self.job else _GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def run_jobs(
    jobs: Sequence[Job],
    *,
    num_workers: int,
    deadline: float,
    warm_up: Callable[[], None],
    prepare: Callable[[], None],
) -> Iterator[Outcome]:
    """Do jobs in order, each as soon as what it needs is done; an outcome of each that began.

    Args:
        jobs: the first comes first.
        num_workers: processes.
        deadline: `time.time()` after which no job begins; running ones are cut.
        warm_up: importable; each process begins with it.
        prepare: done in this process while the others start.
    """
    workers = [_Worker(deadline, warm_up) for _ in range(min(num_workers, len(jobs)))]
    try:
        prepare()
        yield from _dispatch(list(jobs), workers, deadline, warm_up)
    finally:
        for worker in workers:
            worker.stop()


def _dispatch(
    waiting: list[Job], workers: list[_Worker], deadline: float, warm_up: Callable[[], None]
) -> Iterator[Outcome]:
    succeeded: set[str] = set()
    unfinished = {job.name for job in waiting}
    while waiting or any(worker.job for worker in workers):
        if time.time() >= deadline and waiting:
            print(f"time is up: {len(waiting)} jobs are not begun", flush=True)
            waiting.clear()
        for job in list(waiting):
            if any(name not in succeeded and name not in unfinished for name in job.needs):
                print(f"{job.name} is left out: one of {job.needs} failed", flush=True)
                waiting.remove(job)
                unfinished.discard(job.name)
        for worker in workers:
            ready = next((job for job in waiting if succeeded.issuperset(job.needs)), None)
            if worker.job is None and ready is not None:
                waiting.remove(ready)
                worker.begin(ready)
        busy = {worker.pipe: worker for worker in workers if worker.job}
        if not busy:
            continue
        overdue = time.time() > deadline + _GRACE_SECONDS
        for pipe in list(busy) if overdue else wait(list(busy), timeout=1.0):
            worker = busy[pipe]  # type: ignore[index]
            assert worker.job is not None
            outcome = _receive(worker, worker.job, overdue=overdue)
            unfinished.discard(worker.job.name)
            if not outcome.error:
                succeeded.add(worker.job.name)
            worker.job = None
            if not worker.process.is_alive() and not overdue:
                workers[workers.index(worker)] = _Worker(deadline, warm_up)
            yield outcome


def _receive(worker: _Worker, job: Job, *, overdue: bool) -> Outcome:
    try:
        if not overdue or worker.pipe.poll():
            result, error = worker.pipe.recv()
            return Outcome(job=job, result=result, error=error)
    except EOFError:
        worker.process.join()
        return Outcome(job=job, error=f"its process ended with code {worker.process.exitcode}")
    worker.process.kill()
    return Outcome(job=job, error="cut: time is up, and it did not answer")


def _work(pipe: Connection, deadline: float, warm_up: Callable[[], None]) -> None:
    warm_up()
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return

        def stop_when_due(what: str) -> None:
            if time.time() >= deadline:
                raise TimeIsUpError(f"cut at {what}: time is up")

        try:
            pipe.send((job.call(**job.arguments, on_progress=stop_when_due), ""))
        except TimeIsUpError as cut:
            pipe.send((None, str(cut)))
        except Exception as error:
            traceback.print_exc()
            pipe.send((None, f"{type(error).__name__}: {str(error)[:300]}"))
