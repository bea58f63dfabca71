"""Pictures of the miniature as COCO files, with depth that is sensed or predicted, in caches."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.mask_lab.splits import SEEDS
from depthcache.exchange.interchange import import_maps
from depthcache.stage_one.precompute import precompute_depth
from depthcache.stage_one.settings import StageOneSettings
from pipeline.synth import PRESETS, generate_dataset

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
        progress=lambda done, _: on_progress(f"map {done}"),
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
