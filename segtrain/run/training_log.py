"""What a run tells: means over steps and processes, as rows of metrics.jsonl and log lines."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch
from detectron2.utils import comm

from segtrain.data.coco_boxes import BoxDataset
from segtrain.run.experiment import Experiment
from segtrain.run.metrics_log import MetricsLog

logger = logging.getLogger(__name__)

# Masks that fill this share of their boxes are boxes: projection loss alone can do that.
FULL_BOX_RATIO = 0.95
# Masks that fill less of their boxes after this share of a run do not come back by themselves.
_EMPTY_MASK_RATIO, _SHARE_TO_OPEN = 0.02, 0.2
FILL_RATIO_METRIC = "mask_box_fill_ratio"


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

    def joined(self) -> MetricsWindow:
        """The sums over all processes, for each of which this is called."""
        total = MetricsWindow()
        for window in comm.all_gather(self):
            for name, value in window.sums.items():
                total.sums[name] = total.sums.get(name, 0.0) + value
                total.counts[name] = total.counts.get(name, 0) + window.counts[name]
        return total

    def pop_joint_means(self) -> dict[str, float]:
        """Mean of each value over all processes, and start anew."""
        joint = self.joined()
        self.sums, self.counts = {}, {}
        return joint.pop_means()


def log_start(
    experiment: Experiment, dataset: BoxDataset, device: torch.device, learning_rate: float
) -> None:
    """Log what is trained on, and how the learning rate came about."""
    logger.info(
        "training on %s: %d images, %d boxes, %d classes; left out: %s",
        device,
        len(dataset.records),
        dataset.num_boxes,
        len(dataset.categories),
        dataset.dropped or "nothing",
    )
    logger.info(
        "learning rate %g = %g for a batch of %d, scaled to a batch of %d",
        learning_rate,
        experiment.optimizer.learning_rate,
        experiment.optimizer.reference_batch_size,
        experiment.train.batch_size,
    )


def report_progress(
    log: MetricsLog, iteration: int, max_iter: int, means: dict[str, float]
) -> None:
    """Write a row, log a line, and warn when masks turn into boxes or into nothing."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        means["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    log.append(iteration, means)
    terms = "  ".join(f"{k} {v:.3f}" for k, v in means.items() if k.startswith("loss_"))
    logger.info(
        "iteration %d/%d  total %.3f  %s  lr %.2g  %.2f s/it (data %.2f)  left %s",
        iteration,
        max_iter,
        means["total_loss"],
        terms,
        means["learning_rate"],
        means["seconds"],
        means["data_seconds"],
        format_duration((max_iter - iteration) * means["seconds"]),
    )
    fill = means.get(FILL_RATIO_METRIC, math.nan)
    if fill > FULL_BOX_RATIO:
        logger.warning(
            "masks fill %.0f%% of their boxes: they are turning into boxes; a longer warm-up "
            "of the pairwise losses or a lower learning rate helps",
            100 * fill,
        )
    elif fill < _EMPTY_MASK_RATIO and iteration >= _SHARE_TO_OPEN * max_iter:
        logger.warning(
            "masks fill %.1f%% of their boxes: they are empty; with the depth layer "
            "model.depth_warmup=True lets them form first, without it a lower learning rate helps",
            100 * fill,
        )


def format_duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
