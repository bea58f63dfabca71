"""Progress of long work: a bar on a terminal, plain log lines elsewhere, a file for `status`."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from depthcache.storage.durable_files import replaced_file
from pipeline.output import format_seconds

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FILES = 2.0


class ProgressReporter:
    """Reports counts with rate and time left. Use as a context manager and call `update`.

    Args:
        description: what is being done, for example `depth`.
        unit: plural noun of what is counted, for example `images`.
        on_terminal: draw a bar; by default when stderr is a terminal.
        seconds_between_lines: how often a plain line is written when there is no terminal.
        kept_in: file of a run that other processes read the progress from (`read_progress`); of
            work that is interrupted or fails it keeps the last count.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        *,
        on_terminal: bool | None = None,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
        kept_in: Path | None = None,
    ) -> None:
        self.description = description
        self.unit = unit
        self.on_terminal = sys.stderr.isatty() if on_terminal is None else on_terminal
        self.seconds_between_lines = seconds_between_lines
        self.kept_in = kept_in
        self._last: dict[str, Any] = {}
        self._last_kept = float("-inf")
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
        if exception is not None:
            self._keep()

    def turn_to(self, description: str) -> None:
        """Go on with the count of another thing, in the same bar and file; again changes nothing.

        Args:
            description: what is being done now.
        """
        if description == self.description:
            return
        self.description = description
        self._first_count, self._last = None, {}
        self._last_line = self._last_kept = float("-inf")
        if self._bar is not None:
            self._bar.reset(self._task, description=description, rate="")

    def update(
        self, num_done: int, num_total: int, loss: float | None = None, *, num_failed: int = 0
    ) -> None:
        """Report that `num_done` of `num_total` are done.

        Args:
            num_done: count so far; what was done before the first call does not count for the rate.
            num_total: count at the end.
            loss: of the last iteration, where something is learned.
            num_failed: items that failed so far.
        """
        now = time.monotonic()
        if self._first_count is None:
            self._first_count = num_done
            self._started = now
        elapsed = now - self._started
        rate = (num_done - self._first_count) / elapsed if elapsed > 0 else 0.0
        self._last = {
            "doing": self.description,
            "unit": self.unit,
            "num_done": num_done,
            "num_total": num_total,
            "num_failed": num_failed,
            "loss": loss,
            "units_per_second": rate,
            "seconds_left": (num_total - num_done) / rate if rate > 0 else None,
        }
        if num_done >= num_total or now - self._last_kept >= _SECONDS_BETWEEN_FILES:
            self._last_kept = now
            self._keep()
        if self._bar is not None:
            self._bar.update(
                self._task, completed=num_done, total=num_total, rate=f"{rate:.1f} {self.unit}/s"
            )
            return
        if num_done >= num_total or now - self._last_line >= self.seconds_between_lines:
            self._last_line = now
            logger.info("%s", format_progress_line(self._last))

    def _keep(self) -> None:
        """Replace the file, if there is one; a count that a power cut undoes is no loss."""
        if self.kept_in is not None and self._last:
            with replaced_file(self.kept_in, is_durable=False) as file:
                file.write(json.dumps(self._last).encode())


def read_progress(path: Path) -> dict[str, Any] | None:
    """The last counts that a `ProgressReporter` kept in a file; None where there is none.

    Returns:
        `doing`, `unit`, `num_done`, `num_total`, `num_failed`, `loss` or None, `units_per_second`
        (0 when not known yet) and `seconds_left` or None.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def format_progress_line(progress: Mapping[str, Any]) -> str:
    """One plain line of the fields that `read_progress` names."""
    unit, rate = progress["unit"], progress["units_per_second"]
    line = f"{progress['doing']}: {progress['num_done']}/{progress['num_total']} {unit}"
    if progress.get("num_failed"):
        line += f", {progress['num_failed']} failed"
    if progress["loss"] is not None:
        line += f", loss {progress['loss']:.3f}"
    if rate > 0:
        line += f", {rate:.{1 if rate >= 1 else 2}f} {unit}/s"
        if progress["num_done"] < progress["num_total"]:
            line += f", {format_seconds(progress['seconds_left'])} left"
    return line
