"""Boxes and a photo in, masks with scores out.

Every box is seen in several views (margins, mirrored or not); their probabilities are pasted into
the photo's pixels, divided among objects of one class, averaged, cut to the box and tidied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from segtrain.data.segmentations import encode_mask
from segtrain.labeller.crop_batches import cut_photo, scale_depth
from segtrain.labeller.crop_network import (
    BOX_HINT,
    DEPTH_HINT,
    CropNetwork,
    default_device,
    load_crop_network,
)
from segtrain.labeller.cut_mask import cut_mask
from segtrain.labeller.depth_refinement import refine_by_depth, refined_score
from segtrain.labeller.mask_scores import (
    ADAPTED_THRESHOLD,
    STARTING_THRESHOLD,
    UNCALIBRATED,
    MaskSigns,
    ScoreCalibration,
    look_at_mask,
)
from segtrain.labeller.object_crops import (
    box_coverage,
    boxes_in_crops,
    clip_boxes,
    crop_windows,
)
from segtrain.labeller.schedule import choose_crop_size
from segtrain.labeller.shared_pixels import Pixels, SeenObject, paste_among_rivals
from segtrain.precision import multiplies_bfloat16

Source = Literal["labeller", "refined", "filled_box"]
_CROPS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class View:
    """A way to look at an object.

    Attributes:
        margin: around the box, as a share of its sides.
        mirrored: whether left and right are exchanged.
        enlargement: of the crop beyond the labeller's crop size; rounded to whole 32 pixels, and
            without effect on an encoder that takes one size only.
    """

    margin: float
    mirrored: bool = False
    enlargement: float = 1.0


# From near and large to far and small: on photos better than all three at one size
# (docs/labeller.md).
VIEWS = (
    View(margin=0.15, enlargement=1.5),
    View(margin=0.3, mirrored=True, enlargement=1.25),
    View(margin=0.5),
)


@dataclass(frozen=True, kw_only=True)
class ObjectMask:
    """The mask of one box.

    Attributes:
        origin: row and column of `crop`'s first pixel in the photo.
        crop: (h, w) bool, the mask in the pixels that the box touches.
        photo_size: height and width.
        score: IoU that the mask is expected to have, 0..1; 0 for a filled box.
        source: `labeller`; `refined` where sharp depth cut it anew (`depth_refinement`);
            `filled_box` where nothing, or everything, was found: such a mask says no more than its
            box.
        signs: what the score was made from; None for a box without area.
        used_depth: whether depth was a hint.
    """

    origin: tuple[int, int]
    crop: npt.NDArray[np.bool_]
    photo_size: tuple[int, int]
    score: float
    source: Source
    signs: MaskSigns | None
    used_depth: bool

    def whole(self) -> npt.NDArray[np.bool_]:
        """The mask in the whole photo, (H, W)."""
        mask = np.zeros(self.photo_size, np.bool_)
        row, column = self.origin
        mask[row : row + self.crop.shape[0], column : column + self.crop.shape[1]] = self.crop
        return mask

    def rle(self) -> dict[str, Any]:
        """COCO run-length encoding of the whole photo, counts as text."""
        return encode_mask(self.whole())


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """A network with what turns its output into masks.

    Attributes:
        network: in eval mode.
        calibration: of scores.
        threshold: probability from which a pixel belongs to the mask.
        crop_size: S, that of the adaptation.
        views: how each object is looked at.
        uses_depth: whether depth that is handed in is shown to the network.
        refines: whether it may cut masks anew as well (`depth_refinement`).
        facts: what else the weights' file says.
    """

    network: CropNetwork
    calibration: ScoreCalibration = UNCALIBRATED
    threshold: float = STARTING_THRESHOLD
    crop_size: int = 128
    views: Sequence[View] = VIEWS
    uses_depth: bool = True
    refines: bool = True
    facts: dict[str, Any] = field(default_factory=dict)


def load_labeller(
    weights: Path, *, uses_depth: bool = True, device: torch.device | None = None
) -> Labeller:
    """Read a labeller, shipped or adapted.

    Args:
        weights: its file.
        uses_depth: whether depth that is handed in is shown to the network.
        device: where to compute; None takes a GPU where there is one.

    Raises:
        CheckpointError: the file is absent or no labeller.
    """
    network, facts = load_crop_network(weights)
    network.to(device or default_device()).to(memory_format=torch.channels_last)
    calibration = facts.get("calibration")
    usual = ADAPTED_THRESHOLD if "adapted" in facts else STARTING_THRESHOLD
    return Labeller(
        network=network,
        calibration=ScoreCalibration(**calibration) if calibration else UNCALIBRATED,
        threshold=float(facts.get("mask_threshold", usual)),
        crop_size=facts.get("crop_size") or choose_crop_size(network.description, facts, 0),
        uses_depth=uses_depth,
        facts=facts,
    )


def label_boxes(
    labeller: Labeller,
    image_rgb: npt.NDArray[np.uint8],
    boxes_xyxy: npt.NDArray[np.float32],
    inverse_depth: npt.NDArray[np.float32] | None = None,
    *,
    classes: npt.ArrayLike | None = None,
) -> list[ObjectMask]:
    """Masks for the boxes of one photo.

    Args:
        labeller: from `load_labeller`.
        image_rgb: (H, W, 3) uint8, upright.
        boxes_xyxy: (N, 4) x1, y1, x2, y2 in pixels; cut to the photo.
        inverse_depth: (H, W), larger = nearer; None without.
        classes: (N,) whole numbers. Objects of one class do not share pixels as a rule, so that
            their masks keep apart; None lets every box be seen by itself.

    Returns:
        One mask per box, in order. A box without area gets an empty `filled_box`.

    Raises:
        ValueError: the depth has another size than the photo, or classes are not one per box.
    """
    height, width = image_rgb.shape[:2]
    if inverse_depth is not None and inverse_depth.shape != (height, width):
        raise ValueError(
            f"depth of size {inverse_depth.shape} for a photo of {(height, width)}: read it from "
            "the cache with size=(height, width)"
        )
    if not labeller.uses_depth:
        inverse_depth = None
    boxes_N4 = clip_boxes(
        torch.as_tensor(np.asarray(boxes_xyxy, np.float32)).view(-1, 4), height, width
    )
    if classes is not None and np.shape(classes) != (len(boxes_N4),):
        raise ValueError(f"classes of shape {np.shape(classes)} for {len(boxes_N4)} boxes")
    has_area = ((boxes_N4[:, 2:] - boxes_N4[:, :2]) > 0).all(1)
    usable = torch.nonzero(has_area)[:, 0].tolist()
    masks = [
        ObjectMask(
            origin=(0, 0),
            crop=np.zeros((0, 0), np.bool_),
            photo_size=(height, width),
            score=0.0,
            source="filled_box",
            signs=None,
            used_depth=False,
        )
        for _ in range(len(boxes_N4))
    ]
    seen: dict[int, SeenObject] = {}
    per_chunk = max(_CROPS_AT_ONCE // len(labeller.views), 1)
    for begin in range(0, len(usable), per_chunk):
        chosen = usable[begin : begin + per_chunk]
        objects = _see(labeller, image_rgb, boxes_N4[chosen], inverse_depth)
        seen.update(zip(chosen, objects, strict=True))
    for index, one in seen.items():
        rivals = [] if classes is None else _rivals(index, seen, np.asarray(classes))
        pasted_VHW = paste_among_rivals(one, rivals)
        masks[index] = _decide(labeller, pasted_VHW, one, image_rgb, inverse_depth)
    return masks


def _rivals(
    index: int, seen: dict[int, SeenObject], classes_N: npt.NDArray[Any]
) -> list[SeenObject]:
    return [
        one
        for other, one in seen.items()
        if other != index and classes_N[other] == classes_N[index]
    ]


def touched_pixels(box_4: torch.Tensor, height: int, width: int) -> Pixels:
    """Row start, row stop, column start, column stop of the pixels that a box touches."""
    x1, y1, x2, y2 = box_4.tolist()
    r0, c0 = min(int(y1), height - 1), min(int(x1), width - 1)
    return (
        r0,
        max(min(int(np.ceil(y2)), height), r0 + 1),
        c0,
        max(min(int(np.ceil(x2)), width), c0 + 1),
    )


@torch.inference_mode()
def _see(
    labeller: Labeller,
    image_rgb: npt.NDArray[np.uint8],
    boxes_N4: torch.Tensor,
    inverse_depth: npt.NDArray[np.float32] | None,
) -> list[SeenObject]:
    """Look at objects of one photo."""
    network = labeller.network
    seen = []
    for view in labeller.views:
        size, mirrored = _crop_side(labeller, view), view.mirrored
        windows_N4 = crop_windows(boxes_N4, torch.full_like(boxes_N4, view.margin))
        crops = cut_photo(image_rgb, inverse_depth, windows_N4, size, network.description)
        inner_N4 = boxes_in_crops(boxes_N4, windows_N4, size)
        hints = torch.zeros(len(crops), 2, size, size)
        hints[:, BOX_HINT] = box_coverage(inner_N4, size, size) * 2 - 1
        if inverse_depth is not None:
            hints[:, DEPTH_HINT] = scale_depth(crops[:, 3:4], crops[:, 4:5])[:, 0]
        rgb = crops[:, :3]
        if mirrored:
            rgb, hints = rgb.flip(3), hints.flip(3)
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device)):
            logits = network(
                rgb.to(device).contiguous(memory_format=torch.channels_last),
                hints.to(device).contiguous(memory_format=torch.channels_last),
            )
        probabilities = logits.float().cpu().sigmoid()
        if mirrored:
            probabilities = probabilities.flip(2)
        grid = probabilities.shape[-1]
        inside = box_coverage(inner_N4 * (grid / size), grid, grid)
        within = (probabilities * inside).sum((1, 2))
        spill_N = (probabilities * (1 - inside)).sum((1, 2)) / within.clamp(min=1.0)
        seen.append((probabilities, windows_N4, spill_N))
    return [
        SeenObject(
            pixels=touched_pixels(box_4, *image_rgb.shape[:2]),
            probabilities=[probabilities[k] for probabilities, _, _ in seen],
            windows=[windows[k] for _, windows, _ in seen],
            spill=float(np.mean([spill_N[k] for _, _, spill_N in seen])),
        )
        for k, box_4 in enumerate(boxes_N4)
    ]


def _crop_side(labeller: Labeller, view: View) -> int:
    only_size = labeller.network.description.only_size
    if only_size is not None:
        return only_size
    return max(round(labeller.crop_size * view.enlargement / 32), 1) * 32


def _decide(
    labeller: Labeller,
    pasted_VHW: npt.NDArray[np.float32],
    seen: SeenObject,
    image_rgb: npt.NDArray[np.uint8],
    inverse_depth: npt.NDArray[np.float32] | None,
) -> ObjectMask:
    joint, threshold = pasted_VHW.mean(0).astype(np.float32), labeller.threshold
    crop = cut_mask(joint, threshold)
    refined = None
    if inverse_depth is not None and labeller.refines:
        refined = refine_by_depth(joint, crop, threshold, image_rgb, inverse_depth, seen.pixels)
    mask = crop if refined is None else refined
    signs = look_at_mask(mask, pasted_VHW, seen.spill, threshold)
    score = labeller.calibration.score(signs)
    source: Source = "labeller"
    if refined is not None:
        score, source = refined_score(score), "refined"
    if not mask.any() or mask.all():
        mask, score, source = np.ones_like(mask), 0.0, "filled_box"
    return ObjectMask(
        origin=(seen.pixels[0], seen.pixels[2]),
        crop=mask,
        photo_size=image_rgb.shape[:2],
        score=score,
        source=source,
        signs=signs,
        used_depth=inverse_depth is not None,
    )
