"""Train the demo depth model: a small DPT-Hybrid, on synthetic scenes only.

Run it from the checkout::

    python data/demo-dpt/train_demo_dpt.py --output data/demo-dpt --minutes 40

It renders its scenes (seed `TRAINING_SEED`, which neither the demo nor the evaluation uses) into
`--scenes-folder` unless they are there, trains on one CPU thread unless told otherwise, and writes
`config.json`, `preprocessor_config.json` and `model.safetensors`. Then run `evaluate_demo_dpt.py`.

The network is `DPTForDepthEstimation` in its hybrid form (a BiT stem of three stages, then a ViT):
convolutions learn edges from a few thousand pictures, a plain ViT does not. The loss is MiDaS's
(arXiv 1907.01341, scale- and shift-invariant with multi-scale gradients) on inverse depth, with
more weight near depth steps and a term that asks for the steps themselves: the demo is about
object borders.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from pipeline.synth import PRESETS, render_scene

TRAINING_SEED = 900001
INPUT_SIZE = 192
_FILE_SCENES = 100
_COARSE_SIZE = 128  # the first part of the training runs at this size, 2.25 times cheaper
_BATCH = 8
_WARMUP_STEPS = 80
_EMA_DECAY = 0.995


def main() -> None:
    """Render, train, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--scenes-folder", type=Path, default=Path("output/demo-dpt-scenes"))
    parser.add_argument("--num-scenes", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=40.0, help="of training, after rendering")
    parser.add_argument("--start-from", type=Path, help="folder of a model to train further")
    parser.add_argument("--coarse-share", type=float, default=0.6, help="of time at 128 pixels")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    arguments = parser.parse_args()

    render_training_scenes(arguments.scenes_folder, arguments.num_scenes)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.start_from is None:
        model = build_model()
    else:
        model = DPTForDepthEstimation.from_pretrained(arguments.start_from)
    model, num_steps = train(
        model,
        sorted(arguments.scenes_folder.glob("mixed_*.npz")),
        minutes=arguments.minutes,
        coarse_share=arguments.coarse_share,
        learning_rate=arguments.learning_rate,
        rng=np.random.default_rng(arguments.seed),
        checkpoint_folder=arguments.scenes_folder / "checkpoint",
    )
    export(model, arguments.output)
    record_training(arguments, num_steps)


def build_model() -> DPTForDepthEstimation:
    """A DPT-Hybrid of about 1.2 million parameters for 192 × 192 pixels, freshly initialised."""
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=INPUT_SIZE,
        patch_size=16,
        backbone_out_indices=[0, 1, 1, 3],
        reassemble_factors=[1, 1, 1, 0.5],
        neck_hidden_sizes=[48, 96, 128, 128],
        fusion_hidden_size=36,
        use_auxiliary_head=False,
        backbone_featmap_shape=[1, 160, INPUT_SIZE // 16, INPUT_SIZE // 16],
        backbone_config={
            "model_type": "bit",
            "global_padding": "same",
            "layer_type": "bottleneck",
            "embedding_size": 32,
            "hidden_sizes": [48, 96, 160],
            "depths": [2, 2, 2],
            "num_groups": 8,
            "out_features": ["stage1", "stage2", "stage3"],
            "embedding_dynamic_padding": True,
        },
    )
    model = DPTForDepthEstimation(config)
    # The network ends in a ReLU: start above it, or it may never produce a gradient.
    last = model.head.head[4]
    nn.init.constant_(last.bias, 0.5)
    return model


def render_training_scenes(folder: Path, num_scenes: int) -> None:
    """Render what is missing of the first `num_scenes` training scenes, 100 to a file.

    Every fourth scene is one of the miniature, whose open shapes are mostly border.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (folder, first)
        for first in range(0, num_scenes, _FILE_SCENES)
        if not (folder / f"mixed_{first:06d}.npz").is_file()
    ]
    if tasks:
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            for number, _ in enumerate(pool.imap_unordered(_render_file, tasks), start=1):
                print(f"rendered {number} of {len(tasks)} files", flush=True)


def _render_file(task: tuple[Path, int]) -> None:
    """Half of the scenes are rendered at 256 pixels and shrunk, as the demo's pictures will be."""
    folder, first = task
    images, inverse_depths, owners = [], [], []
    nearest = ((np.arange(INPUT_SIZE) + 0.5) * 256 / INPUT_SIZE).astype(int)
    for index in range(first, first + _FILE_SCENES):
        shrink = index % 2 == 0
        size = (256, 256) if shrink else (INPUT_SIZE, INPUT_SIZE)
        settings = PRESETS["miniature" if index % 4 == 3 else "rooms"]
        scene = render_scene(TRAINING_SEED, size, index=index, settings=settings)
        image, inverse_depth = scene.image, scene.inverse_depth
        owner = np.zeros(size, np.uint8)
        for number, mask in enumerate(scene.masks):
            owner[mask] = number + 1
        if shrink:
            image = cv2.resize(image, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_CUBIC)
            inverse_depth = inverse_depth[np.ix_(nearest, nearest)]
            owner = owner[np.ix_(nearest, nearest)]
        images.append(image)
        inverse_depths.append(inverse_depth.astype(np.float16))
        owners.append(owner)
    unfinished = folder / f"unfinished_{first:06d}.npz"
    np.savez(
        unfinished,
        image=np.stack(images),
        inverse_depth=np.stack(inverse_depths),
        owner=np.stack(owners),
    )
    unfinished.replace(folder / f"mixed_{first:06d}.npz")


def train(
    model: DPTForDepthEstimation,
    files: list[Path],
    *,
    minutes: float,
    coarse_share: float,
    learning_rate: float,
    rng: np.random.Generator,
    checkpoint_folder: Path,
) -> tuple[DPTForDepthEstimation, int]:
    """Train for a time budget; the learning rate follows a cosine over it.

    Returns:
        The exponential moving average of the weights, in eval mode, and the number of steps.
    """
    model.train()
    averaged = copy.deepcopy(model).eval()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    start = last_report = last_save = time.monotonic()
    step, total = 0, 0.0
    batches: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
    size = 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        wanted_size = _COARSE_SIZE if progress < coarse_share else INPUT_SIZE
        if wanted_size != size or batches is None:
            size = wanted_size
            batches = draw_batches(files, rng, size)
            for network in (model, averaged):
                network.dpt.embeddings.image_size = (size, size)
        images, inverse_depth, objects = next(batches)
        rate = learning_rate * min(1, (step + 1) / _WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = depth_loss(model(images).predicted_depth, inverse_depth, objects)
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(_EMA_DECAY, step / (step + 20))
        with torch.no_grad():
            pairs = zip(averaged.parameters(), model.parameters(), strict=True)
            for average, parameter in pairs:
                average.lerp_(parameter, 1 - decay)
        total += float(loss.detach())
        if step % 50 == 0:
            now = time.monotonic()
            print(
                f"step {step} size {size} progress {progress:.3f} loss {total / 50:.4f} "
                f"{(now - last_report) / (50 * _BATCH):.3f} s/image",
                flush=True,
            )
            last_report, total = now, 0.0
            if now - last_save > 240:
                export(averaged, checkpoint_folder)
                last_save = now
    averaged.dpt.embeddings.image_size = (INPUT_SIZE, INPUT_SIZE)
    print(f"trained {step} steps of {_BATCH} pictures", flush=True)
    return averaged, step


def draw_batches(
    files: list[Path], rng: np.random.Generator, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Augmented batches without end.

    Yields:
        images (B, 3, S, S) float32 in -1..1; inverse depth (B, S, S) min-max scaled to 0..1 per
        picture; objects (B, S, S) bool, true on objects.
    """
    scenes: dict[str, npt.NDArray[np.generic]] = {}
    loaded = [np.load(path) for path in files]
    for name in ("image", "inverse_depth", "owner"):
        scenes[name] = np.concatenate([part[name] for part in loaded])
    del loaded
    while True:
        order = rng.permutation(len(scenes["image"]))
        for first in range(0, len(order) - _BATCH + 1, _BATCH):
            picked = [
                _augment(*(scenes[name][index] for name in scenes), rng=rng, size=size)
                for index in order[first : first + _BATCH]
            ]
            images, inverse_depths, objects = zip(*picked, strict=True)
            yield (
                torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
                torch.from_numpy(np.stack(inverse_depths)),
                torch.from_numpy(np.stack(objects)),
            )


def _augment(
    image: npt.NDArray[np.uint8],
    inverse_depth: npt.NDArray[np.float16],
    owner: npt.NDArray[np.uint8],
    *,
    rng: np.random.Generator,
    size: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Random crop of another aspect, flip, exposure, tint and noise."""
    height, width = owner.shape
    if rng.uniform() < 0.4:
        crop_height, crop_width = (int(rng.uniform(0.65, 1.0) * side) for side in (height, width))
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        window = np.s_[top : top + crop_height, left : left + crop_width]
        image, inverse_depth, owner = image[window], inverse_depth[window], owner[window]
    if rng.uniform() < 0.5:
        image, inverse_depth, owner = image[:, ::-1], inverse_depth[:, ::-1], owner[:, ::-1]
    pixels = image.astype(np.float32) / 255
    target = inverse_depth.astype(np.float32)
    objects = np.ascontiguousarray(owner > 0)
    if owner.shape != (size, size):
        shrinks = owner.shape[0] > size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        pixels = cv2.resize(np.ascontiguousarray(pixels), (size, size), interpolation=how)
        rows = ((np.arange(size) + 0.5) * owner.shape[0] / size).astype(int)
        columns = ((np.arange(size) + 0.5) * owner.shape[1] / size).astype(int)
        target, objects = target[np.ix_(rows, columns)], objects[np.ix_(rows, columns)]
    if rng.uniform() < 0.6:
        tint = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3)
        pixels = np.clip(pixels * tint.astype(np.float32), 0, 1) ** np.float32(
            rng.uniform(0.8, 1.25)
        )
        pixels = pixels + rng.normal(0, 0.01, pixels.shape).astype(np.float32)
    target = (target - target.min()) / max(float(np.ptp(target)), 1e-6)
    return (
        np.ascontiguousarray(pixels * 2 - 1, dtype=np.float32),
        np.ascontiguousarray(target, dtype=np.float32),
        np.ascontiguousarray(objects),
    )


def depth_loss(predicted: Tensor, target: Tensor, objects: Tensor) -> Tensor:
    """Scale- and shift-invariant error with gradients, plus a plain error that fixes the scale.

    Args:
        predicted: (B, S, S), any scale.
        target: (B, S, S) inverse depth, 0..1.
        objects: (B, S, S) bool.

    Returns:
        Scalar: mean |aligned - target| + 0.5 mean |predicted - target|, both weighted towards
        depth steps and objects, + 2 Σ over strides 1, 2, 4, 8 of the mean gradient error,
        + 0.3 `missed_steps`.
    """
    weight = 1 + objects.float() + 3 * near_depth_steps(target)
    weight = weight / weight.mean(dim=(1, 2), keepdim=True)
    aligned = align(predicted, target, weight)
    loss = (weight * (aligned - target).abs()).mean()
    loss = loss + 0.5 * (weight * (predicted - target).abs()).mean()
    error = aligned - target
    for stride in (1, 2, 4, 8):
        coarse = error[:, ::stride, ::stride]
        across = (coarse[:, :, 1:] - coarse[:, :, :-1]).abs().mean()
        down = (coarse[:, 1:] - coarse[:, :-1]).abs().mean()
        loss = loss + 2.0 * (across + down)
    return loss + 0.3 * missed_steps(aligned, target)


def missed_steps(aligned: Tensor, target: Tensor, reach: int = 2) -> Tensor:
    """Mean share of a true depth step that the prediction lacks, however small the step.

    max(0, 1 − s · (p_{x+1+reach} − p_{x−reach}) / |t_{x+1} − t_x|), s the sign of the true step:
    what the border recall of `evaluate_demo_dpt.py` counts as found is at most 1/2 here. An error
    in absolute terms, as in the gradient terms, forgives the missing border of a far object.

    Args:
        aligned: (B, S, S) on the scale of `target`.
        target: (B, S, S) inverse depth, 0..1.
        reach: pixels to either side within which the predicted step may happen.

    Returns:
        Scalar >= 0; graph-connected 0 without steps.
    """
    total, count = aligned.sum() * 0.0, 0
    for turned in (False, True):
        guess, truth = (part.mT if turned else part for part in (aligned, target))
        inner = slice(reach, truth.shape[2] - 1 - reach)
        difference = truth[..., 1:] - truth[..., :-1]
        # A slant's neighbouring differences are equal; a step's are not.
        bend = (difference[..., 1:] - difference[..., :-1]).abs()
        is_step = (difference.abs() > 0.02) & (functional.pad(bend, (1, 1)) > 0.02)[..., 1:]
        step, is_step = difference[..., inner], is_step[..., inner]
        span = guess[..., 1 + 2 * reach :] - guess[..., : -1 - 2 * reach]
        share = span[is_step] * step[is_step].sign() / step[is_step].abs()
        total = total + (1 - share).clamp(min=0).sum()
        count += int(is_step.sum())
    return total / max(count, 1)


def near_depth_steps(inverse_depth: Tensor) -> Tensor:
    """1 within two pixels of a step of more than 2 % of the range, else 0; (B, S, S)."""
    padded = functional.pad(inverse_depth[:, None], (1, 1, 1, 1), mode="replicate")
    # Second differences: a slanted floor has large first ones but no steps.
    across = (padded[..., 1:-1, 2:] - 2 * padded[..., 1:-1, 1:-1] + padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - 2 * padded[..., 1:-1, 1:-1] + padded[..., :-2, 1:-1]).abs()
    steps = (torch.maximum(across, down) > 0.02).float()
    return functional.max_pool2d(steps, 5, stride=1, padding=2)[:, 0]


def align(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Apply the scale and shift per picture that bring `predicted` closest to `target`."""
    total = weight.sum(dim=(1, 2), keepdim=True)
    mean_p = (weight * predicted).sum(dim=(1, 2), keepdim=True) / total
    mean_t = (weight * target).sum(dim=(1, 2), keepdim=True) / total
    centred = predicted - mean_p
    covariance = (weight * centred * (target - mean_t)).sum(dim=(1, 2), keepdim=True)
    variance = (weight * centred**2).sum(dim=(1, 2), keepdim=True)
    scale = covariance / (variance + 1e-3 * total)
    return centred * scale + mean_t


def export(model: DPTForDepthEstimation, folder: Path) -> None:
    """Write the model and its image processor in HuggingFace format."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    DPTImageProcessor(
        do_resize=True,
        size={"height": INPUT_SIZE, "width": INPUT_SIZE},
        keep_aspect_ratio=False,
        ensure_multiple_of=16,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"bytes": size, "parameters": num_parameters}), flush=True)


def record_training(arguments: argparse.Namespace, num_steps: int) -> None:
    """Add this run to `training.json`, after those of the model that it started from."""
    runs: list[dict[str, object]] = []
    if arguments.start_from is not None and (arguments.start_from / "training.json").is_file():
        runs = json.loads((arguments.start_from / "training.json").read_text())
    runs.append(
        {
            "scenes": arguments.num_scenes,
            "scenes_seed": TRAINING_SEED,
            "seed": arguments.seed,
            "minutes": arguments.minutes,
            "threads": arguments.threads,
            "coarse_share": arguments.coarse_share,
            "learning_rate": arguments.learning_rate,
            "steps": num_steps,
            "pictures_per_step": _BATCH,
            "loss": "gradients at four scales, missed steps",
            "miniature_share": 0.25,
        }
    )
    (arguments.output / "training.json").write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()
