"""Train one row with one seed by `segtrain`'s trainer, and measure it."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall
from detectron2.utils.registry import locate
from omegaconf import OmegaConf

from benchmarks.method_table.labels import mean_ious
from benchmarks.method_table.rows import Row
from benchmarks.method_table.scenes import Scenes, read_annotations
from depthcache import DepthCache
from pipeline.config import load_config
from segtrain.losses.annotated_masks import annotated_mask_loss
from segtrain.losses.supervision import MaskBatch, Supervision
from segtrain.run.metrics_log import read_metrics
from segtrain.run.trainer import train_model
from segtrain.use.evaluation import evaluate_model
from segtrain.use.labelling import label_dataset

_SMALL = "configs/demo/boxinst.py"
_NETWORK = ("backbone", "tower_depth", "pixel_mean", "pixel_std")
_KEPT_OF_TRAIN = ("distill_from", "deliver")
OnProgress = Callable[[str], None]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Budget:
    """What every row has alike.

    Attributes:
        iterations: optimizer steps of a row.
        start_iterations: of what all rows of a seed start from.
        batch: pictures a step.
        start_batch: likewise, of the start.
        short_side: pixels; training draws 7/8, 1 or 9/8 of it.
        teacher_side: pixels of the larger view that teachers see.
        learning_rate: AdamW's, with the demo's warm-up and drops.
        warmup: share of the run over which pairwise terms grow to full weight.
        label_iterations: steps of the labeller.
        channels: of the pyramid and the heads.
        mask_channels: of the mask branch.
        backbone: timm model; the default starts from ImageNet weights.
        precision: of the forward pass, as `train.precision`.
    """

    iterations: int = 250
    start_iterations: int = 300
    batch: int = 8
    start_batch: int = 8
    short_side: int = 384
    teacher_side: int = 576
    learning_rate: float = 1e-3
    warmup: float = 0.5
    label_iterations: int = 200
    channels: int = 64
    mask_channels: int = 16
    backbone: str = "tf_efficientnet_lite0"
    precision: str = "fp32"


# A GPU takes all rows of three seeds within ten minutes; two CPU cores take minutes a row.
BUDGETS = {
    "gpu": Budget(),
    "cpu": Budget(iterations=80, batch=4, short_side=256, teacher_side=384, label_iterations=60),
}


class KnownMasks(Supervision):
    """Annotated masks teach, boxes without one do not: they are there to be found."""

    def __init__(self) -> None:
        super().__init__(name="mixed", reads_masks=True)

    def losses(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """The dice distance of what is annotated."""
        return {"loss_mask": annotated_mask_loss(masks, self.name)[0]}


def train_start(
    scenes: Scenes, budget: Budget, split: str, seed: int, folder: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """The detector that every row of a seed starts from, as `folder/start.pth`.

    It learns to find the training split's objects, and masks of painted scenes alone.
    """
    # A config without settings of a supervision that another would have to take over.
    cfg = make_config(Row(title="", config="baselines/bbtp_r50"), scenes, budget, split, seed)
    cfg.model.supervision = LazyCall(KnownMasks)()
    cfg.data.update(
        use_masks=True,
        train_json=str(scenes.annotations("start")),
        train_images=str(scenes.images("start")),
    )
    cfg.train.max_iter = budget.start_iterations
    cfg.train.batch_size = cfg.optimizer.reference_batch_size = budget.start_batch
    cfg.dataloader.train.num_workers *= 2
    measured = _train_and_evaluate(cfg, folder, on_progress)
    iou = _measure_given_boxes(cfg, scenes, split, folder, on_progress)
    (folder / "model_final.pth").replace(folder / "start.pth")
    return {"iou": iou, **measured}


def run_row(
    row: Row,
    scenes: Scenes,
    budget: Budget,
    split: str,
    seed: int,
    folder: Path,
    *,
    start: Path,
    depth: str,
    masks: str,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train a row and measure its boxes, its masks, and its masks for given boxes.

    Args:
        row: what.
        scenes: on which pictures.
        budget: how long.
        split: what it is measured on.
        seed: of order, augmentation and what the start has no weights for.
        folder: of the run; removed at the end.
        start: weights to start from.
        depth: source of depth, a name that `Scenes.depth` knows; empty for none.
        masks: file of annotated masks, a name that `Scenes.annotations` knows.
        on_progress: told what is being done; may raise to stop.
    """
    cfg = make_config(row, scenes, budget, split, seed, depth=depth, masks=masks)
    cfg.train.init_checkpoint = str(start)
    measured = _train_and_evaluate(cfg, folder, on_progress)
    iou = _measure_given_boxes(cfg, scenes, split, folder, on_progress)
    shutil.rmtree(folder)
    if depth:
        measured["depth"] = DepthCache.open(scenes.depth("train", depth)).fingerprint
    return {"iou": iou, **measured}


def make_config(
    row: Row,
    scenes: Scenes,
    budget: Budget,
    split: str,
    seed: int,
    *,
    depth: str = "",
    masks: str = "true",
) -> Any:
    """A row's config, as small as the table needs it."""
    small, cfg = load_config(_SMALL), load_config(row.config)
    is_small = row.config.startswith("demo/")
    known = {} if is_small else inspect.signature(locate(cfg.model._target_)).parameters
    sizes = {"feature_channels": budget.channels, "mask_channels": budget.mask_channels}
    for name, value in ({name: small.model[name] for name in _NETWORK} | sizes).items():
        if name in known:
            cfg.model[name] = value
    if budget.backbone != "tf_efficientnet_lite0":
        cfg.model.backbone.update(name=budget.backbone, pretrained=False)
    if "warmup_iterations" in cfg.model:
        cfg.model.warmup_iterations = max(round(budget.warmup * budget.iterations), 1)
        cfg.model.depth_warmup = True  # as in every short schedule: docs/training.md
    if "masks_per_image" in known:
        cfg.model.masks_per_image = 16  # five or more of each object
    asked = {name: cfg.train[name] for name in _KEPT_OF_TRAIN}
    is_teacher_equal = cfg.train.teacher_short_side is None
    photometric = cfg.dataloader.train.augmentation.photometric
    for part in ("train", "optimizer", "schedule", "dataloader"):
        cfg[part] = small[part]
    cfg.dataloader.train.augmentation.photometric = photometric
    side = budget.short_side
    changes = {
        **{f"train.{name}": value for name, value in asked.items()},
        "data.train_json": str(scenes.annotations("train", masks)),
        "data.train_images": str(scenes.images("train")),
        "data.test_json": str(scenes.annotations(split)),
        "data.test_images": str(scenes.images(split)),
        "data.num_classes": 1,
        "depth.enabled": bool(depth),
        "depth.cache": str(scenes.depth("train", depth)),
        "train.max_iter": budget.iterations,
        "train.batch_size": budget.batch,
        "train.seed": seed,
        "train.precision": budget.precision,
        "train.deterministic": not torch.cuda.is_available(),
        "train.checkpoint_period": budget.iterations + budget.start_iterations,
        "train.tensorboard": False,
        "train.teacher_short_side": None if is_teacher_equal else budget.teacher_side,
        "train.teacher_max_size": budget.teacher_side,
        "optimizer.learning_rate": budget.learning_rate,
        "optimizer.reference_batch_size": budget.batch,
        "dataloader.train.num_workers": int(torch.cuda.is_available()),
        "dataloader.train.prefetch_batches": 4,
        "dataloader.train.keep_in_memory": True,
        "dataloader.train.augmentation.short_sides": [side * 7 // 8, side, side * 9 // 8],
        "dataloader.train.augmentation.max_size": side * 9 // 8,
        "dataloader.test.short_side": side,
        "dataloader.test.max_size": side,
        **row.changes,
    }
    for name, value in changes.items():
        OmegaConf.update(cfg, name, value, force_add=name.startswith("model."))
    return cfg


def _train_and_evaluate(cfg: Any, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Train, and measure what is detected on the test split; seconds and memory of the training."""
    shutil.rmtree(folder, ignore_errors=True)
    reset_peak_memory()
    summary = train_model(
        cfg, folder, resume=False, on_progress=lambda done, *_: on_progress(f"iteration {done}")
    )
    peak_mib = read_peak_memory()
    started = time.monotonic()
    metrics = evaluate_model(
        cfg,
        Path(summary.final_weights),
        folder / "eval",
        on_progress=lambda done, _: on_progress(f"picture {done}"),
    )
    rows = read_metrics(folder / "metrics.jsonl")
    chosen = ("AP", "AP50", "AP75")
    return {
        "box": {name: metrics["bbox"][name] for name in chosen},
        "mask": {name: metrics["segm"][name] for name in chosen} if "segm" in metrics else {},
        "seconds_per_step": statistics.median(row["seconds"] for row in rows),
        "peak_mib": peak_mib,
        "train_seconds": summary.seconds,
        "eval_seconds": time.monotonic() - started,
        "last": {
            k: round(v, 4) for k, v in rows[-1].items() if k.startswith(("loss", "mask", "rel"))
        },
    }


def _measure_given_boxes(
    cfg: Any, scenes: Scenes, split: str, folder: Path, on_progress: OnProgress
) -> dict[str, float]:
    """Mean IoU of the masks that the folder's model draws for the split's true boxes."""
    labelled = label_dataset(
        cfg,
        folder / "model_final.pth",
        scenes.annotations(split),
        scenes.images(split),
        on_progress=lambda done, _: on_progress(f"picture {done} with boxes given"),
    )
    found = [annotation["segmentation"] for annotation in labelled["annotations"]]
    return mean_ious(found, read_annotations(scenes, split))


def warm_up(threads: int) -> None:
    """Take a process's time for imports, which this module's did, and for the GPU's context."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def reset_peak_memory() -> None:
    """Forget the peak so far: of the GPU's memory, else of this process's (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def read_peak_memory() -> float | None:
    """MiB since `reset_peak_memory`; None where nobody tells."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return next((int(line.split()[1]) / 1024 for line in lines), None)
