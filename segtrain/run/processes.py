"""Several processes for one run: their start, their log, and the error of one in its own words."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from detectron2.utils import comm
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from segtrain.errors import SegtrainError

_SECONDS_TO_LISTEN = 10.0  # to what was told before the processes ended


def run_in_processes(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Run a function in this machine's processes, joined with those of the other machines.

    When one of them fails, all are ended.

    Args:
        work: a function of a module.
        arguments: of it, the same for all.
        num_processes: on this machine.
        num_machines: that take part.
        machine_rank: of this machine.
        dist_url: where they meet.

    Raises:
        SegtrainError: what one of them raised, or that one was killed.
    """
    from detectron2.engine import launch  # takes seconds, which one process need not wait

    # A process's own error comes back through here; torch would bury it in a traceback's text.
    failures: Any = get_context("spawn").SimpleQueue()
    try:
        launch(
            _work_in_process,
            num_processes,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=(work, arguments, failures, _LogStyle.current()),
        )
    except ProcessRaisedException as error:
        if failures.empty():
            raise
        raise failures.get() from error
    except ProcessExitedException as error:
        raise SegtrainError(
            f"process {error.error_index + 1} of {num_processes} on this machine was ended by "
            f"{error.signal_name or f'exit code {error.exit_code}'}, and with it the others. Often "
            "memory ran out: take fewer processes. The same command goes on from what was kept"
        ) from error


@dataclass(frozen=True)
class _LogStyle:
    """Level and form of this process's log, for processes that start without one."""

    level: int
    text: str
    time: str | None

    @classmethod
    def current(cls) -> _LogStyle:
        root = logging.getLogger()
        formatter = next((h.formatter for h in root.handlers if h.formatter), logging.Formatter())
        return cls(root.level, formatter._fmt or logging.BASIC_FORMAT, formatter.datefmt)

    def apply(self) -> None:
        """One process tells what all do; a warning may be one's own."""
        level = self.level if comm.is_main_process() else max(self.level, logging.WARNING)
        logging.basicConfig(level=level, format=self.text, datefmt=self.time)


def _work_in_process(
    work: Callable[..., None], arguments: tuple[Any, ...], failures: Any, log_style: _LogStyle
) -> None:
    log_style.apply()
    try:
        work(*arguments)
    except SegtrainError as error:
        failures.put(error)
        raise


@contextlib.contextmanager
def told_by_processes(listener: Callable[..., None] | None) -> Iterator[Callable[..., None] | None]:
    """Let one of several processes tell this one how far it is.

    Args:
        listener: called in a thread of this process, in order; None for nobody. What it raises
            stops the processes when they tell more, and is raised here.

    Yields:
        What the process calls instead.
    """
    if listener is None:
        yield None
        return
    # A pipe and no queue: a process that is killed while it tells leaves no lock behind.
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    raised: list[Exception] = []

    def listen() -> None:
        with receiver, contextlib.suppress(EOFError):
            while True:
                item = receiver.recv()
                try:
                    listener(*item)
                except Exception as error:  # reaches the caller below
                    raised.append(error)
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield _Teller(sender)
    finally:
        sender.close()
        thread.join(timeout=_SECONDS_TO_LISTEN)
        if raised:
            raise raised[0]


@dataclass(frozen=True)
class _Teller:
    sender: Any

    def __call__(self, *item: Any) -> None:
        self.sender.send(item)
