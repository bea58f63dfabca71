"""The newest checkpoint in the hands of every process, also on machines that hold no file of it."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from detectron2.utils import comm
from torch import distributed

from segtrain.run.checkpoints import checkpoint_path, list_checkpoints, load_state

_CHUNK_BYTES = 64 << 20


def load_newest_state(run_dir: Path, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
    """The state that the first process's run folder ends with, for every process.

    Only the first process writes checkpoints. Processes that see its file read it; if one does not,
    as on another machine with a disk of its own, the first sends the file's bytes to all.

    Args:
        run_dir: this process's folder of the run.
        device: where tensors are that the process group can send.

    Returns:
        The file in the first process's folder, by its name in this one's, and what it holds; None
        where there is none yet.

    Raises:
        CheckpointError: it cannot be read.
    """
    found = list_checkpoints(run_dir)
    own_newest = (found[-1][0], found[-1][1].stat().st_size) if found else None
    newest = comm.all_gather(own_newest)[0]
    if newest is None:
        return None
    iteration, num_bytes = newest
    path = checkpoint_path(run_dir, iteration)
    is_here = path.is_file() and path.stat().st_size == num_bytes
    if all(comm.all_gather(is_here)):
        return path, load_state(path)
    with tempfile.TemporaryFile(dir=run_dir) as received:  # a checkpoint may fill the memory
        _send_file(path, num_bytes, device, received)
        received.seek(0)
        return path, load_state(path, None if comm.is_main_process() else received)


def _send_file(path: Path, num_bytes: int, device: torch.device, received: BinaryIO) -> None:
    """The first process's file, in chunks, to the others."""
    with path.open("rb") if comm.is_main_process() else nullcontext() as source:
        for begin in range(0, num_bytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, num_bytes - begin)
            if source is None:
                chunk = torch.zeros(size, dtype=torch.uint8, device=device)
            else:
                chunk = torch.frombuffer(bytearray(source.read(size)), dtype=torch.uint8).to(device)
            distributed.broadcast(chunk, src=0)
            if source is None:
                received.write(chunk.cpu().numpy().data)
