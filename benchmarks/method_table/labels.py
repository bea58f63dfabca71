"""Masks from boxes: by the labeller, which adapts to the training boxes, or cut out of depth."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from benchmarks.method_table.scenes import (
    Scenes,
    make_start_scenes,
    read_annotations,
    write_masks,
)
from depthcache import DepthCache, decode_image, image_key
from pipeline.masks.salient_objects import read_salient_objects
from pipeline.resources import labeller_path
from segtrain.labeller import (
    BoxedPhoto,
    LabellerSettings,
    MaskedCrops,
    adapt_labeller,
    label_boxes,
    load_labeller,
)
from segtrain.labeller.depth_refinement import cut_by_depth

APPEARANCES = ("textured", "camouflaged", "easy")


def label_scenes(
    scenes: Scenes,
    name: str,
    *,
    reads_depth: bool,
    learns_painted: bool,
    split: str,
    iterations: int,
    seed: int,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Adapt the shipped labeller to the training boxes, and write its masks as `name`.

    Args:
        scenes: where.
        name: of the training split's COCO file with these masks.
        reads_depth: sensed depth as loss and input.
        learns_painted: masks of painted scenes beside the boxes, as BoxCaseg salient objects.
        split: on whose boxes the labeller itself is measured.
        iterations: steps of the adaptation.
        seed: of its order and margins.
        on_progress: told what is being done; may raise to stop.

    Returns:
        `iou` on the split's boxes and `iou_of_labels` on the training boxes.
    """
    settings = LabellerSettings(
        depth="both" if reads_depth else "off", max_iterations=iterations, seed=seed
    )
    known_crops = None
    if learns_painted:
        make_start_scenes(scenes)
        painted = read_salient_objects(scenes.annotations("start"), scenes.images("start"))
        description = load_labeller(labeller_path()).network.description
        known_crops = MaskedCrops(painted, settings, description)
    weights = adapt_labeller(
        list_photos(scenes, "train"),
        settings,
        scenes.folder / "labellers" / name,
        start=labeller_path(),
        known_crops=known_crops,
        on_progress=lambda done, *_: on_progress(f"iteration {done}"),
    )
    labeller = load_labeller(weights, uses_depth=reads_depth)
    found = {}
    for part in ("train", split):
        found[part] = [
            mask.rle()
            for photo in list_photos(scenes, part)
            for mask in label_boxes(
                labeller,
                photo.load_image(),
                photo.boxes,
                photo.load_inverse_depth() if photo.load_inverse_depth else None,
                classes=[0] * len(photo.boxes),
            )
        ]
    write_masks(scenes, "train", name, found["train"])
    return {
        "iou": mean_ious(found[split], read_annotations(scenes, split)),
        "iou_of_labels": mean_ious(found["train"], read_annotations(scenes, "train")),
    }


def cut_scenes(
    scenes: Scenes, name: str, *, split: str, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Cut a mask out of sensed depth for each training box, and write them as `name`.

    What the labeller does after its network has looked, from the filled box instead: nothing is
    learned. A box whose depth does not tell is filled.

    Returns:
        As `label_scenes`, with the share of boxes that were `filled`.
    """
    found: dict[str, list[Any]] = {}
    num_filled = 0
    for part in ("train", split):
        found[part] = []
        for photo in list_photos(scenes, part):
            on_progress(f"cutting {photo.name}")
            image, depth = photo.load_image(), photo.load_inverse_depth()
            for box in photo.boxes:
                c0, r0, c1, r1 = (int(v) for v in (*np.floor(box[:2]), *np.ceil(box[2:])))
                cut = cut_by_depth(
                    np.ones((r1 - r0, c1 - c0), np.float32), 0.5, image, depth, (r0, r1, c0, c1)
                )
                whole = np.zeros(image.shape[:2], np.uint8, order="F")
                whole[r0:r1, c0:c1] = 1 if cut is None else cut
                code = mask_api.encode(whole)
                found[part].append(code | {"counts": code["counts"].decode()})
                num_filled += cut is None
    write_masks(scenes, "train", name, found["train"])
    return {
        "iou": mean_ious(found[split], read_annotations(scenes, split)),
        "iou_of_labels": mean_ious(found["train"], read_annotations(scenes, "train")),
        "filled": num_filled / sum(map(len, found.values())),
    }


def list_photos(scenes: Scenes, split: str) -> list[BoxedPhoto]:
    """The split's pictures that have boxes, all of one class, in the order of its annotations."""
    cache = DepthCache.open(scenes.depth(split, "sensed"))
    document = json.loads(scenes.annotations(split).read_text())
    boxes: dict[int, list[list[float]]] = {}
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes.setdefault(annotation["image_id"], []).append([x, y, x + width, y + height])
    names = {image["id"]: image["file_name"] for image in document["images"]}
    photos = []
    for image_id, own in boxes.items():
        path = scenes.images(split) / names[image_id]
        photos.append(
            BoxedPhoto(
                name=path.name,
                boxes=np.array(own, np.float32),
                load_image=functools.partial(_read_image, path),
                load_inverse_depth=functools.partial(_read_depth, path, cache),
            )
        )
    return photos


def mean_ious(
    masks: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Mean IoU of masks with the true ones: of `all`, and of each appearance.

    Args:
        masks: COCO run-length codes, one for each annotation.
        annotations: with `segmentation` and `appearance`.
    """
    values: dict[str, list[float]] = {}
    for mask, annotation in zip(masks, annotations, strict=True):
        iou = float(mask_api.iou([mask], [annotation["segmentation"]], [0])[0, 0])
        for group in ("all", annotation["appearance"]):
            values.setdefault(group, []).append(iou)
    return {
        group: float(np.mean(values[group])) for group in ("all", *APPEARANCES) if group in values
    }


def _read_image(path: Path) -> Any:
    return decode_image(path.read_bytes())


def _read_depth(path: Path, cache: DepthCache) -> Any:
    data = path.read_bytes()
    return cache.read(image_key(data), decode_image(data).shape[:2])
