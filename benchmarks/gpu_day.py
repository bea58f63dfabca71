"""Everything that wants a GPU, in one run of at most 8 minutes.

    python benchmarks/gpu_day.py --out results        # on a GPU
    python benchmarks/gpu_day.py --out results --tiny # on a CPU, to try the script: minutes

Nothing is downloaded: models have the true architectures and random weights, photos are generated.
`results/gpu_day.json` holds all rows, `results/gpu_day.md` the tables for docs/notes/gpu.md; both
are written after every part. Nothing begins after 400 seconds, and what runs after 465 is cut. A
part that fails or is cut, and a part or a step for which no time is left, is a row that says so,
and the exit code is 1. docs/notes/gpu.md says what a bare machine needs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # also when a test imports this file
from random_dpt import write_dpt
from textbook_boxinst import TextbookBoxInst
from trainer_speed import build_model, make_batch, make_boxes

REPOSITORY = Path(__file__).resolve().parents[1]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Sizes:
    """How large everything is: as in real life, or just enough to run every line."""

    num_photos: int = 1024
    photo: tuple[int, int] = (480, 640)
    dpt: dict[str, int] = field(
        default_factory=lambda: {"hidden_size": 1024, "num_layers": 24, "side": 384}
    )
    depth_batch: int = 16
    short_sides: tuple[int, ...] = (640, 800)
    batches: tuple[int, ...] = (4, 8)
    rounds: int = 8
    backbone: str = "resnet50"
    crop: int = 512
    crops: int = 16
    encoder: str = "vit_small_patch16_224"
    iterations: int = 6
    table: str = "--workers 4 --seeds 0 1 2 --rows boxinst control ours masks"


TINY = Sizes(
    num_photos=6, photo=(48, 64), dpt={"hidden_size": 32, "num_layers": 4, "side": 32},
    depth_batch=2, short_sides=(64,), batches=(2,), rounds=1, backbone="test_efficientnet_gn",
    crop=64, crops=2, encoder="vit_tiny_patch16_224", iterations=4,
    table="--seeds 0 --rows boxinst --num-scenes 2 --iterations 2 --start-iterations 2 --batch 2"
    " --start-batch 2 --short-side 64 --teacher-side 96 --backbone test_efficientnet_gn",
)  # fmt: skip


class CutError(BaseException):
    """A part ran too long; no part takes it for one of its own errors."""


class Day:
    """The parts of the run and what they measured.

    Args:
        device: to measure.
        sizes: of everything.
        work: folder for what is generated.
        limit: seconds from now after which nothing begins.
        cut: seconds from now after which what runs is cut.

    Attributes:
        rows: {"part", "what", …figures…}, as they come.
    """

    def __init__(
        self, device: torch.device, sizes: Sizes, work: Path, *, limit: float, cut: float
    ) -> None:
        self.device, self.sizes, self.work = device, sizes, work
        self.rows: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self._end, self._cut = time.monotonic() + limit, time.monotonic() + cut
        self.precisions = ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")

    def run(self, parts: dict[str, Callable[[Day], None]], keep: Callable[[], None]) -> None:
        """Run parts in order until the time is up; one that fails does not end the others.

        Args:
            parts: by name.
            keep: called after each.
        """
        for name, part in parts.items():
            started = time.monotonic()
            if self.seconds_left() < 0:
                self.fail(name, "not run: the time is up")
                keep()
                continue
            try:
                with self._cut_when_due():
                    part(self)
            except CutError:
                traceback.print_exc()
                self.fail(name, "cut: the time is up")
            except Exception as error:
                traceback.print_exc()
                self.fail(name, f"{type(error).__name__}: {str(error)[:200]}")
            keep()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)

    @contextmanager
    def _cut_when_due(self) -> Iterator[None]:
        def cut(*_: Any) -> None:
            raise CutError

        before = signal.signal(signal.SIGALRM, cut)
        signal.setitimer(signal.ITIMER_REAL, max(self._cut - time.monotonic(), 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def seconds_left(self) -> float:
        """Until nothing may begin any more."""
        return self._end - time.monotonic()

    def add(self, part: str, what: str, **figures: Any) -> None:
        """Record a row."""
        self.rows.append({"part": part, "what": what, **figures})
        print(self.rows[-1], flush=True)

    def fail(self, part: str, why: str) -> None:
        """Record that a part, or something in it, did not work."""
        self.problems.append(f"{part}: {why}")
        self.add(part, why)

    def time(self, run: Callable[[], Any], rounds: int | None = None) -> tuple[float, float]:
        """Median seconds of a call after one that warms up, and peak MiB of device memory."""
        self.settle(run)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = [self.settle(run) for _ in range(rounds or self.sizes.rounds)]
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else 0.0
        return statistics.median(seconds), peak

    def settle(self, run: Callable[[], Any]) -> float:
        """Seconds of a call until the device is done."""
        self._wait()
        started = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def autocast(self, precision: str) -> Any:
        """What a step computes in."""
        enabled = precision != "fp32"
        return torch.autocast(self.device.type, dtype=DTYPES[precision], enabled=enabled)


# --- Stage one ---------------------------------------------------------------------------------


def stage_one(day: Day) -> None:
    """DPT-large end to end, JPEG decoding and store writes included, against forward passes."""
    from transformers import AutoModelForDepthEstimation

    from depthcache.stage_one.precompute import precompute_depth
    from depthcache.stage_one.settings import StageOneSettings

    sizes = day.sizes
    model_folder, photos = day.work / "dpt", write_photos(day.work / "photos", sizes)
    write_dpt(model_folder, **sizes.dpt)
    side, batch = sizes.dpt["side"], sizes.depth_batch
    for precision in day.precisions:
        network = AutoModelForDepthEstimation.from_pretrained(model_folder)
        network.to(day.device, DTYPES[precision]).eval()
        pixels = torch.rand(batch, 3, side, side, device=day.device, dtype=DTYPES[precision])

        def forward(network: Any = network, pixels: torch.Tensor = pixels) -> None:
            with torch.inference_mode():
                network(pixels)

        pure, peak = day.time(forward)
        del network
        root = day.work / f"cache-{precision}"
        few = photos[:batch]
        settings = StageOneSettings(
            precision=precision,
            batch_size=batch,
            device=str(day.device),
            workers=8 if day.device.type == "cuda" else 1,
        )
        precompute_depth(few, model_folder, f"{root}-first", settings)  # imports, warms up
        loading = precompute_depth(few, model_folder, str(root), settings).seconds
        summary = precompute_depth(photos, model_folder, str(root), settings)
        assert summary.num_failed == 0
        # What both calls do, loading the model and one batch, is taken off.
        seconds = max(summary.seconds - loading, 1e-9)
        rate, pure_rate = (len(photos) - batch) / seconds, batch / pure
        day.add(
            "stage one", f"DPT-large's architecture, {precision}, batch {batch}",
            images_per_second=rate, forward_only=pure_rate, ratio=rate / pure_rate, peak_mib=peak,
        )  # fmt: skip


def write_photos(folder: Path, sizes: Sizes) -> list[Path]:
    """JPEG files of smooth blotches with noise, each with bytes of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    height, width = sizes.photo
    noise = rng.normal(0, 6, (height, width, 3))
    for number in range(sizes.num_photos):
        blotches = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC))
        pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


# --- Training steps ----------------------------------------------------------------------------


def steps(day: Day) -> None:
    """Steps of R-50 beside the textbook's; the share of the mask losses in them."""
    sizes = day.sizes
    for case in itertools.product(sizes.short_sides, sizes.batches, day.precisions):
        if day.seconds_left() < 0:
            day.fail("step", f"{name_step(*case)}: not run, the time is up")
        else:
            measure_step(day, *case)


def name_step(short_side: int, batch_size: int, precision: str) -> str:
    """What the table calls a case."""
    return f"short side {short_side}, batch {batch_size}, {precision}"


def measure_step(day: Day, short_side: int, batch_size: int, precision: str) -> None:
    """One row: ours with depth layer and consistency, the textbook, and our losses alone."""
    figures: dict[str, float] = {}
    for program in ("textbook", "ours"):
        step = build_step(day, program, short_side, batch_size, precision)
        # The textbook makes tensors on the default device as it computes.
        with torch.device(day.device) if program == "textbook" else nullcontext():
            rounds = max(day.sizes.rounds // (2 if program == "textbook" else 1), 1)
            figures[program], figures[f"{program}_peak"] = day.time(step, rounds)
        del step
    losses, _ = day.time(build_losses(day, short_side, batch_size))
    day.add(
        "step", name_step(short_side, batch_size, precision),
        seconds=figures["ours"], textbook_seconds=figures["textbook"],
        ratio=figures["ours"] / figures["textbook"], losses_share=losses / figures["ours"],
        peak_mib=figures["ours_peak"], textbook_peak_mib=figures["textbook_peak"],
    )  # fmt: skip


def build_step(
    day: Day, program: str, short_side: int, batch_size: int, precision: str,
    *, deterministic: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """A whole step, with loss scaling in fp16."""
    from segtrain.run.determinism import deterministic_algorithms

    model = build_network(day, program).to(day.device).train()
    batch = move_batch(make_batch(short_side, (8,) * batch_size), day.device)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9
    )
    scaler = torch.amp.GradScaler(day.device.type, enabled=precision == "fp16")

    def run() -> None:
        with deterministic_algorithms(day.device, enabled=deterministic):
            with day.autocast(precision):
                losses = model(batch)
            scaler.scale(torch.stack([v.float() for v in losses.values()]).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run


def build_network(day: Day, program: str) -> Any:
    """R-50 of either program, or at tiny size a small backbone for both roles of ours."""
    settings = {"depth_layer": True, "consistency": True} if program == "ours" else {}
    if day.sizes.backbone == "resnet50":
        model = build_model(program, **settings)
    elif program == "textbook":
        model = TextbookBoxInst()
    else:
        from segtrain.modeling.backbones import build_timm_fpn
        from segtrain.modeling.build import build_condinst

        backbone = build_timm_fpn(name=day.sizes.backbone, out_channels=32)
        model = build_condinst(
            backbone=backbone, num_classes=80, feature_channels=32, tower_depth=1, **settings
        )
    if program == "ours":
        model.set_iteration(20_000)
    return model


def build_losses(day: Day, short_side: int, batch_size: int) -> Callable[[], None]:
    """Projection, colour, depth and consistency of 64 masks an image, forward and backward."""
    from segtrain.losses import (
        depth_loss,
        edges_from_similarity,
        filled_pixels,
        mask_grid_extents,
        pairwise_losses,
        projection_loss,
    )

    height, width = short_side // 4, short_side // 3
    count = 64 * batch_size if day.sizes.backbone == "resnet50" else 4
    logits = torch.randn(count, height, width, device=day.device, requires_grad=True)
    depth = torch.rand(count, height, width, device=day.device, requires_grad=True)
    similarity = torch.rand(batch_size, 8, height, width, device=day.device)
    inverse_depth = 255 * torch.rand(batch_size, height, width, device=day.device)
    images = (torch.arange(count, device=day.device) * batch_size) // count
    boxes = make_boxes(count, (4 * height, 4 * width)).to(day.device)
    extents = mask_grid_extents(filled_pixels(boxes, (4 * height, 4 * width)))
    whole = torch.tensor([0, height, 0, width], device=day.device).expand(count, 4)

    def run() -> None:
        edges = [edges_from_similarity(similarity, threshold) for threshold in (0.3, 0.5)]
        pairwise = pairwise_losses(logits, edges, images, [extents, whole])
        losses = [projection_loss(logits, extents), *pairwise]
        losses.append(depth_loss(depth, inverse_depth, images, extents))
        torch.stack(losses).sum().backward()
        logits.grad = depth.grad = None

    return run


def move_batch(batch: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Images, boxes and depth on the device, as a loader that pins memory would deliver them."""
    return [{k: v.to(device) if hasattr(v, "to") else v for k, v in b.items()} for b in batch]


def determinism(day: Day) -> None:
    """What sums in a fixed order cost."""
    short_side, batch_size = day.sizes.short_sides[0], day.sizes.batches[0]
    for precision in day.precisions[:2]:
        seconds = {
            fixed: day.time(
                build_step(day, "ours", short_side, batch_size, precision, deterministic=fixed)
            )[0]
            for fixed in (False, True)
        }
        day.add(
            "deterministic", name_step(short_side, batch_size, precision),
            seconds=seconds[False], deterministic_seconds=seconds[True],
            ratio=seconds[True] / seconds[False],
        )  # fmt: skip


# --- Promises of the trainer -------------------------------------------------------------------


def loss_scaling(day: Day) -> None:
    """Train in fp16 from a loss scale that overflows: steps are skipped, then taken."""
    from segtrain.run.experiment import read_experiment
    from segtrain.run.trainer import Trainer

    if day.device.type != "cuda":
        day.add("loss scaling", "fp16 needs a GPU")
        return
    # The scale is halved at every overflow: 14 steps lead from 2^24 to where fp16 usually fits.
    cfg = load_experiment(day, {"train.precision": "fp16", "train.max_iter": 24})
    trainer = Trainer(read_experiment(cfg), day.work / "fp16", resume=False)
    trainer.scaler = torch.amp.GradScaler(day.device.type, init_scale=2.0**24, growth_interval=2000)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    scale = trainer.scaler.get_scale()
    moved = sum(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters())
    day.add("loss scaling", "from 2^24 in fp16", scale_after=scale, parameters_moved=moved)
    assert scale < 2.0**24, "no overflow was met"
    assert moved, f"every step was skipped, down to a scale of {scale:g}"
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def resume(day: Day) -> None:
    """Stop a run half-way, go on, and compare the weights with an uninterrupted run's."""
    from segtrain.run.trainer import train_model

    cfg = load_experiment(day, {"train.checkpoint_period": day.sizes.iterations // 2})
    states = {}
    for name, stop_after in (("whole", None), ("stopped", day.sizes.iterations // 2)):
        folder = day.work / name

        def stop_when_due(iteration: int, *_: Any, stop: int | None = stop_after) -> None:
            if iteration == stop:
                raise KeyboardInterrupt

        try:
            train_model(cfg, folder, resume=True, on_progress=stop_when_due)
        except KeyboardInterrupt:
            train_model(cfg, folder, resume=True)
        saved = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
        states[name] = saved.get("model", saved)
    apart = [
        float((states["whole"][n].double() - states["stopped"][n].double()).abs().max())
        for n in states["whole"]
    ]
    day.add(
        "resume", f"{day.sizes.iterations} iterations, stopped at half",
        same_bits=max(apart) == 0.0, largest_difference=max(apart),
    )  # fmt: skip


def load_experiment(day: Day, changes: dict[str, Any]) -> Any:
    """The full method with depth on generated scenes, for this device."""
    from detectron2.config import LazyCall, LazyConfig
    from omegaconf import OmegaConf

    from depthcache.exchange.interchange import import_maps
    from pipeline.synth import generate_dataset
    from segtrain.modeling.backbones import build_timm_fpn

    tiny = day.sizes.backbone != "resnet50"
    scenes, size = day.work / "scenes", 64 if tiny else 256
    generate_dataset(scenes, num_images=4, size=(size, size), seed=3, workers=1)
    import_maps(
        scenes / "depth", scenes / "cache", images=scenes / "images", format="npy",
        convention="metric",
    )  # fmt: skip
    cfg = LazyConfig.load(str(REPOSITORY / "configs/demo/full.py"))
    if tiny:
        cfg.model.backbone = LazyCall(build_timm_fpn)(name=day.sizes.backbone, out_channels=32)
        cfg.model.feature_channels, cfg.model.tower_depth = 32, 1
    settings = {
        "data.train_json": str(scenes / "annotations.json"),
        "data.train_images": str(scenes / "images"),
        "data.test_json": str(scenes / "annotations.json"),
        "data.test_images": str(scenes / "images"),
        "depth.cache": str(scenes / "cache"),
        "train.device": day.device.type,
        "train.max_iter": day.sizes.iterations,
        "train.batch_size": 2,
        "train.log_period": 1,
        "train.tensorboard": False,
        "train.teacher_short_side": size,
        "dataloader.train.num_workers": 0,
        "dataloader.train.augmentation.short_sides": [size],
        **changes,
    }
    for key, value in settings.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def one_process_group(day: Day) -> None:
    """A step through DistributedDataParallel with one process, NCCL on a GPU, against plain."""
    backend = "nccl" if day.device.type == "cuda" else "gloo"
    short_side, batch_size = day.sizes.short_sides[0], day.sizes.batches[0]
    model = build_network(day, "ours").to(day.device).train()
    batch = move_batch(make_batch(short_side, (8,) * batch_size), day.device)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    gradients = []
    distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        ids = [0] if day.device.type == "cuda" else None
        for network in (
            model,
            torch.nn.parallel.DistributedDataParallel(
                model, device_ids=ids, find_unused_parameters=True
            ),
        ):
            model.zero_grad(set_to_none=True)
            torch.stack(list(network(batch).values())).sum().backward()
            gradients.append(
                torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            )
    finally:
        distributed.destroy_process_group()
    plain, joint = gradients
    day.add(
        "process group", f"{backend}, one process",
        relative_difference=float((plain - joint).norm() / plain.norm()),
    )  # fmt: skip


# --- The labeller ------------------------------------------------------------------------------


def labeller(day: Day) -> None:
    """The labeller's own adaptation on large crops: the bundled encoder, then a ViT."""
    from segtrain.labeller import BoxedPhoto, LabellerSettings, adapt_labeller
    from segtrain.labeller.crop_network import build_crop_network, save_crop_network

    sizes = day.sizes
    photos = [
        BoxedPhoto(name=f"scene {n}", boxes=boxes, load_image=lambda image=image: image)
        for n, (image, boxes) in enumerate(draw_boxed_scenes(4))
    ]
    settings = LabellerSettings(
        crop_size=sizes.crop, batch_size=sizes.crops, max_iterations=3 * sizes.iterations,
        warmup_iterations=sizes.iterations, frozen=(),
    )  # fmt: skip
    for encoder, extra in (
        ("tf_efficientnet_lite0", {}),
        (sizes.encoder, {"img_size": sizes.crop, "out_indices": (2, 5, 8, 11)}),
    ):
        start = day.work / f"{encoder}.safetensors"
        save_crop_network(build_crop_network(encoder, pretrained=False, **extra), start)
        ends: list[float] = []

        def note_time(*_: Any, ends: list[float] = ends) -> None:
            ends.append(time.perf_counter())

        if day.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        adapt_labeller(
            photos, settings, day.work / f"adapted-{encoder}", start=start, on_progress=note_time,
            device=day.device,
        )  # fmt: skip
        steps = ends[sizes.iterations :]
        seconds = (steps[-1] - steps[0]) / (len(steps) - 1)
        peak = torch.cuda.max_memory_allocated() / 2**20 if day.device.type == "cuda" else 0.0
        day.add(
            "labeller", f"adaptation of {encoder}, crop {sizes.crop}, batch {sizes.crops}",
            steps_per_second=1 / seconds, crops_per_second=sizes.crops / seconds, peak_mib=peak,
        )  # fmt: skip


def draw_boxed_scenes(number: int) -> list[tuple[Any, Any]]:
    """Generated pictures of objects, and their boxes."""
    from pipeline.synth import draw_pattern_tiles, draw_scene, list_objects

    rng = np.random.default_rng(0)
    tiles = draw_pattern_tiles(rng, 20)
    drawn = []
    while len(drawn) < number:
        scene = draw_scene(rng, tiles)
        boxes = [item.box for item in list_objects(scene)]
        if boxes:
            drawn.append((scene.image, np.array(boxes, np.float32)))
    return drawn


# --- The miniature -----------------------------------------------------------------------------


def miniature(day: Day) -> None:
    """What supervision is worth to detectors on held-out scenes; `method_table` has all rows."""
    from benchmarks.method_table.table import read_results
    from depthcache.storage.durable_files import read_json_lines

    output = day.work / "method-table"
    words = ["run", "--output", output, "--seconds", day.seconds_left(), *day.sizes.table.split()]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.method_table", *map(str, words)],
        cwd=REPOSITORY, check=True,
    )  # fmt: skip
    runs = [run for run in read_results(output / "results.jsonl", "test") if "mask" in run]
    for run in read_json_lines(output / "results.jsonl"):
        if "error" in run:
            day.fail("miniature", f"{run['row']}, seed {run['seed']}: {run['error']}")
    if not runs:
        raise RuntimeError("no row of the table was done in the time that was left")
    for row in dict.fromkeys(run["row"] for run in runs):
        own = [run for run in runs if run["row"] == row]
        day.add(
            "miniature", f"{row}, {len(own)} seeds",
            iou_given_the_box=statistics.mean(run["iou"]["all"] for run in own),
            mask_ap=statistics.mean(run["mask"]["AP"] for run in own),
            box_ap=statistics.mean(run["box"]["AP"] for run in own),
            seconds_per_step=statistics.median(run["seconds_per_step"] for run in own),
            peak_mib=max(run["peak_mib"] for run in own),
        )  # fmt: skip


PARTS: dict[str, Callable[[Day], None]] = {
    "loss scaling": loss_scaling,
    "resume": resume,
    "process group": one_process_group,
    "stage one": stage_one,
    "labeller": labeller,
    "step": steps,
    "deterministic": determinism,
    "miniature": miniature,
}


def render(document: dict[str, Any]) -> str:
    """One markdown table a part."""
    lines = [f"{document['device']}, torch {document['torch']}, {document['seconds']:.0f} s in all"]
    for part in dict.fromkeys(row["part"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["part"] == part]
        names = list(dict.fromkeys(n for row in rows for n in row if n not in ("part", "what")))
        lines += ["", f"| {' | '.join([part, *(n.replace('_', ' ') for n in names)])} |"]
        lines.append("|---" * (1 + len(names)) + "|")
        for row in rows:
            cells = [row["what"], *(_format(row.get(name, "")) for name in names)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_results(day: Day, folder: Path, seconds: float) -> None:
    """Both files, of what there is."""
    is_gpu = day.device.type == "cuda"
    document = {
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor(),
        "torch": torch.__version__,
        "seconds": seconds,
        "sizes": asdict(day.sizes),
        "problems": day.problems,
        "rows": day.rows,
    }
    (folder / "gpu_day.json").write_text(json.dumps(document, indent=1))
    (folder / "gpu_day.md").write_text(render(document))


def main(argv: list[str] | None = None) -> int:
    """Run the parts and write the results.

    Returns:
        0, or 1 when a part failed or was not run.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("output/gpu-day"))
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, on a CPU")
    parser.add_argument("--limit-seconds", type=float, default=400, help="nothing begins later")
    parser.add_argument("--cut-seconds", type=float, default=465, help="what runs then is cut")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args(argv)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny tries the script on a CPU")
    device = torch.device("cpu" if arguments.tiny else "cuda")
    sizes = TINY if arguments.tiny else Sizes()
    started = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        day = Day(
            device, sizes, Path(work), limit=arguments.limit_seconds, cut=arguments.cut_seconds
        )
        day.run(
            {name: PARTS[name] for name in arguments.parts},
            keep=lambda: write_results(day, arguments.out, time.monotonic() - started),
        )
    print((arguments.out / "gpu_day.md").read_text())
    return 1 if day.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
