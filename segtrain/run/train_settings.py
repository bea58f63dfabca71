"""How long, how precisely and on what a run trains: settings, each checked for itself.

Like every module of settings, it imports no torch: a mistyped config is refused before that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain.errors import TrainingConfigError
from segtrain.run.schedule import fraction_of

if TYPE_CHECKING:
    from collections.abc import Sequence


PRECISIONS = ("fp32", "bf16", "fp16")

_AT_LEAST_ONE = (
    "max_iter",
    "batch_size",
    "accumulation",
    "checkpoint_period",
    "keep_checkpoints",
    "log_period",
    "num_processes",
    "num_machines",
)


@dataclass(kw_only=True)
class TrainSettings:
    """Length, precision and bookkeeping of a run.

    Attributes:
        max_iter: optimizer steps.
        batch_size: images per step, over all processes and accumulated parts.
        accumulation: parts that a process splits its images of a step into, to save memory.
        seed: of everything random.
        deterministic: sum in a fixed order, so that the same seed gives the same bits on the same
            machine with the same number of threads; on a GPU, False is faster.
        device: `auto`, `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16` of the forward pass; weights stay fp32.
        channels_last: memory format of weights and images.
        init_checkpoint: weights to start from; None starts from the backbone's.
        checkpoint_period: iterations between checkpoints.
        keep_checkpoints: how many are kept.
        log_period: iterations that one row of metrics.jsonl averages over.
        tensorboard: write TensorBoard events.
        output_dir: folder of the run, for commands that are not told one; the trainer gets its own.
        num_processes: processes on this machine.
        num_machines: machines.
        machine_rank: of this machine.
        dist_url: address of the first process, `tcp://HOST:PORT`; `auto` on one machine.
        distill_from: share of the run after which the teacher teaches; None means never.
        deliver: whose weights are the final ones, the `student`'s or the `teacher`'s.
        teacher_momentum: of the teacher's moving average.
        teacher_short_side: short side of the teacher's view; None means the student's.
        teacher_max_size: bound on the longer side of the teacher's view.
    """

    max_iter: int = 90_000
    batch_size: int = 16
    accumulation: int = 1
    seed: int = 0
    deterministic: bool = True
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = False
    init_checkpoint: str | None = None
    checkpoint_period: int = 2500
    keep_checkpoints: int = 2
    log_period: int = 20
    tensorboard: bool = True
    output_dir: str | None = None
    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    distill_from: float | None = None
    deliver: str = "student"
    teacher_momentum: float = 0.999
    teacher_short_side: int | None = 800
    teacher_max_size: int = 1333

    def __post_init__(self) -> None:
        """Check ranges and fields that depend on each other."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise TrainingConfigError(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.precision not in PRECISIONS:
            raise TrainingConfigError(
                f"train.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise TrainingConfigError(f"train.device={self.device!r} is not auto, cpu or cuda")
        if self.device == "cpu":
            require_precision(self.precision, "cpu")
        parts = self.num_processes * self.num_machines * self.accumulation
        if self.batch_size % parts:
            raise TrainingConfigError(
                f"train.batch_size={self.batch_size} cannot be split into {parts} equal parts "
                "(processes × machines × accumulation); change train.batch_size or "
                "train.accumulation"
            )
        if not 0 <= self.machine_rank < self.num_machines:
            raise TrainingConfigError(
                f"train.machine_rank={self.machine_rank} is not one of 0 to "
                f"{self.num_machines - 1}; train.num_machines={self.num_machines}"
            )
        if self.num_machines > 1 and self.dist_url == "auto":
            raise TrainingConfigError(
                "train.dist_url=auto finds no process of another machine; set it to "
                "tcp://HOST:PORT on all of them, with an address of machine 0 and a free port there"
            )
        if self.deliver not in ("student", "teacher"):
            raise TrainingConfigError(f"train.deliver={self.deliver!r} is not student or teacher")
        if self.deliver == "teacher" and self.distill_from is None:
            raise TrainingConfigError(
                "train.deliver=teacher, but there is none; set train.distill_from, or "
                "train.deliver=student"
            )
        if self.distill_from is not None and not 0 <= self.distill_from <= 1:
            raise TrainingConfigError(
                f"train.distill_from={self.distill_from} is a share of the run, 0..1"
            )


SettingsType = TypeVar("SettingsType")


def read_settings(node: Any, kind: type[SettingsType]) -> SettingsType:
    """A node of a config as its settings dataclass, checked.

    Args:
        node: an OmegaConf node, references to other nodes allowed.
        kind: the dataclass.

    Raises:
        TrainingConfigError: unknown field, wrong type, or a value out of range.
    """
    try:
        values = OmegaConf.to_container(node, resolve=True)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        raise TrainingConfigError(f"{kind.__name__}: {str(error).splitlines()[0]}") from error
    assert isinstance(settings, kind)
    return settings


def distillation_start(settings: TrainSettings) -> int | None:
    """First iteration at which the teacher teaches; None when it never does."""
    if settings.distill_from is None:
        return None
    return fraction_of(settings.distill_from, settings.max_iter)


def require_precision(precision: str, device_type: str) -> None:
    """Refuse fp16 where it would be many times slower than fp32.

    Raises:
        TrainingConfigError: fp16 on a CPU.
    """
    if precision == "fp16" and device_type == "cpu":
        raise TrainingConfigError("train.precision=fp16 needs a GPU; use bf16 on a CPU")


def require_num_classes(categories: Sequence[object], num_classes: int | None, source: str) -> None:
    """Refuse a dataset that has another number of classes than the model; None takes any.

    Raises:
        TrainingConfigError: the numbers differ.
    """
    if num_classes is not None and len(categories) != num_classes:
        raise TrainingConfigError(
            f"data.num_classes={num_classes}, but {source} has {len(categories)} "
            f"categories; set data.num_classes={len(categories)}"
        )
