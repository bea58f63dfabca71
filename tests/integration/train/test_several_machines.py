"""Two machines, played by two commands on one: they train as one, and resume as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain.errors import TrainingConfigError
from segtrain.run.checkpoints import list_checkpoints, load_state
from segtrain.run.train_settings import TrainSettings
from segtrain.run.trainer import train_model

SETTINGS: dict[str, Any] = {
    "train.max_iter": 4,
    "train.checkpoint_period": 1,
    "train.distill_from": 0.5,
    "schedule.warmup": 0.0,
    "dataloader.train.num_workers": 0,
    "dataloader.train.augmentation.short_sides": [64],  # one process pads photos to one size
    "model.norm": "GN",  # a batch norm would see other batches
}


def _start_machine(rank: int, port: int, config: Path, output: Path) -> subprocess.Popen[str]:
    settings = SETTINGS | {
        "train.num_machines": 2,
        "train.machine_rank": rank,
        "train.dist_url": f"tcp://127.0.0.1:{port}",
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = ["train", str(config), "--output", str(output), "--json", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a kill reaches what detectron2 launches, too
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(900)  # its own waits are of 300 seconds each
def test_two_machines_train_as_one_and_go_on_after_both_were_killed(
    tmp_path: Path, tiny_config: Path, load_tiny: Callable[..., Any]
) -> None:
    # Disks of their own: the second machine has no checkpoint to go on from.
    outputs = [tmp_path / "first", tmp_path / "second"]
    port = _free_port()
    machines = [_start_machine(rank, port, tiny_config, outputs[rank]) for rank in (0, 1)]
    patience = time.monotonic() + 300
    while not list_checkpoints(outputs[0]):
        assert time.monotonic() < patience
        assert all(machine.poll() is None for machine in machines), machines[0].communicate()
        time.sleep(0.02)
    for machine in machines:
        os.killpg(machine.pid, signal.SIGKILL)
        machine.communicate()
    done = list_checkpoints(outputs[0])[-1][0]
    assert not list_checkpoints(outputs[1] / "machine-1")

    port = _free_port()
    machines = [_start_machine(rank, port, tiny_config, outputs[rank]) for rank in (0, 1)]
    ends = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends
    folders = [outputs[0], outputs[1] / "machine-1"]
    assert f"after {done} iterations" in ends[0][1]  # the first machine's process tells
    for folder, (written, _) in zip(folders, ends, strict=True):
        assert json.loads(written)["weights"] == str(folder / "model_final.pth")
        summary = json.loads((folder / "train_summary.json").read_text())
        assert summary["num_resumed"] == done

    weights = [load_state(folder / "model_final.pth")["model"] for folder in folders]
    train_model(load_tiny(SETTINGS), tmp_path / "alone", resume=False)
    alone = load_state(tmp_path / "alone" / "model_final.pth")["model"]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"num_machines": 2, "machine_rank": 2, "dist_url": "tcp://h:1"}, "0 to 1"),
        ({"num_machines": 2}, "tcp://HOST:PORT"),
    ],
)
def test_settings_of_machines_that_cannot_meet_are_refused(
    settings: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(TrainingConfigError, match=remedy):
        TrainSettings(**settings)
