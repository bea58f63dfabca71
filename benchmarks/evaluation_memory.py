"""Peak memory of evaluating one photo of 4000×3000 pixels, by the number of its masks.

The photo is read, shown to the network at 320×240 pixels, its masks are made at the photo's size,
run-length encoded and compared with the annotation: `evaluate_model`, as `pipeline eval` calls
it. Each number of masks has a process of its own; its peak is what the kernel counted (VmHWM).

    python benchmarks/evaluation_memory.py
    python benchmarks/evaluation_memory.py --masks 10 100
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from taking_turns import forget_peak, memory_mib

PHOTO_SIZE = (4000, 3000)
CONFIG = Path(__file__).resolve().parents[1] / "configs/demo/full.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, nargs="+", default=[10, 100, 300])
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(evaluate_photo(arguments.worker, arguments.masks[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_photo(Path(folder))
        for num_masks in arguments.masks:
            command = (sys.executable, "-W", "ignore", __file__, "--worker", folder)
            answer = subprocess.run(
                [*command, "--masks", str(num_masks)], stdout=subprocess.PIPE, check=True
            )
            print(answer.stdout.decode().strip(), flush=True)


def write_photo(folder: Path) -> None:
    """A photo of coloured noise, and its COCO file with an object."""
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(PHOTO_SIZE).save(folder / "photo.jpg")
    width, height = PHOTO_SIZE
    square = [100, 100, 900, 100, 900, 900, 100, 900]
    document = {
        "images": [{"id": 1, "file_name": "photo.jpg", "width": width, "height": height}],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 7)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [100, 100, 800, 800],
                "area": 640_000,
                "segmentation": [square],
            }
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(document))


def evaluate_photo(folder: Path, num_masks: int) -> dict[str, Any]:
    """Evaluate an untrained network that keeps so many of its guesses."""
    import torch
    from detectron2.config import LazyConfig, instantiate

    from segtrain.run.checkpoints import save_atomically
    from segtrain.use.evaluation import evaluate_model

    cfg = LazyConfig.load(str(CONFIG))
    cfg.data.test_json, cfg.data.test_images = str(folder / "annotations.json"), str(folder)
    cfg.train.device = "cpu"
    cfg.dataloader.test.short_side, cfg.dataloader.test.max_size = 240, 320
    cfg.model.score_threshold = 0.0
    cfg.model.num_detections = num_masks
    torch.manual_seed(0)
    weights = folder / "weights.pth"
    state = instantiate(cfg.model).state_dict()
    # Boxes that are not empty: every guess is kept.
    state["proposal_generator.fcos_head.bbox_pred.bias"].fill_(2.0)
    save_atomically({"model": state}, weights)
    forget_peak()  # building the network takes more than showing it a photo
    before = int(memory_mib("VmHWM"))
    metrics = evaluate_model(cfg, weights, folder)
    num_bytes = (folder / "results.json").stat().st_size
    return {
        "num_masks": metrics["num_results"],
        "peak_mib": int(memory_mib("VmHWM")),
        "peak_before_mib": before,
        "results_mib": round(num_bytes / 2**20, 1),
        "seconds": round(metrics["seconds_per_image"], 1),
    }


if __name__ == "__main__":
    main()
