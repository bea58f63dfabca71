"""Train one row with one seed and measure its masks on scenes that it has not seen."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.mask_lab.crops import Views, centred_views, draw_views
from benchmarks.mask_lab.network import Bank, Decoder, depth_of, fill_bank
from benchmarks.mask_lab.scenes import Scenes
from benchmarks.mask_lab.supervision import ROWS, Supervision, gate_masks, mask_losses
from pipeline.synth import APPEARANCES
from segtrain.mask_grid.bitmasks import draw_extents

TEST_MARGINS = (0.15, 0.4)
_LARGE_BOX = 96  # pixels of the longer side, of 256: about the median


@dataclasses.dataclass(kw_only=True, frozen=True)
class Schedule:
    """How a row is trained.

    Attributes:
        iterations: optimizer steps.
        batch: crops per step.
        learning_rate: AdamW, cosine to 0.
        warmup: share of the run over which the pairwise terms grow.
    """

    iterations: int = 300
    batch: int = 8
    learning_rate: float = 3e-3
    warmup: float = 0.4


def train(
    bank: Bank, inverse_depth_255_ISS: torch.Tensor, row: Supervision, schedule: Schedule, seed: int
) -> tuple[Decoder, dict[str, float]]:
    """Train a decoder.

    Returns:
        The decoder in eval mode; the mean of each loss over the last tenth of the run.

    Raises:
        RuntimeError: the loss is not finite.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    decoder = Decoder().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=schedule.learning_rate, weight_decay=0.01
    )
    last: dict[str, list[float]] = {}
    for step in range(schedule.iterations):
        progress = step / schedule.iterations
        rate = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * rate
        chosen = torch.from_numpy(rng.integers(len(bank.views), size=schedule.batch))
        targets = bank.targets_of(chosen, inverse_depth_255_ISS)
        logits, depth_logits = decoder(
            bank.features_of(chosen), targets.inverse_depth_255_ISS if row.depth_input else None
        )
        depth_logits = depth_logits + (3 if row.gate == "multiply_open" else 0)
        losses = mask_losses(
            gate_masks(logits, depth_logits, row.gate),
            depth_logits,
            targets,
            row,
            progress=progress,
            warmup=schedule.warmup,
        )
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise RuntimeError(f"step {step} of {row.title!r}: the loss is {total.item()}")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimizer.step()
        if step >= int(0.9 * schedule.iterations):
            for name, value in losses.items():
                last.setdefault(name, []).append(float(value.detach()))
    return decoder.eval(), {name: float(np.mean(values)) for name, values in last.items()}


def predict(
    decoder: Decoder, banks: Sequence[Bank], scenes: Scenes, row: Supervision
) -> list[npt.NDArray[np.bool_]]:
    """Masks inside the boxes, in pixels of the scene: the mean probability of all views >= 1/2."""
    views_of_object = [
        _paste_into_boxes(predict_crops(decoder, bank, scenes, row), bank.views) for bank in banks
    ]
    return [np.mean(views, axis=0) >= 0.5 for views in zip(*views_of_object, strict=True)]


def predict_crops(decoder: Decoder, bank: Bank, scenes: Scenes, row: Supervision) -> torch.Tensor:
    """(I, H, W) probabilities of a bank's crops."""
    depth = depth_of(bank, scenes.inverse_depth_255(row.source))
    probabilities = []
    for first in range(0, len(bank.views), 64):
        part = slice(first, first + 64)
        with torch.inference_mode():
            logits, depth_logits = decoder(
                bank.features_of(part), depth[part] if row.depth_input else None
            )
            depth_logits = depth_logits + (3 if row.gate == "multiply_open" else 0)
            probabilities.append(gate_masks(logits, depth_logits, row.gate).sigmoid())
    return torch.cat(probabilities)


def measure(scenes: Scenes, masks_in_boxes: list[npt.NDArray[np.bool_]]) -> dict[str, float]:
    """Mean IoU with the true masks given the box: overall, by appearance and by size."""
    ious = np.array(
        [
            mask_iou(mask, true_mask_in_box(scenes, item))
            for mask, item in zip(masks_in_boxes, scenes.objects, strict=True)
        ]
    )
    sides = np.maximum(
        scenes.objects[:, 4] - scenes.objects[:, 2], scenes.objects[:, 5] - scenes.objects[:, 3]
    )
    groups = {
        "all": np.ones(len(ious), bool),
        **{name: scenes.objects[:, 6] == index for index, name in enumerate(APPEARANCES)},
        "small": sides < _LARGE_BOX,
        "large": sides >= _LARGE_BOX,
    }
    result = {name: float(ious[chosen].mean()) for name, chosen in groups.items() if chosen.any()}
    return {**result, "at_least_75": float((ious >= 0.75).mean())}


class Laboratory:
    """Scenes and encoded crops that every row shares.

    Args:
        train: scenes to learn from.
        held_out: scenes to measure on.
        num_views: random crops of each training object.
    """

    def __init__(self, train: Scenes, held_out: Scenes, num_views: int = 4) -> None:
        self.train, self.held_out = train, held_out
        views = draw_views(np.random.default_rng(0), train, num_views)
        self.train_bank = fill_bank(train, views)
        self.test_banks = [
            fill_bank(held_out, centred_views(held_out, margin)) for margin in TEST_MARGINS
        ]

    def run(
        self, row: Supervision, schedule: Schedule, seed: int, weights: Path
    ) -> dict[str, object]:
        """Train a row, keep its decoder in `weights`, measure it on the held-out scenes."""
        started = time.process_time()
        decoder, losses = self._train(row, schedule, seed)
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(decoder.state_dict(), weights)
        masks = predict(decoder, self.test_banks, self.held_out, row)
        return {
            "iou": measure(self.held_out, masks),
            "losses": losses,
            "fill": float(np.mean([mask.mean() for mask in masks])),
            "cpu_seconds": time.process_time() - started,
        }

    def _train(
        self, row: Supervision, schedule: Schedule, seed: int
    ) -> tuple[Decoder, dict[str, float]]:
        bank = self.train_bank
        if row.masks_of:
            first = ROWS[row.masks_of]
            labeller, _ = self._train(first, schedule, seed)
            probabilities = predict_crops(labeller, bank, self.train, first)
            in_box = draw_extents(bank.extents_I4, probabilities.shape[1:])
            bank = dataclasses.replace(bank, masks_IHW=(probabilities >= 0.5) & in_box)
        depth = depth_of(bank, self.train.inverse_depth_255(row.source))
        return train(bank, depth, row, schedule, seed)


BASELINES: dict[str, Callable[[Scenes], list[npt.NDArray[np.bool_]]]] = {
    "filled_box": lambda scenes: [
        np.ones_like(true_mask_in_box(scenes, o)) for o in scenes.objects
    ],
    "grabcut": lambda scenes: [_grab_cut(scenes, o) for o in scenes.objects],
}


def true_mask_in_box(scenes: Scenes, item: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The object's mask, cut to its box."""
    scene, number, x1, y1, x2, y2, _ = item.tolist()
    return np.asarray(scenes.owners_SHW[scene, y1:y2, x1:x2] == number + 1)


def _grab_cut(scenes: Scenes, item: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    scene, _, x1, y1, x2, y2, _ = item.tolist()
    labels = np.zeros(scenes.owners_SHW.shape[1:], np.uint8)
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(
        scenes.images_SHW3[scene],
        labels,
        (x1, y1, x2 - x1, y2 - y1),
        models[0],
        models[1],
        3,
        cv2.GC_INIT_WITH_RECT,
    )
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))[y1:y2, x1:x2]


def _paste_into_boxes(
    probabilities_IHW: torch.Tensor, views: Views
) -> list[npt.NDArray[np.float32]]:
    pasted = []
    for probability, (wx1, wy1, wx2, wy2), item in zip(
        probabilities_IHW.numpy(), views.windows_I4.tolist(), views.objects_I7, strict=True
    ):
        x1, y1, x2, y2 = item[2:6].tolist()
        whole = cv2.resize(probability, (wx2 - wx1, wy2 - wy1), interpolation=cv2.INTER_LINEAR)
        pasted.append(whole[y1 - wy1 : y2 - wy1, x1 - wx1 : x2 - wx1])
    return pasted


def mask_iou(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of two masks."""
    return float((mask & truth).sum() / max((mask | truth).sum(), 1))
