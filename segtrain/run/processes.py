"""Several processes for one run: their start, their log, and the error of one in its own words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessRaisedException

from segtrain.errors import SegtrainError
from segtrain.run.train_settings import TrainSettings


def run_in_processes(
    work: Callable[..., None], settings: TrainSettings, arguments: tuple[Any, ...]
) -> None:
    """Run a function in this machine's processes, joined with those of the other machines.

    Raises:
        SegtrainError: what one of them raised.
    """
    # A process's own error comes back through here; torch would bury it in a traceback's text.
    failures: Any = get_context("spawn").SimpleQueue()
    try:
        launch(
            _work_in_process,
            settings.num_processes,
            num_machines=settings.num_machines,
            machine_rank=settings.machine_rank,
            dist_url=settings.dist_url,
            args=(work, arguments, failures, _LogStyle.current()),
        )
    except ProcessRaisedException as error:
        if failures.empty():
            raise
        raise failures.get() from error


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
