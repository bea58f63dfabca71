"""Pictures of held-out images: the image, its depths, each run's masks, the truth.

An object has one colour in all pictures: that of its annotation.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.report.run_result import RunResult

if TYPE_CHECKING:
    from depthcache import DepthCache
    from segtrain.data.coco_reader import ImageRecord

logger = logging.getLogger(__name__)

RGBImage = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

NUM_PANELS = 6
_MIN_PANEL_SCORE = 0.3
_MIN_SAME_OBJECT_IOU = 0.1
_DEPTH_STRIDE = 4  # input pixels per cell of the depth layer
# Distinguishable without red against green.
_INSTANCE_COLOURS: RGBImage = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
        (148, 103, 189),
    ],
    dtype=np.uint8,
)
_UNKNOWN_COLOUR = np.array((150, 150, 150), dtype=np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One row of pictures.

    Attributes:
        title: image name.
        pictures: caption → (H, W, 3) uint8 RGB.
    """

    title: str
    pictures: Mapping[str, RGBImage]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        masks: (H, W) booleans, highest score first.
        inverse_depth: (h, w) of the depth layer, in [0, 1]; None without the layer.
    """

    masks: list[npt.NDArray[np.bool_]]
    inverse_depth: npt.NDArray[np.float32] | None


def make_panels(results: Sequence[RunResult]) -> list[Panel]:
    """Pictures of held-out images: image, depths, each run's masks, truth.

    Args:
        results: runs with the same test data; the last one's cache gives the pseudo depth.

    Returns:
        At most `NUM_PANELS` panels; none when no run has weights.
    """
    from depthcache import decode_image, image_key
    from segtrain.data.coco_reader import read_coco_file
    from segtrain.data.image_files import read_image_bytes

    trained = [result for result in results if result.weights is not None]
    if not trained:
        return []
    files = trained[-1].experiment.data
    reading = read_coco_file(Path(files.test_json), Path(files.test_images), masks=True)
    records = [r for r in reading.records if r.annotations or r.crowds][:NUM_PANELS]
    contents = [read_image_bytes(record.path) for record in records]
    images = [decode_image(data) for data in contents]
    predictions = {result.name: _predict(result, images) for result in trained}
    cache = _open_cache(trained)
    panels = []
    for index, (record, data, image) in enumerate(zip(records, contents, images, strict=True)):
        height, width = image.shape[:2]
        pictures = {"image": image}
        key = image_key(data)
        if cache is not None and key in cache:
            pictures["pseudo depth"] = colour_depth(cache.read(key, size=(height, width)))
        inverse_depth = predictions[trained[-1].name][index].inverse_depth
        if inverse_depth is not None:
            pictures["predicted depth"] = colour_depth(inverse_depth)
        objects, has_masks = _annotated_objects(record)
        for name, predicted in predictions.items():
            masks = predicted[index].masks
            pictures[name] = draw_masks(image, masks, match_objects(masks, objects))
        if has_masks:
            pictures["truth"] = draw_masks(image, objects)
        panels.append(Panel(title=Path(record.file_name).name, pictures=pictures))
    return panels


def match_objects(masks: Sequence[Mask], objects: Sequence[Mask]) -> list[int | None]:
    """Which object each mask is of: the pairs of highest IoU, each mask and object once.

    Args:
        masks: (H, W) booleans.
        objects: (H, W) booleans, annotated masks or filled boxes.

    Returns:
        Index into `objects` for each mask; None where none is left that it overlaps.
    """
    pairs = []
    for number, mask in enumerate(masks):
        for index, one in enumerate(objects):
            union = int((mask | one).sum())
            overlap = int((mask & one).sum()) / union if union else 0.0
            if overlap >= _MIN_SAME_OBJECT_IOU:
                pairs.append((overlap, number, index))
    found: dict[int, int] = {}
    for _, number, index in sorted(pairs, key=lambda pair: -pair[0]):
        if number not in found and index not in found.values():
            found[number] = index
    return [found.get(number) for number in range(len(masks))]


def _open_cache(results: Sequence[RunResult]) -> DepthCache | None:
    """The depth cache of the last run that has one."""
    from depthcache import DepthCache
    from depthcache.errors import CacheNotFoundError

    for result in reversed(results):
        try:
            return DepthCache.open(str(result.experiment.depth.cache))
        except CacheNotFoundError:
            logger.info("report: no pseudo depth, %s holds no cache", result.experiment.depth.cache)
    return None


def _predict(result: RunResult, images: Sequence[RGBImage]) -> list[Prediction]:
    """Confident masks of each image, highest score first, and the depth layer's depth."""
    from segtrain.data.segmentations import decode_segmentation
    from segtrain.use.inference import load_trained_model

    assert result.weights is not None
    model = load_trained_model(result.experiment, result.weights)
    has_depth_layer = model.network.depth_form is not None
    predictions = []
    for image in images:
        instances = model.detect(image)
        scores = instances.scores.numpy()
        if instances.has("pred_masks_rle"):
            masks = [
                decode_segmentation(encoded, *image.shape[:2]).astype(bool)
                for encoded in instances.pred_masks_rle
            ]
        else:
            masks = list(instances.pred_masks.numpy())
        order = np.argsort(-scores, kind="stable")
        inverse_depth = None
        if has_depth_layer:
            entry = model.make_input(image)
            height, width = (-(-side // _DEPTH_STRIDE) for side in entry["image"].shape[-2:])
            padded = model.network.predict_depth([entry])[0].float().cpu().numpy()
            inverse_depth = padded[:height, :width]
        predictions.append(
            Prediction(
                masks=[masks[index] for index in order if scores[index] >= _MIN_PANEL_SCORE],
                inverse_depth=inverse_depth,
            )
        )
    return predictions


def _annotated_objects(record: ImageRecord) -> tuple[list[Mask], bool]:
    """The image's objects as masks, and whether those are annotated masks or filled boxes."""
    from segtrain.data.segmentations import decode_segmentation

    size = (record.height, record.width)
    masks = [
        decode_segmentation(item.segmentation, *size).astype(bool)
        for item in record.annotations
        if item.segmentation is not None
    ]
    if masks:
        return masks, True
    boxes = []
    for item in record.annotations:
        x0, y0, x1, y1 = (round(float(side)) for side in item.box_xyxy)
        filled = np.zeros(size, dtype=bool)
        filled[y0:y1, x0:x1] = True
        boxes.append(filled)
    return boxes, False


def colour_depth(inverse_depth: npt.NDArray[np.float32]) -> RGBImage:
    """Depth as a picture: near is bright yellow, far is dark blue; NaN is grey.

    Args:
        inverse_depth: (H, W), larger = nearer, any unit.
    """
    finite = np.isfinite(inverse_depth)
    low, high = (
        (float(inverse_depth[finite].min()), float(inverse_depth[finite].max()))
        if finite.any()
        else (0.0, 1.0)
    )
    scaled = np.where(finite, (inverse_depth - low) / max(high - low, 1e-12), 0.0)
    stops = np.array(
        [(13, 8, 60), (90, 20, 130), (190, 55, 110), (248, 140, 60), (250, 240, 120)],
        dtype=np.float32,
    )
    positions = np.linspace(0.0, 1.0, len(stops))
    channels = [np.interp(scaled, positions, stops[:, channel]) for channel in range(3)]
    picture = np.stack(channels, axis=-1).round().astype(np.uint8)
    picture[~finite] = 128
    return picture


def draw_masks(
    image: RGBImage, masks: Sequence[Mask], objects: Sequence[int | None] | None = None
) -> RGBImage:
    """Tint each mask over the image and draw its outline.

    Args:
        image: (H, W, 3) RGB.
        masks: (H, W) booleans; earlier ones lie on top.
        objects: number of each mask's object, which is its colour; None is grey, and lies below
            those that have one. By default the masks are the objects.
    """
    picture = image.astype(np.float32)
    numbers = range(len(masks)) if objects is None else objects
    from_the_top = sorted(zip(masks, numbers, strict=True), key=lambda pair: pair[1] is None)
    for mask, number in reversed(from_the_top):
        colour = (
            _UNKNOWN_COLOUR
            if number is None
            else _INSTANCE_COLOURS[number % len(_INSTANCE_COLOURS)]
        ).astype(np.float32)
        picture[mask] = 0.45 * picture[mask] + 0.55 * colour
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        picture[mask & ~inner] = colour
    return picture.round().astype(np.uint8)
