"""Pictures of the miniature as COCO files, with depth that is sensed or predicted, in caches."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from benchmarks.mask_lab.splits import SEEDS
from depthcache.exchange.interchange import import_maps
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.settings import StageOneSettings
from pipeline.synth import (
    PRESETS,
    ObjectScene,
    draw_pattern_tiles,
    generate_dataset,
    list_objects,
)
from pipeline.synth.scene_chunks import NUM_TILES, draw_usable

_SIZE = 256


@dataclasses.dataclass(kw_only=True, frozen=True)
class Scenes:
    """Where everything lies.

    Attributes:
        folder: of all files.
        num_scenes: of each split.
    """

    folder: Path
    num_scenes: dict[str, int]

    def images(self, split: str) -> Path:
        """Folder of a split's pictures."""
        return self.folder / split / "images"

    def annotations(self, split: str, masks: str = "true") -> Path:
        """COCO file of a split with true masks, `filled` boxes, or what `labels` wrote."""
        return self.folder / split / ("annotations.json" if masks == "true" else f"{masks}.json")

    def depth(self, split: str, source: str) -> Path:
        """Cache of a split's depth: `sensed` or `predicted`."""
        return self.folder / split / f"depth-{source}"


def make_scenes(scenes: Scenes, workers: int | None = None) -> None:
    """Render what is absent; keep true depth as a sensor's, and filled boxes as masks."""
    for split, count in scenes.num_scenes.items():
        folder = scenes.folder / split
        generate_dataset(
            folder,
            num_images=count,
            size=(_SIZE, _SIZE),
            seed=SEEDS[split],
            settings=PRESETS["miniature"],
            workers=workers,
        )
        import_maps(
            folder / "depth",
            scenes.depth(split, "sensed"),
            images=scenes.images(split),
            format="npy",
            convention="metric",
            model="ray casting",
        )
        write_masks(scenes, split, "filled", _fill_boxes(read_annotations(scenes, split)))


def make_start_scenes(scenes: Scenes) -> None:
    """As the split `start`: the training pictures with boxes alone, as many painted with masks.

    A labeller's starting weights know masks of painted scenes. So that the rows from boxes know no
    less, what all rows start from has seen them too.
    """
    if scenes.annotations("start").is_file():
        return
    document = json.loads(scenes.annotations("train").read_text())
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    shutil.copytree(scenes.images("train"), scenes.images("start"), dirs_exist_ok=True)
    rng = np.random.default_rng(SEEDS["train"])
    tiles, recent = draw_pattern_tiles(rng, NUM_TILES), list[ObjectScene]()
    category = document["categories"][0]["id"]
    for index in range(scenes.num_scenes["train"]):
        scene = draw_usable(rng, tiles, recent)
        height, width = scene.owners.shape
        image = {
            "id": len(document["images"]) + 1,
            "file_name": f"painted-{index:06}.png",
            "height": height,
            "width": width,
        }
        Image.fromarray(scene.image).save(scenes.images("start") / image["file_name"])
        document["images"].append(image)
        for item in list_objects(scene):
            x1, y1, x2, y2 = item.box
            mask = mask_api.encode(np.asfortranarray(scene.owners == item.index, np.uint8))
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask_api.area(mask)),
                    "iscrowd": 0,
                    "segmentation": mask | {"counts": mask["counts"].decode()},
                }
            )
    scenes.annotations("start").write_text(json.dumps(document))


def predict_depth(
    scenes: Scenes, models: Sequence[Path], on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Depth of the training pictures by the first of some models that exists, as `predicted`."""
    model = next(folder for folder in models if (folder / "model.safetensors").is_file())
    shutil.rmtree(scenes.depth("train", "predicted"), ignore_errors=True)
    summary = precompute_depth(
        sorted(scenes.images("train").glob("*.png")),
        model,
        str(scenes.depth("train", "predicted")),
        StageOneSettings(batch_size=16),
        progress=lambda done, *_: on_progress(f"map {done}"),
    )
    if summary.num_failed:
        raise RuntimeError(f"depth of {summary.num_failed} pictures failed: {summary.failures[:2]}")
    return {"fingerprint": summary.fingerprint, "seconds": summary.seconds}


def read_annotations(scenes: Scenes, split: str) -> list[dict[str, Any]]:
    """Annotations of a split, with true masks."""
    document: dict[str, Any] = json.loads(scenes.annotations(split).read_text())
    return list(document["annotations"])


def write_masks(scenes: Scenes, split: str, name: str, segmentations: list[Any]) -> None:
    """The split's COCO file with other masks, one for each annotation."""
    document = json.loads(scenes.annotations(split).read_text())
    for annotation, segmentation in zip(document["annotations"], segmentations, strict=True):
        annotation["segmentation"] = segmentation
    unfinished = scenes.annotations(split, name).with_suffix(".tmp")
    unfinished.write_text(json.dumps(document))
    unfinished.replace(scenes.annotations(split, name))


def _fill_boxes(annotations: list[dict[str, Any]]) -> list[Any]:
    filled = []
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        filled.append([[x, y, x + width, y, x + width, y + height, x, y + height]])
    return filled
