"""Masks for given boxes: a class-agnostic network on object crops, adapted to the user's boxes.

    photos = [BoxedPhoto(name="a.jpg", boxes=boxes_xyxy, load_image=..., load_inverse_depth=...)]
    settings = choose_settings(num_boxes, shipped, depth="both")
    weights = adapt_labeller(photos, settings, folder, start=shipped, minutes=10)
    labeller = load_labeller(weights)
    for mask in label_boxes(labeller, image_rgb, boxes_xyxy, inverse_depth):
        mask.rle(), mask.score, mask.source, mask.signs.fill

`adapt_labeller` resumes in its folder, whole or interrupted; with a budget of 0 minutes there is
nothing to call: load the shipped weights. Photos are decoded when they are needed; one that cannot
be read (OSError, ValueError, DepthCacheError, SegtrainError out of `load_image`) is left out of the
adaptation with a warning. `filled_box` in `ObjectMask.source` marks masks that say no more than the
box; their score is 0. Depth is (H, W) float32 of the photo's size, larger = nearer, as
`depthcache.DepthCache.read` gives it.
"""

from __future__ import annotations

from segtrain.labeller.adaptation import WEIGHTS_NAME, adapt_labeller
from segtrain.labeller.crop_batches import BoxedPhoto
from segtrain.labeller.mask_prediction import Labeller, ObjectMask, label_boxes, load_labeller
from segtrain.labeller.masked_crops import MaskedCrops, MaskedObject
from segtrain.labeller.schedule import choose_settings
from segtrain.labeller.settings import LabellerSettings

__all__ = [
    "WEIGHTS_NAME",
    "BoxedPhoto",
    "Labeller",
    "LabellerSettings",
    "MaskedCrops",
    "MaskedObject",
    "ObjectMask",
    "adapt_labeller",
    "choose_settings",
    "label_boxes",
    "load_labeller",
]
