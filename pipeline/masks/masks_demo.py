"""The labeller on generated scenes whose true masks are known, for `pipeline demo`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.masks.masks_request import MasksRequest

NUM_SCENES = 12
SCENE_SIDE = 256
MINUTES = 1.0
# Scenes of the demo are none that the labeller's starting weights were trained on.
_SEED_OFFSET = 7_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class MasksDemo:
    """What the labeller made of the scenes.

    Attributes:
        review: the review page.
        masks: COCO file.
        num_boxes: boxes in all.
        mean_iou: with the true masks.
        filled_box_iou: of the boxes themselves.
        held_out: what it saw → mean IoU on the detectors' held-out images, in per cent.
    """

    review: Path
    masks: Path
    num_boxes: int
    mean_iou: float
    filled_box_iou: float
    held_out: dict[str, float]

    def describe_held_out(self) -> str:
        """What it makes of the images that the detectors are compared on, in one sentence."""
        found = ", ".join(f"{iou:.1f} {name}" for name, iou in self.held_out.items())
        return (
            "The labeller as it ships (pipeline masks), on the same held-out images without any "
            f"training on them: IoU given the box {found}."
        )

    def text(self) -> str:
        """What a person reads."""
        return (
            f"{self.describe_held_out()}\n\n"
            f"labeller: {self.num_boxes} boxes in {NUM_SCENES} generated scenes, mean IoU with the "
            f"true masks {self.mean_iou:.3f}, of the filled boxes {self.filled_box_iou:.3f}\n"
            f"review: {self.review}"
        )


def run_masks_demo(folder: Path, held_out: Path, *, seed: int) -> MasksDemo:
    """Make scenes with boxes and depth, let the labeller adapt and label, compare with the truth.

    The same call again resumes.

    Args:
        folder: for scenes, depth, runs and review pages.
        held_out: scenes of `pipeline data synth` that detectors are compared on.
        seed: of scenes and adaptation.
    """
    from pipeline.masks.masks_run import run_masks

    scenes = folder / f"scenes-{seed}"
    truth = write_scenes(scenes, num_scenes=NUM_SCENES, seed=seed)
    run = folder / f"run-{seed}"
    summary = run_masks(
        MasksRequest(
            coco=scenes / "boxes.json",
            images=scenes / "images",
            out=folder / "masks.json",
            mask_format="coco",
            run=run,
            review=folder / "review.html",
            cache=str(scenes / "depth"),
            minutes=MINUTES,
            seed=seed,
        ),
        command=[],
    )
    document = json.loads(summary.masks.read_text(encoding="utf-8"))
    ious, filled = compare_with_truth(document, truth)
    return MasksDemo(
        review=summary.review,
        masks=summary.out,
        num_boxes=len(ious),
        mean_iou=float(np.mean(ious)),
        filled_box_iou=float(np.mean(filled)),
        held_out=label_held_out(folder / "held-out", held_out),
    )


def label_held_out(folder: Path, scenes: Path) -> dict[str, float]:
    """Label scenes as the labeller ships, without depth and with it: mean IoU in per cent.

    True depth stands for a sensor's; masks are read to measure only.

    Args:
        folder: for runs, masks and review pages.
        scenes: of `pipeline data synth`.
    """
    from depthcache.exchange.interchange import import_maps
    from pipeline.masks.masks_run import run_masks
    from segtrain.data.coco_reader import read_coco_file
    from segtrain.data.segmentations import decode_segmentation

    coco, images = scenes / "annotations.json", scenes / "images"
    cache = folder / "sensed-depth"
    import_maps(
        scenes / "depth", cache, images=images, format="npy", convention="metric",
        model="the generator",
    )  # fmt: skip
    truth = {
        item.annotation_id: decode_segmentation(
            item.segmentation, record.height, record.width
        ).astype(np.bool_)
        for record in read_coco_file(coco, images, masks=True).records
        for item in record.annotations
    }
    found = {}
    for name, depth in (("from pictures alone", None), ("with sensed depth", str(cache))):
        run = folder / name.replace(" ", "-")
        summary = run_masks(
            MasksRequest(
                coco=coco,
                images=images,
                out=folder / f"{run.name}.json",
                mask_format="coco",
                run=run,
                review=folder / f"{run.name}.html",
                cache=depth,
                minutes=0.0,
            ),
            command=[],
        )
        document = json.loads(summary.masks.read_text(encoding="utf-8"))
        found[name] = 100 * float(np.mean(compare_with_truth(document, truth)[0]))
    return found


def write_scenes(folder: Path, *, num_scenes: int, seed: int) -> dict[int, npt.NDArray[np.bool_]]:
    """Scenes as a user's data: `images/`, `boxes.json`, and a depth cache of sensed maps.

    Args:
        folder: left as it is where its boxes exist already.
        num_scenes: how many.
        seed: same seed, same scenes.

    Returns:
        True mask (H, W) by annotation id; no file holds them.
    """
    from PIL import Image

    from depthcache.exchange.interchange import import_maps
    from pipeline.runs.manifest import write_atomically
    from pipeline.synth.object_paints import draw_pattern_tiles
    from pipeline.synth.object_scenes import draw_scene, list_objects

    rng = np.random.default_rng(_SEED_OFFSET + seed)
    tiles = draw_pattern_tiles(rng, 60)
    is_written = (folder / "boxes.json").is_file()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "maps").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    truth: dict[int, npt.NDArray[np.bool_]] = {}
    for number in range(1, num_scenes + 1):
        scene = draw_scene(rng, tiles, size=SCENE_SIDE)
        name = f"{number:03d}"
        if not is_written:
            Image.fromarray(scene.image).save(folder / "images" / f"{name}.png")
            np.save(folder / "maps" / f"{name}.npy", scene.inverse_depth)
        images.append(
            {"id": number, "file_name": f"{name}.png", "width": SCENE_SIDE, "height": SCENE_SIDE}
        )
        for item in list_objects(scene):
            x1, y1, x2, y2 = item.box
            identity = len(annotations) + 1
            truth[identity] = scene.owners == item.index
            annotations.append(
                {"id": identity, "image_id": number, "category_id": 1, "iscrowd": 0,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            )  # fmt: skip
    if not is_written:
        import_maps(
            folder / "maps", folder / "depth", images=folder / "images", format="npy",
            convention="relative-inverse", model="the generator",
        )  # fmt: skip
        categories = [{"id": 1, "name": "object"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        write_atomically(folder / "boxes.json", json.dumps(document))
    return truth


def compare_with_truth(
    document: dict[str, Any], truth: Mapping[Any, npt.NDArray[np.bool_]]
) -> tuple[list[float], list[float]]:
    """IoU of each mask, and of its filled box, with the true mask.

    Args:
        document: labelled COCO document; a box without a mask counts as filled.
        truth: true mask (H, W) by annotation id.
    """
    from segtrain.data.segmentations import decode_segmentation

    ious, filled_ious = [], []
    for item in document["annotations"]:
        true_mask = truth[item["id"]]
        x, y, width, height = (int(value) for value in item["bbox"])
        filled = np.zeros_like(true_mask)
        filled[y : y + height, x : x + width] = True
        filled_ious.append(_iou(filled, true_mask))
        found = filled
        if "segmentation" in item:
            found = decode_segmentation(item["segmentation"], *true_mask.shape).astype(np.bool_)
        ious.append(_iou(found, true_mask))
    return ious, filled_ious


def _iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return float((first & second).sum() / max(int((first | second).sum()), 1))
