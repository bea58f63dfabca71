"""A run's curves: `metrics.jsonl`, one JSON object per line, and TensorBoard events."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from depthcache.storage.durable_files import read_json_lines, write_durably


class MetricsLog:
    """Appends rows; a resumed run first forgets what was written after its checkpoint.

    Args:
        run_dir: folder of the run.
        start_iteration: rows of later iterations are removed.
        tensorboard: write TensorBoard events as well.
    """

    def __init__(self, run_dir: Path, *, start_iteration: int, tensorboard: bool = True) -> None:
        self.path = run_dir / "metrics.jsonl"
        run_dir.mkdir(parents=True, exist_ok=True)
        self._forget_after(start_iteration)
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(run_dir / "tensorboard"), purge_step=start_iteration + 1
            )

    def append(self, iteration: int, values: dict[str, float]) -> None:
        """Write one row.

        Args:
            iteration: finished iterations.
            values: numbers by name; those that are not finite become null.
        """
        row: dict[str, float | int | None] = {"iteration": iteration}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()

    def _forget_after(self, iteration: int) -> None:
        if not self.path.is_file():
            return
        kept = [row for row in read_metrics(self.path) if row["iteration"] <= iteration]
        write_durably(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`, see `read_json_lines`."""
    return [row for row in read_json_lines(path) if isinstance(row, dict) and "iteration" in row]
