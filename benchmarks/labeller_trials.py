"""What bounds the labeller: many short trials beside each other, within a time budget.

    python -m benchmarks.labeller_trials FOLDER --output OUT --seconds 330 --workers 5 --drawers 3

FOLDER as for `labeller_iou`. First starting weights are trained on generated scenes, one process
per encoder (`data/labeller/train_labeller.py`); beside and after that, workers take trials in the
order of their value: `zero_shot` (measure weights), `adapt` (to the boxes of train and val),
`supervised` (to the true masks of train: a ceiling, for measuring only). Every result is a line in
`OUT/trials.jsonl` as soon as it is there, a trial that fails too. Settings are chosen on `train`;
`val` is for reporting. IoU is on a 64 × 64 grid over each box, of every second object. The weights
go to `OUT/weights-*.tar`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import multiprocessing
import os
import queue
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_STOP_EARLY_SECONDS = 12.0
_MOST_TAR_BYTES = 16 * 2**20 - 65536
_LEAST_GAIN = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("output/labeller-trials"))
    parser.add_argument("--seconds", type=float, default=330.0, help="for everything")
    parser.add_argument("--pretrain-seconds", type=float, default=120.0)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--early-workers", type=int, default=2, help="while weights are trained")
    parser.add_argument("--drawers", type=int, default=3)
    parser.add_argument(
        "--encoders",
        default="tf_efficientnet_lite0,tf_efficientnet_lite2,tf_efficientnet_lite2:0.3",
        help="timm names, with the encoder's learning rate as a factor behind a colon",
    )
    parser.add_argument("--batch", type=int, default=64, help="of the training on scenes")
    parser.add_argument("--steps", type=int, default=400, help="of an adaptation")
    parser.add_argument("--crop-size", type=int, default=128)
    parser.add_argument("--every", type=int, default=2, help="measure every n-th object")
    parser.add_argument("--most-trials", type=int, default=1000)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        Coordinator(arguments, Path(scratch), began).run()
    print(f"{time.time() - began:.0f} seconds in all", flush=True)


_CHANGES: tuple[dict[str, Any], ...] = (
    {"paste_share": 0.0},
    {"known_crops": 6},
    {"light_strength": 2.0},
    {"frozen": []},
    {"teacher_agreement": 3.0},
    {"encoder_rate": 1.0},
    {"teacher_weight": 3.0},
    {"batch_size": 32},
    {"colour_threshold": 0.5},
    {"box_hint_share": 1.0},
    {"colour_weight": 0.3},
    {"margin_high": 0.8},
    {"teacher_decay": 0.998},
    {"learning_rate": 2e-3},
    {"start_share": 0.0},
    {"paste_share": 1.0},
    {"projection_weight": 2.0},
    {"colour_threshold": 0.15},
    {"light_strength": 3.0},
)


def plan_trials(start: str, steps: int, size: int) -> list[dict[str, Any]]:
    """Trials that begin with the same weights, the most telling first.

    On the shipped weights one setting at a time is changed, on new ones first what helped so far.
    """
    adapt = {"kind": "adapt", "start": start, "steps": steps, "crop_size": size}
    supervised = {"kind": "supervised", "start": start, "steps": max(5 * steps // 2, 20)}
    supervised |= {"crop_size": size}
    base, gains = adapt | {"change": {}}, adapt | {"change": "gains"}
    measured = {"kind": "zero_shot", "start": start, "crop_size": size}
    changes = [adapt | {"change": change} for change in _CHANGES]
    longer = [supervised | {"steps": 8 * steps}, supervised | {"crop_size": size + 32}]
    rest = [
        base | {"crop_size": size + 32},
        gains | {"seed": 1},
        base | {"seed": 1},
        gains | {"seed": 2},
        base | {"steps": 3 * steps},
        gains | {"steps": 3 * steps},
        gains | {"rounds": 2},
        gains | {"crop_size": size + 32},
    ]
    if start == "shipped":
        return [measured, base, *changes[:3], supervised, *changes[3:], *longer, *rest]
    if ":" in start:
        return [measured, base, gains, supervised, *rest]
    return [measured, base, supervised, *changes[:2], gains, *longer[:1], *changes[2:4], *rest]


class Coordinator:
    """Starts processes, hands out trials, writes results; computes nothing itself."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path, began: float) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.deadline = began + arguments.seconds
        self.context = multiprocessing.get_context("spawn")
        self.tasks: Any = self.context.Queue()
        self.results: Any = self.context.Queue()
        self.workers: list[Any] = []
        self.num_busy = 0
        self.rows: list[dict[str, Any]] = []
        shipped = {"shipped": str(ROOT / "data" / "labeller" / "model.safetensors")}
        self.weights: dict[str, str] = shipped
        self.plans = {"shipped": plan_trials("shipped", arguments.steps, arguments.crop_size)}
        self.num_given = 0

    def run(self) -> None:
        """Everything, until the deadline or until nothing is left."""
        pretraining = self.start_pretraining()
        try:
            self.add_workers(self.arguments.early_workers)
            while time.time() < self.deadline:
                for encoder in [name for name, p in pretraining.items() if p.poll() is not None]:
                    self.take_pretrained(encoder, pretraining.pop(encoder).returncode)
                if not pretraining:
                    self.stop_drawers()
                    self.add_workers(self.arguments.workers - len(self.workers))
                self.hand_out()
                try:
                    self.write(self.results.get(timeout=0.2))
                    self.num_busy -= 1
                except queue.Empty:
                    self.mourn()
                    if not self.num_busy and not pretraining:
                        break
        finally:
            for process in pretraining.values():
                process.kill()
            self.stop_drawers()
            for worker in self.workers:
                worker.kill()
            self.tasks.cancel_join_thread()
            self.pack_weights()

    def start_pretraining(self) -> dict[str, subprocess.Popen[bytes]]:
        """Processes that draw scenes, and one per encoder that learns from them."""
        arguments, scenes = self.arguments, self.scratch / "scenes"
        scenes.mkdir()
        module = [sys.executable, "-m", "pipeline.synth.scene_chunks", str(scenes), "1"]
        self.drawers = [
            subprocess.Popen([*module, str(k), "400"], cwd=ROOT) for k in range(arguments.drawers)
        ]
        script = [sys.executable, str(ROOT / "data" / "labeller" / "train_labeller.py")]
        script += ["--weights-only", "--scenes", str(scenes), "--batch", str(arguments.batch)]
        script += ["--minutes", str(arguments.pretrain_seconds / 60), "--kept-scenes", "12000"]
        started = {}
        for encoder in filter(None, arguments.encoders.split(",")):
            folder = self.scratch / encoder
            folder.mkdir()
            name, _, rate = encoder.partition(":")
            command = [*script, "--encoder", name, "--output", str(folder)]
            command += ["--encoder-rate", rate] if rate else []
            with (folder / "log.txt").open("wb") as log:
                started[encoder] = subprocess.Popen(
                    [*command, "--checkpoint", str(folder / "none.pth")],
                    cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
        return started

    def stop_drawers(self) -> None:
        """The scenes that were drawn stay."""
        for drawer in self.drawers:
            drawer.kill()

    def take_pretrained(self, encoder: str, status: int) -> None:
        """Plan trials from new weights, before those that are left of the old ones."""
        folder = self.scratch / encoder
        row: dict[str, Any] = {"kind": "pretrain", "encoder": encoder}
        if status:
            row["error"] = (folder / "log.txt").read_text(errors="replace")[-2000:]
        else:
            row |= json.loads((folder / "training.json").read_text())[-1]
            row["log"] = (folder / "log.txt").read_text(errors="replace")[-400:]
            for average in ("mean", "late"):
                self.weights[f"{encoder}-{average}"] = str(folder / f"{average}.safetensors")
            size, steps = self.arguments.crop_size, self.arguments.steps
            late = {"kind": "zero_shot", "start": f"{encoder}-late", "crop_size": size}
            plan = [late, *plan_trials(f"{encoder}-mean", steps, size)]
            self.plans = {encoder: plan} | self.plans
        self.write(row)

    def add_workers(self, num: int) -> None:
        """Start processes that take trials."""
        for _ in range(num):
            arguments = (
                self.arguments.folder, self.arguments.every, self.scratch, self.deadline,
                self.tasks, self.results,
            )  # fmt: skip
            worker = self.context.Process(target=work, args=arguments, daemon=True)
            worker.start()
            self.workers.append(worker)

    def hand_out(self) -> None:
        """One trial per idle worker; plans take turns, new weights twice as often."""
        alive = sum(worker.is_alive() for worker in self.workers)
        left = self.deadline - time.time()
        while self.num_busy < alive and left > 2 * _STOP_EARLY_SECONDS:
            names = [name for name, plan in self.plans.items() if plan]
            if not names or self.num_given >= self.arguments.most_trials:
                return
            new = [name for name in names if name != "shipped"]
            turn = self.num_given % 4
            name = new[self.num_given % len(new)] if new and turn else names[-1]
            trial = self.plans[name].pop(0)
            if trial.get("change") == "gains":
                trial |= {"change": self.find_gains(), "is_combined": True}
            self.tasks.put(trial | {"weights": self.weights[trial["start"]]})
            self.num_busy += 1
            self.num_given += 1

    def find_gains(self) -> dict[str, Any]:
        """Changes that helped on train, joined; measured by the mean gain over starting weights."""
        base: dict[str, float] = {}
        gains: dict[str, list[float]] = {}
        adapted = [r for r in self.rows if r["kind"] == "adapt" and "train" in r]
        for row in adapted:
            if row["change"] == {} and self.is_plain(row):
                base[row["start"]] = row["train"]["mean_iou"]
        for row in adapted:
            if len(row["change"]) == 1 and row["start"] in base and self.is_plain(row):
                gain = row["train"]["mean_iou"] - base[row["start"]]
                gains.setdefault(json.dumps(row["change"]), []).append(gain)
        joined: dict[str, Any] = {}
        for change, found in sorted(gains.items(), key=lambda item: sum(item[1]) / len(item[1])):
            if sum(found) / len(found) > _LEAST_GAIN:
                joined |= json.loads(change)
        return joined

    def is_plain(self, row: dict[str, Any]) -> bool:
        """Whether a row has the steps, crops and seed of the baseline."""
        arguments = self.arguments
        usual = row["steps"] == arguments.steps and row["crop_size"] == arguments.crop_size
        return usual and not row.get("seed") and "is_combined" not in row

    def mourn(self) -> None:
        """A worker that died takes its trial with it; the others go on."""
        for worker in [worker for worker in self.workers if not worker.is_alive()]:
            self.workers.remove(worker)
            self.num_busy = max(self.num_busy - 1, 0)
            self.write({"kind": "worker", "error": f"died with status {worker.exitcode}"})

    def write(self, row: dict[str, Any]) -> None:
        """Append a result."""
        row["at"] = round(time.time() - self.deadline + self.arguments.seconds, 1)
        self.rows.append(row)
        line = json.dumps(row)
        with (self.arguments.output / "trials.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:300], flush=True)
        if row["kind"] == "zero_shot":
            self.pack_weights()

    def pack_weights(self) -> None:
        """The better mean of each encoder by its IoU on train without adaptation, in two tars.

        Done as soon as something is known, and again when more is: the time may end at any moment.
        """
        score = {
            row["start"]: row["train"]["mean_iou"]
            for row in self.rows
            if row["kind"] == "zero_shot" and "train" in row
        }
        new = [name for name in self.weights if name != "shipped"]
        chosen = sorted(new, key=lambda name: (name in score, score.get(name, 0.0)), reverse=True)
        best: dict[str, str] = {}
        for name in chosen:
            best.setdefault(name.rpartition("-")[0], name)
        order = [*best.values(), *(name for name in chosen if name not in best.values())]
        tars: list[list[str]] = [[]]
        held = 10240
        for name in order:
            size = Path(self.weights[name]).stat().st_size + 2048
            if held + size > _MOST_TAR_BYTES:
                tars.append([])
                held = 10240
            tars[-1].append(name)
            held += size
        for number, names in enumerate(tars[:2], 1):
            path = self.arguments.output / f"weights-{number}.tar"
            with tarfile.open(path.with_suffix(".part"), "w") as tar:
                for name in names:
                    tar.add(self.weights[name], f"{name}.safetensors")
            path.with_suffix(".part").replace(path)


def work(
    folder: Path, every: int, scratch: Path, deadline: float, tasks: Any, results: Any
) -> None:
    """A process that takes trials and answers with rows."""
    laboratory = None
    while True:
        trial = tasks.get()
        began = time.time()
        row = {name: value for name, value in trial.items() if name != "weights"}
        try:
            if laboratory is None:
                laboratory = Laboratory(folder, every, scratch, deadline)
            row |= laboratory.run(trial)
        except Exception as error:
            row["error"] = f"{error!r} {traceback.format_exc()[-1200:]}"
        row["seconds"] = round(time.time() - began, 1)
        results.put(row)


class Laboratory:
    """Photos, what is measured of them, and the kinds of trials."""

    def __init__(self, folder: Path, every: int, scratch: Path, deadline: float) -> None:
        import torch

        from benchmarks.labeller_iou import read_split
        from segtrain.labeller.crop_network import default_device

        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("high")
        self.device, self.every, self.deadline = default_device(), every, deadline
        self.folder, self.scratch = folder, scratch
        self.splits = {split: read_split(folder, split) for split in ("train", "val")}
        self.images = {
            photo.name: photo.load_image() for split in self.splits.values() for photo, _ in split
        }
        self.views: dict[tuple[str, int], Any] = {}

    def run(self, trial: dict[str, Any]) -> dict[str, Any]:
        """One trial's numbers."""
        from segtrain.labeller.crop_network import load_crop_network
        from segtrain.labeller.mask_scores import STARTING_THRESHOLD

        start = Path(trial["weights"])
        if trial["kind"] == "zero_shot":
            network, _ = load_crop_network(start)
            return self.measure(network, trial["crop_size"], STARTING_THRESHOLD)
        if trial["kind"] == "supervised":
            return self.supervise(start, trial)
        return self.adapt(start, trial)

    def adapt(self, start: Path, trial: dict[str, Any]) -> dict[str, Any]:
        """Adapt to the boxes of both splits."""
        from segtrain.labeller import LabellerSettings, adapt_labeller
        from segtrain.labeller.crop_network import load_crop_network
        from segtrain.labeller.mask_scores import ADAPTED_THRESHOLD

        change = dict(trial["change"])
        num_known = change.pop("known_crops", 0)
        if "frozen" in change:
            change["frozen"] = tuple(change["frozen"])
        settings = LabellerSettings(
            max_iterations=trial["steps"],
            crop_size=trial["crop_size"],
            seed=trial.get("seed", 0),
            checkpoint_seconds=1e9,
            **change,
        )
        photos = [
            dataclasses.replace(photo, load_image=lambda name=photo.name: self.images[name])
            for split in self.splits.values()
            for photo, _ in split
        ]
        known = self.known_crops(settings.crop_size, num_known) if num_known else None
        began = time.time()
        for _ in range(trial.get("rounds", 1)):
            target = Path(tempfile.mkdtemp(dir=self.scratch))
            start = adapt_labeller(
                photos, settings, target, start=start, on_progress=self.watch_clock,
                known_crops=known, is_deterministic=False, device=self.device,
            )  # fmt: skip
            (target / "adaptation.pth").unlink(missing_ok=True)
        network, _ = load_crop_network(start)
        result = {"adapt_seconds": round(time.time() - began, 1)}
        result |= self.measure(network, settings.crop_size, ADAPTED_THRESHOLD)
        shutil.rmtree(target, ignore_errors=True)
        return result

    def known_crops(self, size: int, num: int) -> Any:
        """Crops of the scenes that were drawn so far."""
        import torch

        from pipeline.synth.scene_crops import ScenePool
        from segtrain.labeller.crop_network import NetworkDescription

        generator = torch.Generator(self.device).manual_seed(0)
        pool = ScenePool(2000, self.device, NetworkDescription(), generator)
        while not pool.read_folder(self.scratch / "scenes", most_chunks=80):
            time.sleep(0.2)
        return lambda _: pool.draw(num, size)

    def supervise(self, start: Path, trial: dict[str, Any]) -> dict[str, Any]:
        """The ceiling: learn the true masks of train, measured on the way."""
        import torch

        from pipeline.synth.scene_crops import ScenePool
        from segtrain.labeller.adaptation import freeze_parameters
        from segtrain.labeller.crop_losses import known_mask_loss
        from segtrain.labeller.crop_network import load_crop_network
        from segtrain.labeller.settings import LabellerSettings

        torch.manual_seed(trial.get("seed", 0))
        network, _ = load_crop_network(start)
        freeze_parameters(network.encoder, LabellerSettings().frozen)
        network.to(self.device).to(memory_format=torch.channels_last).train()
        average = copy.deepcopy(network)
        generator = torch.Generator(self.device).manual_seed(trial.get("seed", 0))
        chunk = self.pack_photos("train")
        pool = ScenePool(len(chunk["counts"]), self.device, network.description, generator)
        pool.add(chunk)
        encoder = [p for p in network.encoder.parameters() if p.requires_grad]
        decoder = [p for n, p in network.named_parameters() if not n.startswith("encoder.")]
        groups = [{"params": encoder, "lr": 3e-4}, {"params": decoder, "lr": 1e-3}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        steps, size, losses = trial["steps"], trial["crop_size"], []
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps))),
        )
        for step in range(steps):
            crops = pool.draw(32, size)
            logits = network(crops.rgb.contiguous(memory_format=torch.channels_last), crops.hints)
            loss = known_mask_loss(logits, crops.target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.02)
            if step % 50 == 0:
                losses.append(round(float(loss), 3))
                self.watch_clock(step, steps, {})
        return {"losses": losses[-6:]} | self.measure(average, size)

    def pack_photos(self, split: str) -> dict[str, Any]:
        """Photos and true masks in the form of packed scenes; smaller objects lie before others."""
        import numpy as np

        from benchmarks.labeller_iou import true_mask
        from pipeline.synth.scene_chunks import NOBODY

        photos = self.splits[split]
        side = max(max(self.images[photo.name].shape[:2]) for photo, _ in photos)
        most = max(len(objects) for _, objects in photos)
        num = len(photos)
        images = np.full((num, side, side, 3), 127, np.uint8)
        maps = np.full((num, side, side), NOBODY, np.uint8)
        boxes, counts = np.zeros((num, most, 4), np.float32), np.zeros(num, np.int64)
        owners = np.broadcast_to(np.arange(most, dtype=np.uint8), (num, most)).copy()
        for p, (photo, objects) in enumerate(photos):
            image = self.images[photo.name]
            height, width = image.shape[:2]
            images[p, :height, :width] = image
            boxes[p, : len(objects)], counts[p] = photo.boxes, len(objects)
            for k in sorted(range(len(objects)), key=lambda k: -objects[k]["area"]):
                maps[p, :height, :width][true_mask(objects[k], (height, width))] = k
        depths = np.zeros((num, side, side), np.float16)
        return {
            "images": images, "maps": maps, "depths": depths, "boxes": boxes, "owners": owners,
            "counts": counts,
        }  # fmt: skip

    def watch_clock(self, done: int, total: int, _: Any) -> None:
        """Stop a trial that would not be measured in time."""
        if time.time() > self.deadline - _STOP_EARLY_SECONDS:
            raise TimeoutError(f"cut off after {done} of {total} steps")

    def measure(self, network: Any, size: int, threshold: float = 0.5) -> dict[str, Any]:
        """IoU on both splits, all views on the device at once."""
        import numpy as np
        import torch

        from benchmarks.labeller_iou import summarise
        from segtrain.labeller.mask_prediction import VIEWS

        network.to(self.device).to(memory_format=torch.channels_last).eval()
        result = {}
        for split in self.splits:
            if (split, size) not in self.views:
                self.views[split, size] = self.cut_views(split, size)
            rgb, hints, grids, truth, areas = self.views[split, size]
            ious = []
            for begin in range(0, len(truth), 64):
                part = slice(begin, begin + 64)
                total = torch.zeros(truth[part].shape, device=self.device)
                for view, mirrored in enumerate(how.mirrored for how in VIEWS):
                    with torch.inference_mode():
                        crops, box = rgb[view][part].float(), hints[view][part].float()
                        if mirrored:
                            crops, box = crops.flip(3), box.flip(3)
                        crops = crops.contiguous(memory_format=torch.channels_last)
                        seen = network(crops, box).float().sigmoid()
                        seen = seen.flip(2) if mirrored else seen
                        total += torch.nn.functional.grid_sample(
                            seen[:, None], grids[view][part], padding_mode="border",
                            align_corners=False,
                        )[:, 0]  # fmt: skip
                mask = total > len(VIEWS) * threshold
                both = (mask & truth[part]).sum((1, 2))
                ious.append(both / (mask | truth[part]).sum((1, 2)).clamp(min=1))
            result[split] = summarise(torch.cat(ious).cpu().numpy(), np.array(areas))
        return result

    def cut_views(self, split: str, size: int) -> Any:
        """Crops of each view, box hints, where the box's grid lies in them, true masks, areas.

        All views have one size here, so that one batch holds what a trial compares.
        """
        import torch

        from benchmarks.labeller_iou import true_mask
        from segtrain.labeller.crop_network import NetworkDescription
        from segtrain.labeller.mask_prediction import VIEWS
        from segtrain.labeller.object_crops import (
            box_coverage,
            boxes_in_crops,
            clip_boxes,
            crop_windows,
            cut_crops,
        )

        description = NetworkDescription()
        mean = torch.tensor(description.pixel_mean, device=self.device)[:, None, None]
        deviation = torch.tensor(description.pixel_deviation, device=self.device)[:, None, None]
        rgb: list[list[Any]] = [[] for _ in VIEWS]
        hints: list[list[Any]] = [[] for _ in VIEWS]
        grids: list[list[Any]] = [[] for _ in VIEWS]
        truths, areas, seen = [], [], 0
        cells = (torch.arange(64) + 0.5) / 64
        for photo, objects in self.splits[split]:
            keep = [k for k in range(len(objects)) if (seen + k) % self.every == 0]
            seen += len(objects)
            if not keep:
                continue
            image = self.images[photo.name]
            height, width = image.shape[:2]
            boxes = clip_boxes(torch.from_numpy(photo.boxes[keep]), height, width)
            pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float()
            pixels = (pixels - mean) / deviation
            for view, how in enumerate(VIEWS):
                windows = crop_windows(boxes, torch.full_like(boxes, how.margin))
                rgb[view].append(cut_crops(pixels, windows.to(self.device), size).half())
                inner = boxes_in_crops(boxes, windows, size)
                hint = torch.zeros(len(keep), 2, size, size)
                hint[:, 0] = box_coverage(inner, size, size) * 2 - 1
                hints[view].append(hint.half().to(self.device))
                inner = inner / size * 2 - 1
                x = inner[:, :1] + (inner[:, 2:3] - inner[:, :1]) * cells
                y = inner[:, 1:2] + (inner[:, 3:4] - inner[:, 1:2]) * cells
                grid = torch.stack(
                    (x[:, None].expand(-1, 64, -1), y[:, :, None].expand(-1, -1, 64)), 3
                )
                grids[view].append(grid.to(self.device))
            for k, (x1, y1, x2, y2) in zip(keep, boxes.tolist(), strict=True):
                mask = torch.from_numpy(true_mask(objects[k], (height, width)))
                rows = (y1 + (y2 - y1) * cells).long().clamp(0, height - 1)
                columns = (x1 + (x2 - x1) * cells).long().clamp(0, width - 1)
                truths.append(mask[rows][:, columns])
                areas.append(objects[k]["area"])
        stacked = ([torch.cat(parts) for parts in views] for views in (rgb, hints, grids))
        return (*stacked, torch.stack(truths).to(self.device), areas)


if __name__ == "__main__":
    main()
