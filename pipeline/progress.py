"""Progress of long work: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

from pipeline.output import format_seconds

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReporter:
    """Reports counts with rate and time left. Use as a context manager and call `update`.

    Args:
        description: what is being done, for example `depth`.
        unit: plural noun of what is counted, for example `images`.
        on_terminal: draw a bar; by default when stderr is a terminal.
        seconds_between_lines: how often a plain line is written when there is no terminal.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        *,
        on_terminal: bool | None = None,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
    ) -> None:
        self.description = description
        self.unit = unit
        self.on_terminal = sys.stderr.isatty() if on_terminal is None else on_terminal
        self.seconds_between_lines = seconds_between_lines
        self._started = time.monotonic()
        self._first_count: int | None = None
        self._last_line = float("-inf")
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressReporter:
        self._started = time.monotonic()
        if self.on_terminal:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=None, rate="")
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, num_done: int, num_total: int) -> None:
        """Report that `num_done` of `num_total` are done.

        Args:
            num_done: count so far; what was done before the first call does not count for the rate.
            num_total: count at the end.
        """
        now = time.monotonic()
        if self._first_count is None:
            self._first_count = num_done
            self._started = now
        elapsed = now - self._started
        rate = (num_done - self._first_count) / elapsed if elapsed > 0 else 0.0
        if self._bar is not None:
            self._bar.update(
                self._task, completed=num_done, total=num_total, rate=f"{rate:.1f} {self.unit}/s"
            )
            return
        if num_done >= num_total or now - self._last_line >= self.seconds_between_lines:
            self._last_line = now
            logger.info(
                "%s", format_progress_line(self.description, self.unit, num_done, num_total, rate)
            )


def format_progress_line(
    description: str, unit: str, num_done: int, num_total: int, rate: float
) -> str:
    """One plain progress line.

    Args:
        description: what is being done.
        unit: plural noun of what is counted.
        num_done: count so far.
        num_total: count at the end.
        rate: units a second; 0 when not known yet.
    """
    line = f"{description}: {num_done}/{num_total} {unit}"
    if rate > 0:
        line += f", {rate:.1f} {unit}/s"
        if num_done < num_total:
            line += f", {format_seconds((num_total - num_done) / rate)} left"
    return line
