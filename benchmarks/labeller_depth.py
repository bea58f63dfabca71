"""What depth gives the labeller when it adapts to boxes of generated scenes.

    python -m benchmarks.labeller_depth --iterations 300
    python -m benchmarks.labeller_depth --from-imagenet   # boxes alone, no starting weights

Rows: colour; colour twice, the control that any claim about depth must beat; true depth as a loss,
as an input, as both. Objects of held-out scenes, one third of them camouflaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline.resources import labeller_path
from pipeline.synth import ObjectScene, draw_pattern_tiles, draw_scene, list_objects
from segtrain.labeller import (
    BoxedPhoto,
    LabellerSettings,
    adapt_labeller,
    label_boxes,
    load_labeller,
)
from segtrain.labeller.crop_network import build_crop_network, save_crop_network

ROWS = {
    "colour": {},
    "colour twice": {"colour_weight": 2.0},
    "depth loss": {"depth": "loss"},
    "depth input": {"depth": "input"},
    "depth loss and input": {"depth": "both"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--crop-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--train-scenes", type=int, default=100)
    parser.add_argument("--test-scenes", type=int, default=40)
    parser.add_argument("--from-imagenet", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(77)
    tiles = draw_pattern_tiles(rng, 200)
    train = [draw_scene(rng, tiles, camouflage=0.33) for _ in range(arguments.train_scenes)]
    test = [draw_scene(rng, tiles, camouflage=0.33) for _ in range(arguments.test_scenes)]
    photos = [photo for k, scene in enumerate(train) if (photo := as_photo(scene, str(k)))]
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            start = labeller_path()
            if arguments.from_imagenet:
                start = Path(folder) / "start.safetensors"
                save_crop_network(build_crop_network(), start)
            base = LabellerSettings(
                crop_size=arguments.crop_size,
                batch_size=arguments.batch_size,
                max_iterations=arguments.iterations,
                seed=seed,
            )
            for name, changes in ROWS.items():
                settings = dataclasses.replace(base, **changes)
                weights = adapt_labeller(photos, settings, Path(folder) / name, start=start)
                print(json.dumps({"row": name, "seed": seed} | measure(test, weights, settings)))


def as_photo(scene: ObjectScene, name: str) -> BoxedPhoto | None:
    boxes = np.array([item.box for item in list_objects(scene)], np.float32)
    if not len(boxes):
        return None
    return BoxedPhoto(
        name=name,
        boxes=boxes,
        load_image=functools.partial(np.copy, scene.image),
        load_inverse_depth=functools.partial(np.copy, scene.inverse_depth),
    )


def measure(
    scenes: list[ObjectScene], weights: Path, settings: LabellerSettings
) -> dict[str, float | int]:
    labeller = dataclasses.replace(
        load_labeller(weights, uses_depth=settings.has_depth_hint), crop_size=settings.crop_size
    )
    ious, hidden = [], []
    for scene in scenes:
        objects = list_objects(scene)
        boxes = np.array([item.box for item in objects], np.float32).reshape(-1, 4)
        masks = label_boxes(labeller, scene.image, boxes, scene.inverse_depth)
        for item, mask in zip(objects, masks, strict=True):
            truth, found = scene.owners == item.index, mask.whole()
            ious.append(float((found & truth).sum() / (found | truth).sum()))
            hidden.append(bool(scene.camouflaged[item.index]))
    values, is_hidden = np.array(ious), np.array(hidden)
    return {
        "objects": len(values),
        "mean_iou": round(float(values.mean()), 4),
        "camouflaged": round(float(values[is_hidden].mean()), 4),
        "others": round(float(values[~is_hidden].mean()), 4),
    }


if __name__ == "__main__":
    main()
