"""The training loop: train → train_step → forward_backward.

One process per device; detectron2's launch starts several. A run is a pure function of its config:
the order of images, their augmentations and all random numbers follow from the seed and the
iteration, so a killed run that is started again ends with the same weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segtrain.data.coco_boxes import BoxDataset, read_coco_boxes, require_image_files
from segtrain.data.loader import iterate_batches
from segtrain.data.mapper import TeacherView, TrainingMapper
from segtrain.data.sampler import ResumableBatchSampler
from segtrain.depth_source import describe_fill_command, open_depth
from segtrain.errors import (
    CheckpointError,
    NonFiniteLossError,
    SegtrainError,
    TrainingConfigError,
)
from segtrain.losses.supervision import MaskTeacher
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
from segtrain.run.determinism import deterministic_algorithms
from segtrain.run.experiment import Experiment, read_experiment
from segtrain.run.joint_checkpoints import load_newest_state
from segtrain.run.metrics_log import MetricsLog
from segtrain.run.optimizer import build_optimizer, scale_learning_rate
from segtrain.run.resume_rules import describe_refusal, describe_trajectory, find_changes
from segtrain.run.schedule import learning_rate_factor
from segtrain.run.train_settings import (
    autocast_to,
    choose_device,
    distillation_start,
    require_consistent_settings,
    require_num_classes,
    require_precision,
)

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
OnProgress = Callable[[int, int, dict[str, float]], None]

# Masks that fill this share of their boxes are boxes: projection loss alone can do that.
FULL_BOX_RATIO = 0.95
FILL_RATIO_METRIC = "mask_box_fill_ratio"

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


@dataclass
class MetricsWindow:
    """Sums of the values since the last row of metrics.jsonl."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        """Take one iteration's values in."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop_means(self) -> dict[str, float]:
        """Mean of each value, and start anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


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

    from detectron2.engine import launch
    from torch.multiprocessing import get_context
    from torch.multiprocessing.spawn import ProcessRaisedException

    # A process's own error comes back through here; torch would bury it in a traceback's text.
    failures: Any = get_context("spawn").SimpleQueue()
    try:
        launch(
            _train_in_process,
            settings.num_processes,
            num_machines=settings.num_machines,
            machine_rank=settings.machine_rank,
            dist_url=settings.dist_url,
            args=(experiment, run_dir, resume, failures, _LogStyle.current()),
        )
    except ProcessRaisedException as error:
        if failures.empty():
            raise
        raise failures.get() from error
    return TrainSummary(**json.loads((run_dir / _SUMMARY_FILE).read_text()))


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


def _train_in_process(
    experiment: Experiment, run_dir: Path, resume: bool, failures: Any, log_style: _LogStyle
) -> None:
    log_style.apply()
    try:
        Trainer(experiment, run_dir, resume=resume).train()
    except SegtrainError as error:
        failures.put(error)
        raise


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
        self.data_settings = self.experiment.data
        self.depth_settings = self.experiment.depth
        self.loader_settings = self.experiment.train_loader
        self.device = choose_device(self.settings.device)
        require_precision(self.settings.precision, self.device)

        run_dir.mkdir(parents=True, exist_ok=True)
        seed_all(self.settings.seed)
        self.dataset = self._read_dataset()
        self.depth = open_depth(self.depth_settings)
        self.trajectory = describe_trajectory(
            self.experiment, None if self.depth is None else self.depth.fingerprint
        )
        self.model: Any = instantiate(self.experiment.model)
        require_consistent_settings(
            self.model, self.settings, self.data_settings, self.depth_settings
        )
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
            self._log_start()
        self.model.train()
        batches = self._iterate_batches()
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
                    last_metrics = self.window.pop_means()
                    if log is not None:
                        self._report(log, last_metrics)
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
                self._require_finite(total, losses)
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

    def _require_finite(self, total: torch.Tensor, losses: dict[str, torch.Tensor]) -> None:
        is_finite = torch.isfinite(total.detach()).float()
        if comm.get_world_size() > 1:
            # All processes stop together; one that raised alone would leave the others waiting.
            torch.distributed.all_reduce(is_finite, op=torch.distributed.ReduceOp.MIN)
        if float(is_finite) == 1.0:
            return
        values = {name: float(value.detach()) for name, value in losses.items()}
        bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if not bad and not math.isfinite(float(total.detach())):
            bad = [f"total_loss = {float(total.detach())}"]
        self._raise_non_finite(bad)

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
            self._raise_non_finite([f"gradient norm = {float(norm)}"])
        if self.optimizer_settings.gradient_clip_norm > 0:
            nn.utils.clip_grads_with_norm_(
                parameters, self.optimizer_settings.gradient_clip_norm, norm
            )
        return float(norm)

    def _raise_non_finite(self, bad: list[str]) -> None:
        """Stop every process with one message: each has only seen its own terms and images."""
        found = (
            [(bad, self.step_images)]
            if comm.get_world_size() == 1
            else comm.all_gather((bad, self.step_images))
        )
        terms = dict.fromkeys(term for terms, _ in found for term in terms)
        images = [image for terms, images in found if terms for image in images]
        raise NonFiniteLossError(
            f"iteration {self.iteration}: {', '.join(terms)}; images: {', '.join(images)}. The "
            "weights are those before this step. Lower optimizer.learning_rate, set "
            "optimizer.gradient_clip_norm, or look at these images"
        )

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

    def _read_dataset(self) -> BoxDataset:
        data = self.data_settings
        if data.bad_boxes not in ("drop", "refuse"):
            raise TrainingConfigError(f"data.bad_boxes={data.bad_boxes!r} is not drop or refuse")
        dataset = read_coco_boxes(
            data.train_json,
            data.train_images,
            keep_masks=data.use_masks,
            keep_images_without_boxes=data.keep_images_without_boxes,
            bad_boxes="refuse" if data.bad_boxes == "refuse" else "drop",
        )
        require_image_files(dataset.records, data.train_json)
        require_num_classes(dataset.categories, data.num_classes, data.train_json)
        return dataset

    def _iterate_batches(self) -> Iterator[Batch]:
        settings = self.settings
        loader_settings = self.loader_settings
        teacher_view = None
        start = distillation_start(settings)
        if start is not None:
            teacher_view = TeacherView(
                first_position=start * settings.batch_size,
                short_side=settings.teacher_short_side,
                max_size=settings.teacher_max_size,
            )
        mapper = TrainingMapper(
            loader_settings.augmentation,
            seed=settings.seed,
            depth=self.depth,
            depth_command=describe_fill_command(
                self.depth_settings, self.data_settings.train_json, self.data_settings.train_images
            ),
            teacher_view=teacher_view,
            use_masks=self.data_settings.use_masks,
        )
        sampler = ResumableBatchSampler(
            len(self.dataset.records),
            batch_size=settings.batch_size // settings.accumulation // comm.get_world_size(),
            seed=settings.seed,
            start_position=self.iteration * settings.batch_size,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        return iterate_batches(
            self.dataset.records,
            mapper,
            sampler,
            loader_settings,
            pin_memory=self.device.type == "cuda",
            spawn_workers=self.depth is not None and not self.depth.survives_fork,
        )

    def _save_checkpoint(self) -> None:
        random_states = comm.gather(capture_random_state())
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
                "metrics_window": asdict(self.window),
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

    def _log_start(self) -> None:
        logger.info(
            "training on %s: %d images, %d boxes, %d classes; left out: %s",
            self.device,
            len(self.dataset.records),
            self.dataset.num_boxes,
            len(self.dataset.categories),
            self.dataset.dropped or "nothing",
        )
        logger.info(
            "learning rate %g = %g for a batch of %d, scaled to a batch of %d",
            self.learning_rate,
            self.optimizer_settings.learning_rate,
            self.optimizer_settings.reference_batch_size,
            self.settings.batch_size,
        )

    def _report(self, log: MetricsLog, means: dict[str, float]) -> None:
        if self.device.type == "cuda":
            means["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        log.append(self.iteration, means)
        remaining = (self.settings.max_iter - self.iteration) * means["seconds"]
        terms = "  ".join(f"{k} {v:.3f}" for k, v in means.items() if k.startswith("loss_"))
        logger.info(
            "iteration %d/%d  total %.3f  %s  lr %.2g  %.2f s/it (data %.2f)  left %s",
            self.iteration,
            self.settings.max_iter,
            means["total_loss"],
            terms,
            means["learning_rate"],
            means["seconds"],
            means["data_seconds"],
            format_duration(remaining),
        )
        fill = means.get(FILL_RATIO_METRIC, math.nan)
        if fill > FULL_BOX_RATIO:
            logger.warning(
                "masks fill %.0f%% of their boxes: they are turning into boxes; a longer warm-up "
                "of the pairwise losses or a lower learning rate helps",
                100 * fill,
            )

    def _finish(self, seconds: float, last_metrics: dict[str, float]) -> TrainSummary:
        weights = self.run_dir / "model_final.pth"
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
                    "model": self.model.state_dict(),
                    "iteration": self.iteration,
                    "categories": self.dataset.categories,
                },
                weights,
            )
            (self.run_dir / _SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=2))
        comm.synchronize()
        return summary


def format_duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
