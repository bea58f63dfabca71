"""Adapt the labeller to boxes: a student learns from box losses, its moving average teaches it.

The result lies between the moving average and the start: weights between two good ones are better
on what neither was trained for (weight-space ensembles, arXiv 2109.01903).

The loop can be read from the top: plan, draw, step, keep. One seed and one number of iterations
give one run; a run that was interrupted goes on from its last checkpoint to the same end.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from segtrain.errors import CheckpointError, NonFiniteLossError, TrainingConfigError
from segtrain.labeller.crop_batches import BoxedPhoto, CropBatch, CropSource, KnownCrops
from segtrain.labeller.crop_losses import TeacherMasks, crop_losses, known_mask_loss
from segtrain.labeller.crop_network import (
    BOX_HINT,
    DEPTH_HINT,
    CropNetwork,
    default_device,
    load_crop_network,
    save_crop_network,
)
from segtrain.labeller.draw_ahead import DrawAhead, count_drawing_threads
from segtrain.labeller.mask_scores import threshold_after
from segtrain.labeller.pasted_objects import paste_objects
from segtrain.labeller.settings import LabellerSettings
from segtrain.mask_grid.bitmasks import draw_extents, fill_ratio
from segtrain.process_group import average_over_processes
from segtrain.run.checkpoints import load_state, save_atomically
from segtrain.run.determinism import deterministic_algorithms
from segtrain.run.metrics_log import MetricsLog
from segtrain.run.processes import run_in_processes, told_by_processes

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "labeller.safetensors"
_STATE_NAME = "adaptation.pth"
_COLLAPSED_FILL = (0.05, 0.97)
_GRADIENT_NORM = 5.0
OnProgress = Callable[[int, int, Mapping[str, float]], None]


def adapt_labeller(
    photos: Sequence[BoxedPhoto],
    settings: LabellerSettings,
    folder: Path,
    *,
    start: Path,
    minutes: float | None = None,
    on_progress: OnProgress | None = None,
    resume: bool = True,
    device: torch.device | None = None,
    known_crops: Callable[[int], KnownCrops] | None = None,
    is_deterministic: bool = True,
    num_processes: int = 1,
) -> Path:
    """Learn masks from boxes.

    Args:
        photos: with boxes; unreadable ones are named in a warning and left out.
        settings: see there.
        folder: where state, metrics and the result are kept.
        start: weights to start from, for example those that ship.
        minutes: budget; None runs `settings.max_iterations`. How many iterations fit is measured
            once, during the warm-up, and kept in the state.
        on_progress: called after every iteration with iterations done, in all, and the losses.
        resume: go on from the folder's state, if there is one.
        device: where to compute; None takes a GPU where there is one.
        known_crops: draws, for an iteration, crops whose masks are known, of `settings.crop_size`;
            they are learned beside the boxes.
        is_deterministic: False lets a GPU add in any order: faster, and no two runs are alike.
        num_processes: share every batch; on GPUs at most one each. Photos, `known_crops` and what
            they load must be picklable then, and `device` is not read.

    Returns:
        The adapted weights, `folder/labeller.safetensors`.

    Raises:
        DatasetError: no box, or no photo can be read.
        CheckpointError: `start` is no labeller, or the folder's state is of other settings.
        NonFiniteLossError: a loss is not finite; nothing was changed by it.
        TrainingConfigError: the batch cannot be shared among so many processes.
        SegtrainError: a process was killed.
    """
    if num_processes > 1 and not comm.get_world_size() > 1:
        require_shares(settings, num_processes)
        with told_by_processes(on_progress) as tell:
            run_in_processes(
                _adapt_in_process,
                (
                    torch.get_num_threads() // num_processes,
                    (photos, settings, folder),
                    {
                        "start": start, "minutes": minutes, "on_progress": tell, "resume": resume,
                        "known_crops": known_crops, "is_deterministic": is_deterministic,
                    },
                ),
                num_processes=num_processes,
            )  # fmt: skip
        return folder / WEIGHTS_NAME
    device = device or default_device()
    run = _Adaptation(photos, settings, folder, start, device)
    run.known_crops = known_crops
    if resume and run.state_path.is_file():
        run.load()
    with deterministic_algorithms(device, enabled=is_deterministic):
        run.go(minutes, on_progress)
    if not comm.is_main_process():
        return folder / WEIGHTS_NAME
    save_crop_network(
        run.result(),
        folder / WEIGHTS_NAME,
        facts=run.facts
        | {"mask_threshold": threshold_after(run.iteration), "crop_size": settings.crop_size}
        | {"adapted": {"iterations": run.iteration, "boxes": len(run.source.index)}},
    )
    return folder / WEIGHTS_NAME


def _adapt_in_process(num_threads: int, arguments: Any, options: dict[str, Any]) -> None:
    torch.set_num_threads(max(num_threads, 1))
    adapt_labeller(*arguments, **options)


def require_shares(settings: LabellerSettings, num_processes: int) -> None:
    """Refuse processes that could not share a batch alike.

    Raises:
        TrainingConfigError: names what fits.
    """
    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise TrainingConfigError(
            f"{num_processes} processes for {torch.cuda.device_count()} GPUs: take at most one each"
        )
    size = settings.batch_size
    if size % num_processes or size < 2 * num_processes:
        fitting = [n for n in range(1, size // 2 + 1) if size % n == 0]
        raise TrainingConfigError(
            f"{size} crops a step cannot be shared by {num_processes} processes, with at least two "
            f"each; take {', '.join(map(str, fitting))} processes"
        )


class _Adaptation:
    """State of a run and its one step; one of several processes has its share of each batch."""

    def __init__(
        self,
        photos: Sequence[BoxedPhoto],
        settings: LabellerSettings,
        folder: Path,
        start: Path,
        device: torch.device,
    ) -> None:
        self.settings, self.folder, self.device = settings, folder, device
        self.start = start
        self.state_path = folder / _STATE_NAME
        torch.manual_seed(settings.seed)
        self.student, self.facts = load_crop_network(start)
        self.start_digest = hashlib.sha256(start.read_bytes()).hexdigest()
        self.rank, num_processes = comm.get_rank(), comm.get_world_size()
        self.source = CropSource(
            photos, settings, self.student.description, rank=self.rank, num_parts=num_processes
        )
        freeze_parameters(self.student.encoder, settings.frozen)
        self.student.to(device).to(memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = _build_optimizer(self.student, settings)
        self.iteration, self.total, self.seconds = 0, 0, 0.0
        self.fill, self.has_warned, self.is_between_steps = 0.5, False, True
        self.known_crops: Callable[[int], KnownCrops] | None = None
        self.batches = DrawAhead(self.source.draw, count_drawing_threads(device, num_processes))

    def go(self, minutes: float | None, on_progress: OnProgress | None) -> None:
        """Run to the end of the plan; the first of several processes keeps and tells."""
        settings = self.settings
        if minutes is None:
            self.total = self.total or settings.max_iterations
        log = None
        if self.rank == 0:
            log = MetricsLog(self.folder, start_iteration=self.iteration, tensorboard=False)
        began, saved_at = time.monotonic() - self.seconds, time.monotonic()
        self.student.train()
        self.teacher.eval()
        try:
            while not self.total or self.iteration < self.total:
                losses = self.step()
                self.seconds = time.monotonic() - began
                if not self.total:
                    self._plan(minutes or 0.0)
                if log is None:
                    continue
                log.append(self.iteration, losses)
                if on_progress is not None:
                    on_progress(self.iteration, self.total or settings.max_iterations, losses)
                self._watch_fill(losses["fill"])
                if time.monotonic() - saved_at > settings.checkpoint_seconds:
                    self.save()
                    saved_at = time.monotonic()
        except BaseException:
            # Ctrl-C, too: what was learned is kept, and the same call goes on from here.
            # In the midst of a change there is nothing whole to keep but the last checkpoint.
            if self.iteration and self.is_between_steps:
                self.save()
            raise
        finally:
            if log is not None:
                log.close()
            self.batches.close()
        self.save()

    def _plan(self, minutes: float) -> None:
        """Plan what fits the budget at the speed seen so far, on average over processes.

        The plan stands when the warm-up or the budget ends.
        """
        seconds = torch.tensor([self.seconds], device=self.device)
        average_over_processes([seconds])
        left = minutes * 60 - float(seconds)
        is_warming_up = self.iteration < self.settings.warmup_iterations
        if is_warming_up and left > 0:
            return
        self.seconds = float(seconds)
        fitting = self.iteration + int(max(left, 0.0) / (self.seconds / self.iteration))
        self.total = min(fitting, self.settings.max_iterations)
        if is_warming_up and self.rank == 0:
            logger.warning(
                "%d iterations took the whole budget of %g minutes, too few to learn from these "
                "boxes; give it more minutes, or free the machine of other work",
                self.iteration,
                minutes,
            )

    def step(self) -> dict[str, float]:
        """Draw a batch, learn from it, follow with the teacher."""
        settings = self.settings
        batch = self.batches.take(self.iteration).to(self.device)
        teacher = self._teach(batch) if settings.teacher_weight or settings.paste_share else None
        known = self._draw_known(batch, teacher)
        rgb_N3SS = torch.cat([batch.rgb, *(crops.rgb for crops in known)])
        hints_N2SS = torch.cat(
            [
                drop_hints(batch.hints, settings, self.iteration, self.rank * len(batch.hints)),
                *(crops.hints for crops in known),
            ]
        )
        logits = self.student(rgb_N3SS.contiguous(memory_format=torch.channels_last), hints_N2SS)
        logits_NGG = logits[: len(batch.rgb)]
        losses = crop_losses(
            logits_NGG, batch, teacher if settings.teacher_weight else None, settings
        )
        if known:
            targets = torch.cat([crops.target for crops in known])
            losses["known"] = settings.known_weight * known_mask_loss(
                logits[len(batch.rgb) :], targets
            )
        total = torch.stack(list(losses.values())).sum()
        row = self._tell(losses, total, fill_ratio(logits_NGG.detach(), batch.extents))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        average_over_processes([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        factor = self._rate_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * group["factor"] * factor
        self.is_between_steps = False
        self.optimizer.step()
        self._follow()
        self.iteration += 1
        self.is_between_steps = True
        return row | {"learning_rate": settings.learning_rate * factor}

    def _tell(
        self, losses: Mapping[str, torch.Tensor], total: torch.Tensor, fill: torch.Tensor
    ) -> dict[str, float]:
        """Means over processes; stops all of them where one of their losses is not finite."""
        told = {**losses, "loss": total, "fill": fill}
        means = torch.stack([value.detach().float() for value in told.values()])
        average_over_processes([means])
        row = dict(zip(told, means.tolist(), strict=True))
        if not math.isfinite(row["loss"]):
            raise NonFiniteLossError(
                f"iteration {self.iteration}: the loss is not finite ({row}); lower "
                f"learning_rate={self.settings.learning_rate}"
            )
        return row

    def _draw_known(self, batch: CropBatch, teacher: TeacherMasks | None) -> list[KnownCrops]:
        """Crops with known masks: composites, and what the caller draws."""
        known = []
        num = round(self.settings.paste_share * len(batch.rgb))
        if num and teacher is not None:
            generator = torch.Generator().manual_seed(
                self.settings.seed * 1_000_003 + self.iteration + 500_000 + self.rank * 10**12
            )
            known.append(paste_objects(batch.rgb, teacher.masks, num, generator))
        if self.known_crops is not None:
            crops = self.known_crops(self.iteration)
            own = torch.arange(len(crops.rgb)).chunk(comm.get_world_size())
            chosen = own[self.rank % len(own)]
            known.append(KnownCrops(*(part[chosen].to(self.device) for part in crops)))
        return known

    @torch.no_grad()
    def _teach(self, batch: CropBatch) -> TeacherMasks:
        """The teacher's masks: it knows the box, and sees each crop and its mirror image."""
        rgb = torch.cat((batch.plain_rgb, batch.plain_rgb.flip(3)))
        hints = torch.cat((batch.hints, batch.hints.flip(3)))
        seen = self.teacher(rgb.contiguous(memory_format=torch.channels_last), hints).sigmoid()
        first, second = seen.chunk(2)
        inside = draw_extents(batch.extents, seen.shape[1:])
        first, second = first * inside, second.flip(2) * inside
        a, b = first > 0.5, second > 0.5
        union = (a | b).sum((1, 2))
        return TeacherMasks((first + second) / 2, (a & b).sum((1, 2)) / union.clamp(min=1))

    @torch.no_grad()
    def _follow(self) -> None:
        kept: list[torch.Tensor] = []
        learned: list[torch.Tensor] = []
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            if new.requires_grad:
                kept.append(old)
                learned.append(new)
        torch._foreach_lerp_(kept, learned, 1 - self.settings.teacher_decay)

    def _rate_factor(self) -> float:
        """Linear warm-up, then a cosine to zero at the end of the plan."""
        warmup = self.settings.warmup_iterations
        if self.iteration < warmup or not self.total:
            return (self.iteration + 1) / max(warmup, 1)
        done = (self.iteration - warmup) / max(self.total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def result(self) -> CropNetwork:
        """What was learned, averaged with where it started."""
        result, _ = load_crop_network(self.start)
        for value, learned in zip(result.parameters(), self.teacher.parameters(), strict=True):
            value.copy_(learned.cpu().lerp(value, self.settings.start_share))
        return result

    def _watch_fill(self, fill: float) -> None:
        self.fill += 0.05 * (fill - self.fill)
        low, high = _COLLAPSED_FILL
        if not self.has_warned and not low < self.fill < high:
            self.has_warned = True
            logger.warning(
                "masks fill %.0f %% of their boxes: they have collapsed to %s. Check the boxes "
                "with `pipeline data check`; if they are right, label with the weights that this "
                "started from (`pipeline masks --minutes 0`), or lower learning_rate=%g",
                100 * self.fill,
                "the boxes" if self.fill >= high else "nothing",
                self.settings.learning_rate,
            )

    def save(self) -> None:
        """Write all that the next iteration depends on; the same in all processes."""
        if self.rank:
            return
        state: dict[str, Any] = {
            "settings": dataclasses.asdict(self.settings) | {"frozen": list(self.settings.frozen)},
            "boxes": len(self.source.index),
            "start": self.start_digest,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        state |= {name: getattr(self, name) for name in _COUNTERS}
        save_atomically(state, self.state_path)

    def load(self) -> None:
        """Go on where `save` stopped."""
        state = load_state(self.state_path)
        own = dataclasses.asdict(self.settings) | {"frozen": list(self.settings.frozen)}
        changed = [
            f"{name} was {state['settings'].get(name)!r}, is {value!r}"
            for name, value in own.items()
            if name not in _FREE_SETTINGS and state["settings"].get(name) != value
        ]
        if state["boxes"] != len(self.source.index):
            changed.append(f"boxes were {state['boxes']}, are {len(self.source.index)}")
        if state["start"] != self.start_digest:
            changed.append(f"it started from other weights than {self.start}")
        if changed:
            raise CheckpointError(
                f"{self.state_path} is of another run: {'; '.join(changed)}. Use another folder, "
                "or resume=False to start again"
            )
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _COUNTERS:
            setattr(self, name, state[name])


_COUNTERS = ("iteration", "total", "seconds", "fill", "has_warned")
_FREE_SETTINGS = ("checkpoint_seconds", "photo_cache_bytes", "max_iterations")


def drop_hints(
    hints_N2SS: torch.Tensor, settings: LabellerSettings, iteration: int, first: int = 0
) -> torch.Tensor:
    """Hints as the student sees them: each kind hidden from some crops.

    Args:
        hints_N2SS: of the batch, or of a process's part of it.
        settings: shares and seed.
        iteration: that draws.
        first: place of the part in the batch.
    """
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
    kept = torch.rand(first + len(hints_N2SS), 2, generator=generator)[first:]
    shares = torch.empty(2)
    shares[BOX_HINT], shares[DEPTH_HINT] = settings.box_hint_share, settings.depth_hint_share
    return hints_N2SS * (kept < shares).to(hints_N2SS.device)[:, :, None, None]


def freeze_parameters(encoder: nn.Module, beginnings: Sequence[str]) -> None:
    """Keep the parameters of an encoder whose names begin so."""
    for name, parameter in encoder.named_parameters():
        if name.startswith(tuple(beginnings)):
            parameter.requires_grad_(False)


def _build_optimizer(network: CropNetwork, settings: LabellerSettings) -> torch.optim.Optimizer:
    encoder = [p for p in network.encoder.parameters() if p.requires_grad]
    own = {id(p) for p in network.encoder.parameters()}
    decoder = [p for p in network.parameters() if id(p) not in own]
    return torch.optim.AdamW(
        [
            {"params": encoder, "factor": settings.encoder_rate},
            {"params": decoder, "factor": 1.0},
        ],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
