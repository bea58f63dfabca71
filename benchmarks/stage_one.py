"""Stage one beside the bare forward pass and beside transformers' pipeline; its cost by size.

    python benchmarks/stage_one.py --images DIR
    python benchmarks/stage_one.py --images DIR --large --num-images 48 --rounds 3 --forward-only
    python benchmarks/stage_one.py --curve 100 1000 10000

The model is a DPT with random weights, the photos are real where DIR has some. Stage one and the
bare pass run as the `pipeline depth` command runs them, with its allocator settings and in bf16;
transformers' pipeline as a script gets it: fp32, one image at a time, the default allocator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_dpt import write_dpt
from taking_turns import DEFAULT, TUNED, Side, compare, ratio, report, serve
from transformers import pipeline

from depthcache import image_key
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.writer import seal_segment
from depthcache.stage_one.depth_models import DepthModel, load_depth_model
from depthcache.stage_one.shard_computation import ShardTarget, compute_shards, load_image
from depthcache.storage.local_folder import LocalStore

# One run of stage one in a process of its own: seconds and peak memory, from start to seal.
_CURVE_ONCE = """
import json, re, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.settings import StageOneSettings
images, model, root = map(Path, sys.argv[1:4])
paths = sorted(images.iterdir())
precompute_depth(paths[:1], model, str(root / "first"))
status = Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) // 1024
base = peak()
start, processor = time.perf_counter(), time.process_time()
settings = StageOneSettings(batch_size=64, workers=1)
summary = precompute_depth(paths, model, str(root / "all"), settings)
assert summary.num_computed == len(paths)
print(json.dumps({
    "seconds": round(time.perf_counter() - start, 2),
    "processor_seconds": round(time.process_time() - processor, 2),
    "peak_mib": peak(),
    "mib_before": base,
}))
"""


SIDES = [
    Side("stage one", "stage", TUNED),
    Side("bare forward pass", "forward", TUNED),
    Side("transformers' pipeline, as a script gets it", "transformers", DEFAULT),
    Side("the same, tuned allocator", "transformers", TUNED),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="photos; without, pictures of noise")
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", default="bf16", help="of stage one and of the bare pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forward-only", action="store_true", help="leave transformers out")
    parser.add_argument("--large", action="store_true", help="a ViT-L, as DPT-large; else a ViT-B")
    parser.add_argument("--curve", type=int, nargs="+", metavar="IMAGES", help="cost by size")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        serve(build_side(arguments.worker, arguments.folder, arguments))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.curve:
            result = measure_curve(folder, arguments.curve)
        else:
            result = compare_sides(folder, arguments)
        print(json.dumps(result, indent=1))


def compare_sides(folder: Path, settings: Any) -> dict[str, Any]:
    """How stage one stands to the other sides, by the clock and in processor time."""
    hidden_size, num_layers = (1024, 24) if settings.large else (768, 12)
    write_dpt(folder / "dpt", hidden_size=hidden_size, num_layers=num_layers, side=384)
    if settings.images is None:
        write_noise(folder / "images", settings.num_images, side=480)
        settings.images = folder / "images"
    options = [
        *("--folder", str(folder), "--images", str(settings.images)),
        *("--num-images", str(settings.num_images), "--batch-size", str(settings.batch_size)),
        *("--precision", settings.precision, "--threads", str(settings.threads)),
    ]
    sides = SIDES[:2] if settings.forward_only else SIDES
    measured = compare(__file__, sides, options, settings.rounds)
    print(f"seconds for {settings.num_images} images", flush=True)
    report(sides, measured)
    names = ["of_forward_throughput", "times_pipeline", "times_pipeline_with_tuned_allocator"]
    return {
        name: [round(ratio(other, measured[0], key), 3) for key in ("seconds", "cpu_seconds")]
        for name, other in zip(names[: len(sides) - 1], measured[1:], strict=True)
    } | {"batch_rounding": compare_batches(folder / "dpt", list_images(settings)[:4])}


def build_side(task: str, folder: Path, settings: Any) -> Callable[[], None]:
    """One side with its model loaded."""
    images = list_images(settings)
    if task == "transformers":
        theirs = pipeline("depth-estimation", model=str(folder / "dpt"), device="cpu")

        def run_pipeline() -> None:
            for path in images:
                theirs(str(path))

        return run_pipeline

    model = load_depth_model(folder / "dpt", precision=settings.precision)
    paths = {image_key(path.read_bytes()): path for path in images}
    if task == "forward":
        pixels = [load_image(model, path, key) for key, path in paths.items()]

        def run_forward() -> None:
            for start in range(0, len(pixels), settings.batch_size):
                model.predict(pixels[start : start + settings.batch_size])

        return run_forward

    num_runs = 0

    def run_stage() -> None:
        nonlocal num_runs
        num_runs += 1
        write_segment(folder / f"cache-{num_runs}", paths, model, settings.batch_size)

    return run_stage


def write_segment(root: Path, paths: dict[str, Path], model: DepthModel, batch_size: int) -> None:
    """Stage one from the first byte of an image to the seal, the model being loaded."""
    store = LocalStore(root)
    shape = (384, 384)
    plan = plan_segment(dict.fromkeys(paths, shape), fingerprint="benchmark-0", shard_rows=64)
    prefix = f"benchmark-0/segments/{plan.segment_id}"
    target = ShardTarget(store=store, prefix=prefix, shard_rows=64, bits=12)
    outcome = compute_shards(plan.shards, paths, model, target, batch_size=batch_size, readers=2)
    assert len(outcome.computed) == len(paths)
    seal_segment(store, prefix, plan, bits=12, provenance={})


def compare_batches(model: Path, images: Sequence[Path]) -> dict[str, float]:
    """Largest change of a map, of its range, when other images share its batch."""
    changes = {}
    for precision in ("fp32", "bf16"):
        loaded = load_depth_model(model, precision=precision)
        pixels = [load_image(loaded, path, image_key(path.read_bytes())) for path in images]
        alone, together = loaded.predict(pixels[:1])[0], loaded.predict(pixels)[0]
        change = np.abs(alone - together).max() / np.ptp(alone)
        changes[precision] = float(f"{change:.2g}")
    return changes


def measure_curve(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Stage one on ever more images with a tiny model."""
    write_dpt(folder / "dpt", hidden_size=16, num_layers=4, side=32)
    curve = {}
    for size in sorted(sizes):
        images = folder / f"images-{size}"
        write_noise(images, size)
        answer = subprocess.check_output(
            [sys.executable, "-c", _CURVE_ONCE, images, folder / "dpt", folder / f"root-{size}"]
        )
        curve[size] = json.loads(answer)
        curve[size]["processor_ms_an_image"] = 1e3 * curve[size]["processor_seconds"] / size
        print(f"{size}: {curve[size]}", file=sys.stderr, flush=True)
    return {"curve": curve}


def list_images(settings: Any) -> list[Path]:
    """The first photos, or pictures of noise."""
    found = sorted([*settings.images.glob("*.jpg"), *settings.images.glob("*.png")])
    return found[: settings.num_images]


def write_noise(folder: Path, num_images: int, side: int = 32) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(num_images):
        pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)


if __name__ == "__main__":
    main()
