"""What the processes of a joint run do; apart from the tests, since spawned processes import it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from segtrain.distillation.object_memory import ObjectMemory
from segtrain.errors import NonFiniteLossError
from segtrain.run.trainer import Trainer, train_model


class StoppedError(Exception):
    """A run is cut off, as by a kill."""


def do_all(works: list[tuple[Any, ...]]) -> None:
    """Works one after another: each a function of this module and its arguments."""
    for work, *arguments in works:
        work(*arguments)


def train_all(cases: list[tuple[Any, Path]]) -> None:
    """Starting processes takes longer than the steps, so cases share them."""
    for cfg, run_dir in cases:
        train_model(cfg, run_dir, resume=False)


def rank_file(run_dir: Path, rank: int) -> Path:
    return run_dir / f"rank{rank}.pth"


def train_and_fail(cfg: Any, sound: Path, failed: Path) -> None:
    """Two runs in one set of processes."""
    train_and_record_statistics(cfg, sound)
    train_until_not_finite(cfg, failed)


def train_and_record_statistics(cfg: Any, run_dir: Path) -> None:
    """Save this process's batch statistics of the first step, and what it holds after each step."""
    own: dict[str, torch.Tensor] = {}
    after: list[dict[str, Any]] = []

    def record_step(iteration: int, max_iter: int, metrics: dict[str, float]) -> None:
        after.append(
            {
                "own": dict(own),
                "metrics": metrics,
                "student": _copy(trainer.model.state_dict()),
                "teacher": _copy(trainer.teacher.state_dict()),
            }
        )

    trainer = Trainer(cfg, run_dir, resume=False, on_progress=record_step)
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def record_own(module: nn.BatchNorm2d, *_: Any, name: str = name) -> None:
                # The teacher is a copy that has this hook, too.
                if module.training:
                    own[f"{name}.running_mean"] = module.running_mean.clone()
                    own[f"{name}.running_var"] = module.running_var.clone()

            module.register_forward_hook(record_own)
    trainer.train()
    torch.save(after, rank_file(run_dir, comm.get_rank()))


def train_until_not_finite(cfg: Any, run_dir: Path) -> None:
    """Break something in the second process only, and save how each process stopped."""
    outcomes = {}
    for broken in ("loss", "gradient"):
        trainer = Trainer(cfg, run_dir / broken, resume=False)
        if comm.get_rank() == 1:
            break_loss(trainer) if broken == "loss" else break_gradient(trainer)
        before = _copy(dict(trainer.model.named_parameters()))
        try:
            trainer.train()
        except NonFiniteLossError as error:
            outcomes[broken] = {
                "message": str(error),
                "images": trainer.step_images,
                "is_unchanged": all(
                    torch.equal(before[name], value)
                    for name, value in trainer.model.named_parameters()
                ),
            }
    torch.save(outcomes, rank_file(run_dir, comm.get_rank()))


def break_loss(trainer: Trainer) -> None:
    """One term becomes NaN."""

    def make_nan(_module: Any, _inputs: Any, losses: dict[str, torch.Tensor]) -> Any:
        return losses | {"loss_proj": losses["loss_proj"] * float("nan")}

    trainer.model.register_forward_hook(make_nan)


def break_gradient(trainer: Trainer) -> None:
    """One gradient overflows on its way back; the losses stay as they are."""
    trainer.model.controller.weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))


def train_and_record_images(
    cfg: Any, run_dir: Path, *, stop_at: int | None = None
) -> dict[int, list[str]]:
    """Train, or go on training, by this process.

    Args:
        cfg: the config.
        run_dir: folder of the run, resumed where it has checkpoints.
        stop_at: iteration after which the run is cut off, before its checkpoint.

    Returns:
        This process's images of each iteration.
    """
    images: dict[int, list[str]] = {}

    def record(iteration: int, max_iter: int, metrics: dict[str, float]) -> None:
        images[iteration] = list(trainer.step_images)
        if iteration == stop_at:
            raise StoppedError

    trainer = Trainer(cfg, run_dir, resume=True, on_progress=record)
    try:
        trainer.train()
    except StoppedError:
        assert stop_at is not None
    return images


def resume_one_and_stop_one(cfg: Any, resumed: Path, stopped: Path, stop_at: int) -> None:
    """Finish a run that one process began, begin one that one process will finish."""
    warnings: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    handler = Recorder(logging.WARNING)
    logging.getLogger("segtrain").addHandler(handler)
    images = {"resumed": train_and_record_images(cfg, resumed)}
    images["stopped"] = train_and_record_images(cfg, stopped, stop_at=stop_at)
    for run_dir, name in ((resumed, "resumed"), (stopped, "stopped")):
        record = {"images": images[name], "warnings": warnings}
        torch.save(record, rank_file(run_dir, comm.get_rank()))


def make_objects(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, masks and classes of what a process finds; the second one finds more."""
    random = torch.Generator().manual_seed(rank)
    num = 2 + rank
    features = torch.randn(num, 8, 4, generator=random)
    return features, torch.rand(num, 4, generator=random), torch.arange(num) % 2


def remember(folder: Path) -> None:
    """Save what a process's memory holds after it added its own objects, then none."""
    memory = ObjectMemory(num_classes=2, num_entries=3, temperature=0.1)
    objects = make_objects(comm.get_rank())
    memory.add(*objects)
    memory.add(*(values[:0] if comm.get_rank() else values[:1] for values in objects))
    torch.save(memory.state_dict(), rank_file(folder, comm.get_rank()))


def _copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
