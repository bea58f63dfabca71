"""Train the demo depth model: a small DPT-Hybrid, on synthetic scenes only.

Run it from the checkout::

    OMP_NUM_THREADS=1 python data/demo-dpt/train_demo_dpt.py --output demo-dpt --workers 5

Worker processes draw scenes without end (`training_scenes.py`); the network trains on a GPU if
there is one, for the given time, and `config.json`, `preprocessor_config.json`, `model.safetensors`
and `training.json` are written. A first model is there before the end (`--preliminary-seconds`).
Then run `evaluate_demo_dpt.py`.

The network is `DPTForDepthEstimation` in its hybrid form, ResNet-18 up to stride 16 and then a ViT:
convolutions learn edges from some ten thousand scenes, a plain ViT does not. The loss is MiDaS's
(arXiv 1907.01341, scale- and shift-invariant with multi-scale gradients) on inverse depth, with
more weight far away, where errors in metres are large, on objects and near depth steps, and a term
that asks for the steps themselves: the demo is about object borders.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from training_scenes import TRAINING_SEED, Batch, SceneStore
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

INPUT_SIZE = 256
_COARSE_SIZE = 160  # the first part of the training runs at this size, 2.5 times cheaper
_WARMUP_STEPS = 100
_EMA_DECAY = 0.996
_REPORT_STEPS = 50
_CHECKPOINT_SECONDS = 60.0


@dataclasses.dataclass(kw_only=True, frozen=True)
class Schedule:
    """When what happens, in seconds of training.

    The learning rate falls to almost nothing at `preliminary_seconds`, when the first model is
    written, starts again at half its height, and falls to nothing at `seconds`.
    """

    seconds: float
    preliminary_seconds: float
    coarse_seconds: float
    learning_rate: float

    def rate(self, elapsed: float, step: int) -> float:
        """Learning rate after `elapsed` seconds, at step number `step`."""
        first = elapsed < self.preliminary_seconds
        begin, end = (
            (0.0, self.preliminary_seconds) if first else (self.preliminary_seconds, self.seconds)
        )
        progress = min(1.0, (elapsed - begin) / max(end - begin, 1e-9))
        height = self.learning_rate * (1.0 if first else 0.5) * min(1, (step + 1) / _WARMUP_STEPS)
        return height * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    """Draw, train, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seconds", type=float, default=330.0, help="in all, without the imports")
    parser.add_argument("--preliminary-seconds", type=float, default=190.0)
    parser.add_argument("--coarse-seconds", type=float, default=80.0, help=f"at {_COARSE_SIZE} px")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--capacity", type=int, help="scenes held; 40000 on a GPU, 4000 without")
    parser.add_argument("--device", help="cuda if there is one")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--first-scenes", type=int, default=256, help="drawn before the first step")
    parser.add_argument("--start-scene", type=int, default=0, help="number of the first scene")
    parser.add_argument("--start-from", type=Path, help="folder of a model to train further")
    parser.add_argument("--checkpoint", type=Path, help="file; goes on from it if it is there")
    arguments = parser.parse_args()

    start = time.monotonic()
    store = SceneStore(workers=arguments.workers, first=arguments.start_scene)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    capacity = arguments.capacity or (40_000 if device.type == "cuda" else 4_000)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(arguments.seed)
    trainer = Trainer(
        build_model()
        if arguments.start_from is None
        else DPTForDepthEstimation.from_pretrained(arguments.start_from),
        device=device,
        seed=arguments.seed,
    )
    if arguments.checkpoint is not None and arguments.checkpoint.is_file():
        trainer.load(arguments.checkpoint)
    schedule = Schedule(
        seconds=arguments.seconds,
        preliminary_seconds=min(arguments.preliminary_seconds, arguments.seconds),
        coarse_seconds=arguments.coarse_seconds,
        learning_rate=arguments.learning_rate,
    )
    try:
        store.fill(device, capacity=capacity, least=arguments.first_scenes)
        train(trainer, store, schedule, arguments, start=start - trainer.elapsed)
    finally:
        store.stop()


def build_model() -> DPTForDepthEstimation:
    """A DPT-Hybrid of 5 million parameters for 256 × 256 pixels, freshly initialised."""
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        image_size=INPUT_SIZE,
        patch_size=16,
        backbone_out_indices=[0, 1, 1, 3],
        reassemble_factors=[1, 1, 1, 0.5],
        neck_hidden_sizes=[64, 128, 96, 128],
        fusion_hidden_size=48,
        use_auxiliary_head=False,
        backbone_featmap_shape=[1, 256, INPUT_SIZE // 16, INPUT_SIZE // 16],
        backbone_config={
            "model_type": "timm_backbone",
            "backbone": "resnet18",
            "out_indices": [1, 2, 3],
        },
    )
    model = DPTForDepthEstimation(config)
    # DPT's own start (deviation 0.02 everywhere) lets 1/2500 of a stage's signal reach the end.
    stages = (*model.neck.reassemble_stage.layers[2:], *model.neck.fusion_stage.layers)
    projections = [stage.projection for stage in stages]
    first, _, second, _, last, _ = model.head.head
    for layer in (*model.neck.convs, *projections, first, second):
        nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, 0.5)
    return model


class Trainer:
    """A model, the moving average of its weights, its optimizer, and how far they are.

    Attributes:
        averaged: exponential moving average of the weights, in eval mode.
        step: optimizer steps done.
        elapsed: seconds spent.
    """

    def __init__(self, model: DPTForDepthEstimation, *, device: torch.device, seed: int) -> None:
        """Start from `model`; `seed` is that of order and augmentation."""
        self.device = device
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.averaged = copy.deepcopy(self.model).eval()
        decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
        )
        self.rng = torch.Generator(device).manual_seed(seed)
        self.step, self.elapsed = 0, 0.0
        mine, theirs = self.averaged.state_dict(), self.model.state_dict()
        names = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        self._features: list[Tensor] = []
        self.model.head.head[3].register_forward_hook(lambda _, __, y: self._features.append(y))
        self._averages, self._latest = ([state[n] for n in names] for state in (mine, theirs))

    def train_step(self, batch: Batch, learning_rate: float) -> Tensor:
        """One step of the optimizer; returns the loss, which the device may still compute."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        size = batch.images.shape[-1]
        for network in (self.model, self.averaged):
            network.dpt.embeddings.image_size = (size, size)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        # On a CPU bf16 is slower where it is not built in.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            self.model(images)
        # The last layer again, in 32 bits, since a map of 0..1 in bf16 is a staircase of steps of
        # 1/256; and without the ReLU that ends the network, below which no gradient comes back.
        predicted = self.model.head.head[4](self._features.pop().float()).squeeze(1)
        loss = depth_loss(predicted, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(_EMA_DECAY, self.step / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._latest, 1 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write everything that going on needs, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        torch.save(state, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]


def train(
    trainer: Trainer,
    store: SceneStore,
    schedule: Schedule,
    arguments: argparse.Namespace,
    *,
    start: float,
) -> None:
    """Train until `schedule.seconds` after `start` (of `time.monotonic`), one step at least.

    The model is exported at `schedule.preliminary_seconds` and at the end.

    Raises:
        RuntimeError: the loss is not finite.
    """
    has_preliminary = trainer.elapsed >= schedule.preliminary_seconds
    first_step, last_save = trainer.step, time.monotonic()
    total = torch.zeros((), device=trainer.device)
    while (elapsed := time.monotonic() - start) < schedule.seconds or trainer.step == first_step:
        trainer.elapsed = elapsed
        if elapsed >= schedule.preliminary_seconds and not has_preliminary:
            has_preliminary = True
            export(trainer.averaged, arguments.output)
            record_training(arguments, trainer, store)
        size = _COARSE_SIZE if elapsed < schedule.coarse_seconds else INPUT_SIZE
        batch = store.draw_batch(arguments.batch_size, size, trainer.rng)
        total += trainer.train_step(batch, schedule.rate(elapsed, trainer.step))
        if trainer.step % _REPORT_STEPS == 0:
            mean = float(total) / _REPORT_STEPS
            print(
                f"{elapsed:6.1f} s: step {trainer.step} at {size} px, loss {mean:.4f}, "
                f"{store.num_drawn} scenes drawn, {store.num_workers} workers",
                flush=True,
            )
            if not math.isfinite(mean):
                raise RuntimeError(
                    f"the loss is {mean} before step {trainer.step}; lower --learning-rate"
                )
            total.zero_()
        if arguments.checkpoint and time.monotonic() - last_save > _CHECKPOINT_SECONDS:
            trainer.save(arguments.checkpoint)
            last_save = time.monotonic()
    export(trainer.averaged, arguments.output)
    record_training(arguments, trainer, store)
    if arguments.checkpoint:
        trainer.save(arguments.checkpoint)


def depth_loss(predicted: Tensor, batch: Batch) -> Tensor:
    """Scale- and shift-invariant error with gradients, plus a plain error that fixes the scale.

    Args:
        predicted: (B, S, S), any scale.
        batch: what is true.

    Returns:
        Scalar: mean |aligned - target| + 0.5 mean |predicted - target|, + 2 Σ over strides 1, 2,
        4, 8 of the mean gradient error, all weighted towards depth steps, objects and far points
        (half of the weight goes with distance, as the error in metres does), + 0.5 `missed_steps`.
    """
    target = batch.inverse_depth
    weight = 1 + batch.kind + 3 * near_depth_steps(target)
    distance = 1 / (target + batch.farthest).clamp(min=0.05)
    weight = weight * (1 + distance / distance.mean(dim=(1, 2), keepdim=True))
    weight = weight / weight.mean(dim=(1, 2), keepdim=True)
    aligned = align(predicted, target, weight)
    loss = (weight * (aligned - target).abs()).mean()
    loss = loss + 0.5 * (weight * (predicted - target).abs()).mean()
    error = aligned - target
    for stride in (1, 2, 4, 8):
        coarse, w = error[:, ::stride, ::stride], weight[:, ::stride, ::stride]
        across = (w[:, :, 1:] * (coarse[:, :, 1:] - coarse[:, :, :-1]).abs()).mean()
        down = (w[:, 1:] * (coarse[:, 1:] - coarse[:, :-1]).abs()).mean()
        loss = loss + 2.0 * (across + down)
    return loss + 0.5 * missed_steps(aligned, target)


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
    total = count = aligned.sum() * 0.0
    for turned in (False, True):
        guess, truth = (part.mT if turned else part for part in (aligned, target))
        inner = slice(reach, truth.shape[2] - 1 - reach)
        difference = truth[..., 1:] - truth[..., :-1]
        # A slant's neighbouring differences are equal; a step's are not.
        bend = (difference[..., 1:] - difference[..., :-1]).abs()
        is_step = (difference.abs() > 0.02) & (functional.pad(bend, (1, 1)) > 0.02)[..., 1:]
        step, is_step = difference[..., inner], is_step[..., inner].float()
        span = guess[..., 1 + 2 * reach :] - guess[..., : -1 - 2 * reach]
        share = span * step.sign() / step.abs().clamp(min=0.02)
        total = total + (is_step * (1 - share).clamp(min=0)).sum()
        count = count + is_step.sum()
    return total / count.clamp(min=1)


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
    scale = covariance / (variance + 1e-4 * total)
    return centred * scale + mean_t


def export(model: DPTForDepthEstimation, folder: Path) -> None:
    """Write the model and its image processor in HuggingFace format, the weights last and at once.

    Weights take 16 bits in the file; the config says float32, so that is how they are loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.dpt.embeddings.image_size = (INPUT_SIZE, INPUT_SIZE)
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
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        model.save_pretrained(unfinished)  # config.json, as from_pretrained expects it
        (Path(unfinished) / "config.json").replace(folder / "config.json")
        weights = {
            name: tensor.detach().cpu().contiguous().to(_file_dtype(tensor))
            for name, tensor in model.state_dict().items()
        }
        save_file(weights, Path(unfinished) / "weights", metadata={"format": "pt"})
        (Path(unfinished) / "weights").chmod(0o644)
        (Path(unfinished) / "weights").replace(folder / "model.safetensors")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_bytes = (folder / "model.safetensors").stat().st_size
    print(json.dumps({"bytes": num_bytes, "parameters": num_parameters}), flush=True)


def _file_dtype(tensor: Tensor) -> torch.dtype:
    """Kernels and matrices in 16 bits; biases, scales and running statistics as they are."""
    return torch.float16 if tensor.ndim > 1 else tensor.dtype


def record_training(arguments: argparse.Namespace, trainer: Trainer, store: SceneStore) -> None:
    """Add this run to `training.json`, after those of the model that it started from."""
    runs: list[dict[str, Any]] = []
    if arguments.start_from is not None and (arguments.start_from / "training.json").is_file():
        runs = json.loads((arguments.start_from / "training.json").read_text())
    is_cuda = trainer.device.type == "cuda"
    runs.append(
        {
            "device": torch.cuda.get_device_name() if is_cuda else "cpu",
            "scenes": store.num_drawn,
            "start_scene": arguments.start_scene,
            "scenes_seed": TRAINING_SEED,
            "seed": arguments.seed,
            "seconds": round(trainer.elapsed),
            "coarse_seconds": arguments.coarse_seconds,
            "learning_rate": arguments.learning_rate,
            "steps": trainer.step,
            "pictures_per_step": arguments.batch_size,
        }
    )
    text = json.dumps(runs, indent=2)
    (arguments.output / "training.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
