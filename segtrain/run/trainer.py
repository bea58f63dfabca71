"""The training loop: train → train_step → forward_backward.

One process per device; detectron2's launch starts several. A run is a pure function of its config:
the order of images, their augmentations and all random numbers follow from the seed and the
iteration, so a killed run that is started again ends with the same weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segtrain.cpu_kernels.acceleration import accelerate
from segtrain.depth_source import open_depth
from segtrain.errors import CheckpointError
from segtrain.losses.supervision import MaskTeacher
from segtrain.precision import autocast_to, choose_device
from segtrain.process_group import average_batch_statistics
from segtrain.run.checkpoints import (
    capture_random_state,
    checkpoint_path,
    initialise_weights,
    list_checkpoints,
    remove_old_checkpoints,
    remove_partial_files,
    restore_random_state,
    save_atomically,
    seed_all,
)
from segtrain.run.dataset_records import read_training_data
from segtrain.run.determinism import deterministic_algorithms
from segtrain.run.experiment import Experiment, read_experiment
from segtrain.run.finite_steps import raise_non_finite, require_finite_losses
from segtrain.run.joint_checkpoints import load_newest_state
from segtrain.run.metrics_log import MetricsLog
from segtrain.run.model_building import build_model
from segtrain.run.optimizer import build_optimizer, scale_learning_rate
from segtrain.run.processes import run_in_processes
from segtrain.run.resume_rules import describe_refusal, describe_trajectory, find_changes
from segtrain.run.schedule import learning_rate_factor
from segtrain.run.setting_rules import facts_of_model, require_consistent_settings
from segtrain.run.train_settings import distillation_start, require_precision
from segtrain.run.training_data import Batch, iterate_training_batches
from segtrain.run.training_log import MetricsWindow, log_start, report_progress

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, dict[str, float]], None]

_SUMMARY_FILE = "train_summary.json"


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a finished training did.

    Attributes:
        final_weights: file with the weights and the dataset's categories.
        num_iterations: finished iterations of the run.
        num_resumed: how many of them an earlier process had done.
        seconds: of this process.
        last_metrics: last row of metrics.jsonl.
        dropped: annotations and images that were left out, by reason.
    """

    final_weights: str
    num_iterations: int
    num_resumed: int
    num_images: int
    num_boxes: int
    learning_rate: float
    seconds: float
    last_metrics: dict[str, float]
    dropped: dict[str, int]


def train_model(
    cfg: Any, run_dir: Path, *, resume: bool, on_progress: OnProgress | None = None
) -> TrainSummary:
    """Train a config's model.

    Args:
        cfg: an experiment, or a loaded config file that is one.
        run_dir: gets metrics.jsonl, tensorboard/, checkpoints/, config.yaml, model_final.pth.
        resume: continue from the newest checkpoint, if there is one; False refuses a folder
            that has checkpoints.
        on_progress: called after each iteration with iteration, max_iter and its losses, in a
            single-process run.

    Raises:
        TrainingConfigError: settings that contradict each other.
        CheckpointError: the folder holds another run, or one with another trajectory.
        DatasetError, MissingDepthError: the data cannot be used.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    experiment = read_experiment(cfg)
    settings = experiment.train
    if not resume and list_checkpoints(run_dir):
        raise CheckpointError(
            f"{run_dir} already holds checkpoints; resume that run, or choose another folder"
        )
    num_processes = settings.num_processes * settings.num_machines
    if num_processes == 1 or torch.distributed.is_initialized():
        return Trainer(experiment, run_dir, resume=resume, on_progress=on_progress).train()

    run_in_processes(
        _train_in_process,
        (experiment, run_dir, resume),
        num_processes=settings.num_processes,
        num_machines=settings.num_machines,
        machine_rank=settings.machine_rank,
        dist_url=settings.dist_url,
    )
    return TrainSummary(**json.loads((run_dir / _SUMMARY_FILE).read_text()))


def _train_in_process(experiment: Experiment, run_dir: Path, resume: bool) -> None:
    Trainer(experiment, run_dir, resume=resume).train()


class Trainer:
    """One process of a training run.

    Args:
        cfg: an experiment, or a loaded config file that is one.
        run_dir: folder of the run.
        resume: continue from the newest checkpoint.
        on_progress: called after each iteration.
    """

    def __init__(
        self, cfg: Any, run_dir: Path, *, resume: bool, on_progress: OnProgress | None = None
    ) -> None:
        self.experiment = read_experiment(cfg)
        self.run_dir = run_dir
        self.on_progress = on_progress
        self.settings = self.experiment.train
        self.schedule = self.experiment.schedule
        self.optimizer_settings = self.experiment.optimizer
        self.device = choose_device(self.settings.device)
        require_precision(self.settings.precision, self.device.type)

        run_dir.mkdir(parents=True, exist_ok=True)
        seed_all(self.settings.seed)
        self.dataset = read_training_data(self.experiment)
        self.experiment = self.experiment.with_num_classes(len(self.dataset.categories))
        self.depth = open_depth(self.experiment.depth)
        self.trajectory = describe_trajectory(
            self.experiment, None if self.depth is None else self.depth.fingerprint
        )
        self.model: Any = build_model(self.experiment)
        accelerate(self.model)
        require_consistent_settings(facts_of_model(self.model), self.experiment)
        if self.settings.init_checkpoint:
            initialise_weights(self.model, self.settings.init_checkpoint)
        self.model.to(self.device)
        if self.settings.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.learning_rate = scale_learning_rate(self.optimizer_settings, self.settings.batch_size)
        self.optimizer = build_optimizer(self.model, self.optimizer_settings, self.learning_rate)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.settings.precision == "fp16"
        )
        self.teacher: MaskTeacher | None = None
        self.window = MetricsWindow()
        self.iteration = 0
        self.step_images: list[str] = []
        # Different processes draw different random numbers, where a backbone draws any.
        seed_all(self.settings.seed * 1009 + comm.get_rank())
        if resume:
            self._load_newest_checkpoint()
        self.num_resumed = self.iteration
        self.forward: Any = self.model
        if comm.get_world_size() > 1:
            # torch 2.6 knows the old name only; strides of 1×1 kernels cost nothing here.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
            self.forward = DistributedDataParallel(
                self.model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                # Batches without boxes and configs without depth loss leave layers unused.
                find_unused_parameters=True,
            )

    def train(self) -> TrainSummary:
        """Run all remaining iterations and write the final weights."""
        started = time.monotonic()
        log = None
        if comm.is_main_process():
            remove_partial_files(self.run_dir)
            OmegaConf.save(self.experiment.to_plain(), self.run_dir / "config.yaml")
            log = MetricsLog(
                self.run_dir,
                start_iteration=self.iteration,
                tensorboard=self.settings.tensorboard,
            )
            log_start(self.experiment, self.dataset, self.device, self.learning_rate)
        self.model.train()
        batches = iterate_training_batches(
            self.experiment,
            self.dataset,
            self.depth,
            start_iteration=self.iteration,
            pin_memory=self.device.type == "cuda",
        )
        last_metrics: dict[str, float] = {}
        try:
            while self.iteration < self.settings.max_iter:
                with deterministic_algorithms(self.device, enabled=self.settings.deterministic):
                    metrics = self.train_step(batches)
                self.window.add(metrics)
                if self.on_progress is not None:
                    self.on_progress(self.iteration, self.settings.max_iter, metrics)
                is_last = self.iteration == self.settings.max_iter
                if self.iteration % self.settings.log_period == 0 or is_last:
                    last_metrics = self.window.pop_joint_means()
                    if log is not None:
                        max_iter = self.settings.max_iter
                        report_progress(log, self.iteration, max_iter, last_metrics)
                if self.iteration % self.settings.checkpoint_period == 0 or is_last:
                    self._save_checkpoint()
        finally:
            if log is not None:
                log.close()
        return self._finish(time.monotonic() - started, last_metrics)

    def train_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step.

        Args:
            batches: where the accumulated parts of the step come from.

        Returns:
            Losses, learning rate, seconds, and what the model measured.

        Raises:
            NonFiniteLossError: before any weight changed.
        """
        started = time.monotonic()
        self._start_teacher_when_due()
        factor = learning_rate_factor(self.iteration, self.settings.max_iter, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        self.model.set_iteration(self.iteration)

        metrics, data_seconds = self.forward_backward(batches)
        metrics["gradient_norm"] = self._clip_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        average_batch_statistics(self.model)
        if self.teacher is not None:
            self.teacher.update(self.model, self.settings.teacher_momentum)
        self.iteration += 1
        metrics["learning_rate"] = self.learning_rate * factor
        metrics["seconds"] = time.monotonic() - started
        metrics["data_seconds"] = data_seconds
        return metrics

    def forward_backward(self, batches: Iterator[Batch]) -> tuple[dict[str, float], float]:
        """Gradients of one step, over all accumulated parts and processes.

        Returns:
            Mean losses and statistics of this process, and the seconds spent waiting for data.
        """
        num_parts = self.settings.accumulation
        metrics: dict[str, float] = {}
        data_seconds = 0.0
        self.step_images = []
        for part in range(num_parts):
            waiting = time.monotonic()
            batch = next(batches)
            self.step_images += [f"{s['image_id']} ({s['file_name']})" for s in batch]
            data_seconds += time.monotonic() - waiting
            is_last = part == num_parts - 1
            with contextlib.nullcontext() if is_last else self._without_gradient_exchange():
                with autocast_to(self.settings.precision, self.device):
                    losses = self._compute_losses(batch)
                total = torch.stack([value.float() for value in losses.values()]).sum()
                require_finite_losses(total, losses, self.iteration, self.step_images)
                self.scaler.scale(total / num_parts).backward()
            values = {name: value.detach() for name, value in losses.items()}
            values["total_loss"] = total.detach()
            values |= self.model.pop_metrics()
            for name, value in values.items():
                metrics[name] = metrics.get(name, 0.0) + float(value) / num_parts
        return metrics, data_seconds

    def _compute_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        # A model that makes no teacher is not asked to take one.
        arguments = {} if self.teacher is None else {"teacher": self.teacher}
        losses: dict[str, torch.Tensor] = self.forward(batch, **arguments)
        return losses

    def _clip_gradients(self) -> float:
        """Bound the norm of the whole gradient, if the config says so.

        Returns:
            The norm before.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The scaler skips a step that overflowed in fp16; elsewhere such a gradient is an error.
        if not bool(torch.isfinite(norm)) and not self.scaler.is_enabled():
            bad = [f"gradient norm = {float(norm)}"]
            raise_non_finite(bad, self.iteration, self.step_images)
        if self.optimizer_settings.gradient_clip_norm > 0:
            nn.utils.clip_grads_with_norm_(
                parameters, self.optimizer_settings.gradient_clip_norm, norm
            )
        return float(norm)

    def _without_gradient_exchange(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.forward, DistributedDataParallel):
            context: contextlib.AbstractContextManager[None] = self.forward.no_sync()
            return context
        return contextlib.nullcontext()

    def _start_teacher_when_due(self) -> None:
        start = distillation_start(self.settings)
        if start is None or self.teacher is not None or self.iteration < start:
            return
        self.teacher = self.model.distillation.make_teacher(self.model)
        logger.info(
            "iteration %d: %s starts as a copy of the student", self.iteration, self.teacher
        )

    def _save_checkpoint(self) -> None:
        random_states = comm.gather(capture_random_state())
        window = self.window.joined()
        if comm.is_main_process():
            state = {
                "format_version": 1,
                "model": self.model.state_dict(),
                "teacher": None if self.teacher is None else self.teacher.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random_states": random_states,
                "iteration": self.iteration,
                "sample_position": self.iteration * self.settings.batch_size,
                "metrics_window": asdict(window),
                "trajectory": self.trajectory,
                "categories": self.dataset.categories,
            }
            save_atomically(state, checkpoint_path(self.run_dir, self.iteration))
            remove_old_checkpoints(self.run_dir, self.settings.keep_checkpoints)
        comm.synchronize()

    def _load_newest_checkpoint(self) -> None:
        found = load_newest_state(self.run_dir, self.device)
        if found is None:
            return
        path, state = found
        if changes := find_changes(state["trajectory"], self.trajectory):
            raise CheckpointError(f"{path} cannot be continued: {describe_refusal(changes)}")
        self.model.load_state_dict(state["model"])
        if state["teacher"] is not None:
            teacher: MaskTeacher = self.model.distillation.make_teacher(self.model)
            teacher.load_state_dict(state["teacher"])
            self.teacher = teacher
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        # The checkpoint has the sums of all processes; one of them goes on with them.
        if comm.is_main_process():
            self.window = MetricsWindow(**state["metrics_window"])
        self.iteration = int(state["iteration"])
        random_states = state["random_states"]
        if len(random_states) == comm.get_world_size():
            restore_random_state(random_states[comm.get_rank()])
        else:
            logger.warning(
                "the run had %d processes and has %d now: it goes on with random numbers of its "
                "own, so it will not end bit for bit as it would have",
                len(random_states),
                comm.get_world_size(),
            )
        logger.info("resumed from %s after %d iterations", path, self.iteration)

    def _finish(self, seconds: float, last_metrics: dict[str, float]) -> TrainSummary:
        weights = self.run_dir / "model_final.pth"
        delivered: dict[str, torch.Tensor] = (
            self.teacher.weights()
            if self.teacher is not None and self.settings.deliver == "teacher"
            else self.model.state_dict()
        )
        summary = TrainSummary(
            final_weights=str(weights),
            num_iterations=self.iteration,
            num_resumed=self.num_resumed,
            num_images=len(self.dataset.records),
            num_boxes=self.dataset.num_boxes,
            learning_rate=self.learning_rate,
            seconds=seconds,
            last_metrics=last_metrics,
            dropped=self.dataset.dropped,
        )
        if comm.get_local_rank() == 0:
            # Once per machine: machines need not share a file system.
            save_atomically(
                {
                    "format_version": 1,
                    "model": delivered,
                    "iteration": self.iteration,
                    "categories": self.dataset.categories,
                },
                weights,
            )
            (self.run_dir / _SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=2))
        comm.synchronize()
        return summary
