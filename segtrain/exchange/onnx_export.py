"""The detector with its dynamic mask head as an ONNX graph, checked against PyTorch.

The graph takes one image and gives its detections: candidates, class-wise NMS and masks at stride 4
are inside. What depends on the original image (crop of the padding, resize, threshold) is left to
the caller; `mask_postprocessing.full_size_masks` does it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.jit._trace import TracerWarning
from torch.nn import functional as F
from torchvision.ops import nms

from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.condinst_network import LEVELS
from segtrain.modeling.dynamic_mask_head import HIDDEN, guide_by_depth
from segtrain.modeling.fcos_targets import STRIDES, level_locations

OUTPUT_NAMES = ("boxes", "scores", "classes", "mask_logits")
# Of a box in units of its image, of a score, and of a mask probability.
_LARGEST_DIFFERENCE = 1e-3


class ExportableCondInst(nn.Module):
    """Fixed-size graph: one padded image in, detections out.

    Args:
        model: in eval mode; its thresholds are built in.
        image_size: height and width, multiples of 32.

    Raises:
        ValueError: the size is no multiple of 32.
    """

    sizes_of_interest: torch.Tensor
    grid: torch.Tensor

    def __init__(self, model: CondInst, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        if height % 32 or width % 32:
            raise ValueError(f"image_size must be multiples of 32, got {image_size}")
        self.model = model
        sizes = model.mask_head.sizes_of_interest.cpu().float()
        self.register_buffer("sizes_of_interest", sizes, False)
        self.register_buffer("grid", level_locations(height // 8, width // 8, 8), False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detections of one BGR image (1, 3, H, W) in 0..255, padded with the pixel mean.

        Returns:
            boxes (D, 4) in pixels of the input, best first, scores (D,), classes (D,) int64, mask
            logits at stride 4 (D, H / 4, W / 4).
        """
        model = self.model
        features = model.backbone((image - model.pixel_mean) / model.pixel_std)
        levels = [features[name] for name in LEVELS]
        head = model.proposal_generator.fcos_head
        towers = head.box_features(levels)
        offsets, quality = head.box_predictions(towers)
        parts = [
            self._level_candidates(index, *level)
            for index, level in enumerate(
                zip(head.class_logits(levels), offsets, quality, towers, strict=True)
            )
        ]
        boxes, scores, classes, locations, sizes, parameters = (
            torch.cat(values) for values in zip(*parts, strict=True)
        )
        # Boxes of different classes are moved apart, so that one NMS serves all classes.
        apart = classes.to(boxes.dtype)[:, None] * (boxes.max() - boxes.min() + 1)
        kept = nms(boxes + apart, scores, model.fcos_settings.nms_threshold)
        kept = kept[: model.fcos_settings.num_detections]
        kept = kept[scores[kept] > 0]
        mask_features = model.mask_branch(features)
        masks = self._masks(mask_features, parameters[kept], locations[kept], sizes[kept])
        return boxes[kept], scores[kept].sqrt(), classes[kept], masks

    def _level_candidates(
        self,
        level: int,
        class_logits: torch.Tensor,
        offsets: torch.Tensor,
        quality_logits: torch.Tensor,
        tower: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The best pairs of class and location; those below the threshold have a score of 0."""
        settings, controller = self.model.fcos_settings, self.model.controller
        height, width = int(class_logits.shape[2]), int(class_logits.shape[3])
        num_places = height * width
        probabilities = class_logits[0].flatten(1).sigmoid()
        scores = probabilities * quality_logits[0].flatten().sigmoid()
        asked = probabilities if settings.threshold_on == "class" else scores
        scores = torch.where(asked > settings.score_threshold, scores, 0.0).flatten()
        num_candidates = min(settings.num_before_nms, num_places * self.model.num_classes)
        best, flat = scores.topk(num_candidates)
        classes = flat.div(num_places, rounding_mode="floor")
        places = flat - classes * num_places
        locations = level_locations(height, width, STRIDES[level], tower.device)[places]
        distances = offsets[0].flatten(1).T[places] * STRIDES[level]
        boxes = torch.cat((locations - distances[:, :2], locations + distances[:, 2:]), 1)
        dense = F.conv2d(tower, controller.weight, controller.bias, padding=1)
        sizes = self.sizes_of_interest[level].expand(num_candidates)
        return boxes, best, classes, locations, sizes, dense[0].flatten(1).T[places]

    def _masks(
        self,
        features: torch.Tensor,
        parameters: torch.Tensor,
        locations: torch.Tensor,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        """The dynamic head, with its input written out per instance."""
        channels, height, width = (int(side) for side in features.shape[1:])
        outputs = 1 if self.model.depth_form is None else 2
        w0, w1, w2, b0, b1, b2 = parameters.split(
            (HIDDEN * (channels + 2), HIDDEN**2, HIDDEN * outputs, HIDDEN, HIDDEN, outputs), dim=1
        )
        relative = (locations[:, None] - self.grid[None]) / sizes[:, None, None]
        w0 = w0.reshape(-1, HIDDEN, channels + 2)
        position = w0[:, :, :2] @ relative.transpose(1, 2)
        x = torch.relu(w0[:, :, 2:] @ features[0].flatten(1) + position + b0[:, :, None])
        x = torch.relu(w1.reshape(-1, HIDDEN, HIDDEN) @ x + b1[:, :, None])
        out = (w2.reshape(-1, outputs, HIDDEN) @ x + b2[:, :, None]).reshape(
            -1, outputs, height, width
        )
        if self.model.depth_form is not None:
            depth_logit = out[:, :1]
            depth = depth_logit.sigmoid()
            out = guide_by_depth(out[:, 1:], depth_logit, depth, self.model.depth_form)
        return aligned_bilinear(out, 2)[:, 0]


def export_onnx(
    model: CondInst,
    path: str | Path,
    image_size: tuple[int, int],
    photos: Sequence[torch.Tensor] = (),
) -> tuple[float, int]:
    """Write the graph, run it in onnxruntime and compare it with PyTorch.

    Args:
        model: what to export.
        path: file to write.
        image_size: height and width of the input, multiples of 32.
        photos: BGR images (3, h, w) of at most `image_size` to compare on; noise without them.

    Returns:
        Largest difference in any box (in units of the image's side), score or mask probability, and
        the number of detections that were compared.

    Raises:
        ValueError: the sizes do not fit, or the written graph computes something else.
    """
    import onnxruntime

    model = model.eval()
    graph = ExportableCondInst(model, image_size).eval()
    inputs = [pad_with_mean(model, photo, image_size) for photo in photos] or [
        torch.randint(0, 256, (1, 3, *image_size), device=model.device).float()
    ]
    with torch.no_grad(), warnings.catch_warnings():
        # The tracing exporter is deprecated, but the one that follows it cannot yet express a
        # number of detections that depends on the image. What it warns about is constant here.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            graph,
            (inputs[0],),
            str(path),
            input_names=["image"],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={name: {0: "detections"} for name in OUTPUT_NAMES},
            opset_version=18,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference, num_compared = 0.0, 0
    for image in inputs:
        with torch.no_grad():
            expected = [output.cpu().numpy() for output in graph(image)]
        actual = session.run(None, {"image": image.cpu().numpy()})
        difference = max(difference, _compare_detections(expected, actual, max(image_size)))
        num_compared += len(expected[0])
    if difference > _LARGEST_DIFFERENCE:
        raise ValueError(
            f"the graph in {path} differs from PyTorch by {difference:.2e}, more than "
            f"{_LARGEST_DIFFERENCE:g} of the image's side, a score or a mask probability"
        )
    return difference, num_compared


def pad_with_mean(
    model: CondInst, image: torch.Tensor, image_size: tuple[int, int]
) -> torch.Tensor:
    """An image as the graph takes it: float, padded on the right and at the bottom.

    Args:
        model: names the mean, which is zero after normalisation.
        image: (3, h, w) BGR in 0..255.
        image_size: height and width of the graph's input.

    Returns:
        (1, 3, H, W) float.

    Raises:
        ValueError: the image is larger than the input.
    """
    height, width = image.shape[1:]
    if height > image_size[0] or width > image_size[1]:
        raise ValueError(
            f"the image has {height}x{width} pixels, the graph's input only "
            f"{image_size[0]}x{image_size[1]}; resize it, or export for a larger size"
        )
    padded = model.pixel_mean.expand(3, *image_size).clone()
    padded[:, :height, :width] = image.to(padded.device)
    return padded[None]


def _compare_detections(expected: Sequence[Any], actual: Sequence[Any], side: int) -> float:
    """Largest difference between detections; infinite when their number or a class differs.

    Near-equal scores may stand in another order, so the nearest box of the class is compared.
    """
    boxes, scores, classes, logits = expected
    other_boxes, other_scores, other_classes, other_logits = actual
    if len(boxes) != len(other_boxes):
        return float("inf")
    left = np.ones(len(boxes), dtype=bool)
    largest = 0.0
    for index, box in enumerate(boxes):
        candidates = np.flatnonzero(left & (other_classes == classes[index]))
        if len(candidates) == 0:
            return float("inf")
        shifts = np.abs(other_boxes[candidates] - box).max(axis=1)
        nearest = candidates[shifts.argmin()]
        left[nearest] = False
        masks = [torch.from_numpy(m).sigmoid() for m in (logits[index], other_logits[nearest])]
        largest = max(
            largest,
            float(shifts.min()) / side,
            float(abs(scores[index] - other_scores[nearest])),
            float((masks[0] - masks[1]).abs().max()),
        )
    return largest
