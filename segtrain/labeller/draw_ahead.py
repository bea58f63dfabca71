"""Batches drawn by threads while the device computes; which batch it is never depends on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Batch = TypeVar("Batch")
_MOST_THREADS = 4


class DrawAhead(Generic[Batch]):
    """Hands out the batch of an iteration, and has the next ones drawn meanwhile.

    Args:
        draw: draws the batch of an iteration; what it draws depends on the iteration alone.
        num_threads: that draw; 0 draws when a batch is asked for.
    """

    def __init__(self, draw: Callable[[int], Batch], num_threads: int) -> None:
        self._draw, self._num_threads = draw, num_threads
        self._pool = ThreadPoolExecutor(max(num_threads, 1), thread_name_prefix="crops")
        self._drawn: dict[int, Future[Batch]] = {}

    def take(self, iteration: int) -> Batch:
        """The batch of an iteration.

        Raises:
            What `draw` raised for it.
        """
        if not self._num_threads:
            return self._draw(iteration)
        wanted = range(iteration, iteration + self._num_threads + 1)
        self._drawn = {place: drawn for place, drawn in self._drawn.items() if place in wanted}
        for place in wanted:
            if place not in self._drawn:
                self._drawn[place] = self._pool.submit(self._draw, place)
        return self._drawn.pop(iteration).result()

    def close(self) -> None:
        """Stop drawing; what is being drawn is waited for."""
        self._pool.shutdown(cancel_futures=True)


def count_drawing_threads(device: torch.device, num_processes: int = 1) -> int:
    """Threads that draw crops beside the computation.

    For a GPU one core draws too slowly (16 crops of 128 pixels take it 53 ms), so up to four. For a
    CPU one, where a core is left that torch does not compute with; else drawing ahead only moves
    work.

    Args:
        device: that computes.
        num_processes: that share this machine.
    """
    num_cores = len(os.sched_getaffinity(0)) // num_processes
    if device.type == "cpu":
        return int(num_cores > torch.get_num_threads())
    return max(min(num_cores - 1, _MOST_THREADS), 1)
