"""SOLOv2: losses in training, instances otherwise, masks for given boxes.

Shape legend: B images, G boxes, P positive cells, D masks, E mask channels, H×W the mask grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Instances
from torch import nn
from torchvision.ops import box_iou

from segtrain.losses.annotated_masks import annotated_masks
from segtrain.losses.detector import focal_loss_sum
from segtrain.losses.projection import dice_distance
from segtrain.losses.supervision import BatchBoxes, Supervision
from segtrain.mask_grid.validity import MASK_STRIDE
from segtrain.modeling.image_batches import batch_images, original_size
from segtrain.modeling.mask_postprocessing import full_size_instances, tight_boxes
from segtrain.modeling.masks_for_boxes import BoxMasks
from segtrain.modeling.solov2.grid_targets import GridTargets, assign_cells, mass_centres
from segtrain.modeling.solov2.head import GridHead, UnifiedMaskFeature
from segtrain.modeling.solov2.matrix_nms import (
    Decay,
    maskness,
    matrix_nms,
    suppress_neighbours,
)
from segtrain.process_group import joint_normaliser

LEVELS = ("p2", "p3", "p4", "p5", "p6")
GRID_NUMBERS = (40, 36, 24, 16, 12)
SCALE_RANGES = ((0, 96), (48, 192), (96, 384), (192, 768), (384, 100_000))
# Cells that may give a given box its mask, best first by class.
_CANDIDATES_PER_BOX = 64
_LEAST_SCORE = 0.05
BatchedInputs = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class DenseCells:
    """What the network computes for an image, its padding left out; N cells, grid after grid."""

    size: tuple[int, int]  # height, width of the image
    scores: torch.Tensor  # (N, K) class probabilities
    kernels: torch.Tensor  # (N, E)
    centres: torch.Tensor  # (N, 2) x, y of the cells in pixels
    cells: torch.Tensor  # (N, 2) width, height of the cells in pixels
    mask_features: torch.Tensor  # (E, H, W)

    def masks_of(self, cells: torch.Tensor) -> torch.Tensor:
        """Mask logits of chosen cells, (D, H, W)."""
        return _convolve(self.kernels[cells].float(), self.mask_features)


class SOLOv2(nn.Module):
    """Instance segmentation by locations, supervised by masks. Source: arXiv 2003.10152.

    Args:
        backbone: maps an image batch to a dict with p2 to p6 (`finest_level=2` of its builder).
        num_classes: K, without background.
        feature_channels: of the pyramid and the towers.
        tower_depth: convolutions in each tower.
        mask_channels: E, of the mask feature, and parameters of a kernel.
        grid_numbers: cells along a side, p2's grid first.
        scale_ranges: least and largest √(box area) in pixels of each grid's objects.
        centre_share: ε, the centre region's share of the box.
        mask_weight: of the Dice loss beside the focal loss.
        score_threshold: least class probability of a cell.
        num_before_nms: most masks of an image that Matrix NMS compares.
        nms_decay: its f, "gaussian" or "linear".
        nms_sigma: of the Gaussian.
        num_detections: per image.
        pixel_mean: subtracted from BGR pixels in 0..255.
        pixel_std: by which they are divided.

    Raises:
        ValueError: settings that contradict each other.
    """

    needs_depth = False
    distillation = None
    supervision = Supervision(name="SOLOv2", reads_masks=True)

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        feature_channels: int = 256,
        tower_depth: int = 4,
        mask_channels: int = 256,
        grid_numbers: Sequence[int] = GRID_NUMBERS,
        scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
        centre_share: float = 0.2,
        mask_weight: float = 3.0,
        score_threshold: float = 0.1,
        num_before_nms: int = 500,
        nms_decay: Decay = "gaussian",
        nms_sigma: float = 0.5,
        num_detections: int = 100,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        _require_grids(grid_numbers, scale_ranges)
        if nms_decay not in ("gaussian", "linear"):
            raise ValueError(f"nms_decay must be gaussian or linear, got {nms_decay!r}")
        shapes: Any = backbone.output_shape()  # type: ignore[operator]
        if tuple(shapes) != LEVELS:
            raise ValueError(
                f"SOLOv2 reads {', '.join(LEVELS)}, the backbone has {', '.join(shapes)}; set "
                "model.backbone.finest_level=2"
            )
        self.backbone = backbone
        self.head = GridHead(
            num_classes, feature_channels, tower_depth, mask_channels, grid_numbers
        )
        self.mask_feature = UnifiedMaskFeature(
            feature_channels, min(128, feature_channels), mask_channels
        )
        self.num_classes, self.mask_weight = num_classes, mask_weight
        self.scale_ranges, self.centre_share = scale_ranges, centre_share
        self.score_threshold, self.num_before_nms = score_threshold, num_before_nms
        self.nms_decay, self.nms_sigma = nms_decay, nms_sigma
        self.num_detections, self.encode_masks = num_detections, False
        self._metrics: dict[str, torch.Tensor] = {}
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean)[:, None, None], False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std)[:, None, None], False)

    def set_iteration(self, iteration: int) -> None:
        """Nothing in this model follows the iteration."""

    def pop_metrics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last training step: positive cells with a mask."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def forward(self, batched_inputs: BatchedInputs) -> Any:
        """Losses in training; detections with masks at the original size otherwise.

        Args:
            batched_inputs: per image `image` uint8 (3, H, W) BGR, `height`, `width`; in training
                `instances` with `gt_masks`; `gt_has_mask` tells which objects have one.

        Returns:
            dict of weighted losses, or a list of {"instances": Instances}.
        """
        if self.training:
            return self._training_losses(batched_inputs)
        return self._inference(batched_inputs)

    def _training_losses(self, batched_inputs: BatchedInputs) -> dict[str, torch.Tensor]:
        images = batch_images(
            [entry["image"] for entry in batched_inputs], self.pixel_mean, self.pixel_std
        )
        padded_size = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
        device = images.tensor.device
        truth = BatchBoxes.of(batched_inputs, padded_size, device)
        masks_GHW, has_mask_G = annotated_masks(batched_inputs, padded_size, "masks")
        masks_GHW, has_mask_G = masks_GHW.to(device), has_mask_G.to(device)
        counts = [len(own) for own in truth.boxes]
        targets = assign_cells(
            truth.boxes,
            truth.classes,
            mass_centres(masks_GHW, torch.cat(truth.boxes)).split(counts),
            num_classes=self.num_classes,
            padded_size=padded_size,
            grid_numbers=self.head.grid_numbers,
            scale_ranges=self.scale_ranges,
            centre_share=self.centre_share,
        )
        features = self.backbone(images.tensor)
        levels = [features[name] for name in LEVELS]
        class_logits, kernels = self.head(levels)
        mask_features = self.mask_feature(levels[:-1])
        with torch.autocast(device.type, enabled=False):
            num_positives = joint_normaliser(
                torch.tensor(float(len(targets.positives)), device=device)
            )
            class_loss = focal_loss_sum(_rows_of(class_logits), targets.labels) / num_positives
            mask_loss = self._mask_loss(
                _rows_of(kernels), mask_features, targets, masks_GHW, has_mask_G
            )
        return {"loss_category": class_loss, "loss_mask": self.mask_weight * mask_loss}

    def _mask_loss(
        self,
        kernels_NE: torch.Tensor,
        mask_features: torch.Tensor,
        targets: GridTargets,
        masks_GHW: torch.Tensor,
        has_mask_G: torch.Tensor,
    ) -> torch.Tensor:
        """Mean Dice distance of the positive cells whose object has a mask."""
        taught = torch.nonzero(has_mask_G[targets.box_indices])[:, 0]
        total = kernels_NE.sum() * 0.0 + mask_features.sum() * 0.0
        for image in range(len(mask_features)):
            own = taught[targets.image_indices[taught] == image]
            logits = _convolve(kernels_NE[targets.positives[own]], mask_features[image])
            truth = masks_GHW[targets.box_indices[own]].float()
            total = total + dice_distance(logits.sigmoid(), truth).sum()
        num_masks = torch.tensor(float(len(taught)), device=total.device)
        self._metrics = {"num_mask_instances": num_masks}
        return total / joint_normaliser(num_masks)

    @torch.no_grad()
    def _inference(self, batched_inputs: BatchedInputs) -> list[dict[str, Instances]]:
        results = []
        for entry, dense in self._predict_densely(batched_inputs, one_of_neighbours=True):
            instances = full_size_instances(
                *self._detect(dense),
                dense.size,
                original_size(entry, dense.size),
                encode=self.encode_masks,
            )
            results.append({"instances": instances})
        return results

    def _predict_densely(
        self, batched_inputs: BatchedInputs, *, one_of_neighbours: bool
    ) -> Iterator[tuple[dict[str, Any], DenseCells]]:
        """Each image of the batch with its cells."""
        images = batch_images(
            [entry["image"] for entry in batched_inputs], self.pixel_mean, self.pixel_std
        )
        features = self.backbone(images.tensor)
        levels = [features[name] for name in LEVELS]
        class_logits, kernels = self.head(levels)
        scores = [level.float().sigmoid() for level in class_logits]
        if one_of_neighbours:
            scores = [suppress_neighbours(level) for level in scores]
        mask_features = self.mask_feature(levels[:-1])
        centres, cells = [], []
        padded_height, padded_width = images.tensor.shape[-2:]
        for number in self.head.grid_numbers:
            size = images.tensor.new_tensor([padded_width / number, padded_height / number])
            rank = torch.arange(number, device=size.device) + 0.5
            places = torch.stack(torch.meshgrid(rank, rank, indexing="xy"), -1).flatten(0, 1)
            centres.append(places * size)
            cells.append(size.expand(number * number, 2))
        for image, entry in enumerate(batched_inputs):
            height, width = (int(side) for side in images.image_sizes[image])
            rows, columns = (-(-side // MASK_STRIDE) for side in (height, width))
            dense = DenseCells(
                size=(height, width),
                scores=torch.cat([level[image].flatten(1) for level in scores], 1).T,
                kernels=torch.cat([level[image].flatten(1) for level in kernels], 1).T,
                centres=torch.cat(centres),
                cells=torch.cat(cells),
                mask_features=mask_features[image, :, :rows, :columns],
            )
            yield entry, dense

    def _detect(self, dense: DenseCells) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mask logits, classes and scores of an image, best first."""
        cells, classes = torch.nonzero(dense.scores > self.score_threshold, as_tuple=True)
        scores = dense.scores[cells, classes]
        best = scores.topk(min(self.num_before_nms, len(scores))).indices
        cells, classes, scores = cells[best], classes[best], scores[best]
        with torch.autocast(scores.device.type, enabled=False):
            logits = dense.masks_of(cells)
            probabilities = logits.sigmoid()
            scores = scores * maskness(probabilities)
            order = scores.argsort(descending=True, stable=True)
            masks = probabilities[order] > 0.5
            decayed = matrix_nms(
                masks, classes[order], scores[order], decay=self.nms_decay, sigma=self.nms_sigma
            )
        kept = decayed.argsort(descending=True, stable=True)[: self.num_detections]
        kept = kept[decayed[kept] >= _LEAST_SCORE]
        return logits[order[kept]], classes[order[kept]], decayed[kept]

    @torch.no_grad()
    def predict_masks_for_boxes(self, batched_inputs: BatchedInputs) -> list[Instances]:
        """A mask for every given box, in the order of the boxes.

        Candidates are cells whose centre lies in the box, and of each grid the cell that the box's
        centre lies in; the largest product of IoU between mask's and given box and √(probability of
        the box's class × maskness) wins, and is the score. An empty mask becomes the filled box,
        with score 0.

        Args:
            batched_inputs: as for training, `instances` in the frame of `image`.

        Returns:
            As `CondInst.predict_masks_for_boxes`.
        """
        results = []
        for entry, dense in self._predict_densely(batched_inputs, one_of_neighbours=False):
            given: Instances = entry["instances"]
            boxes = given.gt_boxes.tensor.to(dense.scores.device)
            classes = given.gt_classes.to(dense.scores.device)
            with torch.autocast(boxes.device.type, enabled=False):
                found = [
                    _best_of_box(dense, box, label)
                    for box, label in zip(boxes, classes.tolist(), strict=True)
                ] or [(dense.masks_of(classes), boxes.new_zeros(0))]  # no box, no class
            masks, scores = map(torch.cat, zip(*found, strict=True))
            drawn = BoxMasks(boxes, dense.size, original_size(entry, dense.size))
            drawn.add(masks, scores, dense.size, mirrored=False)
            results.append(drawn.finish(classes))
        return results


def _best_of_box(
    dense: DenseCells, box: torch.Tensor, label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits (1, H, W) and score (1,) of the cell that fits a box best."""
    inside = ((dense.centres >= box[:2]) & (dense.centres <= box[2:])).all(1)
    distance = (dense.centres - (box[:2] + box[2:]) / 2).abs()
    candidates = torch.nonzero(inside | (distance <= dense.cells / 2).all(1))[:, 0]
    probability = dense.scores[candidates, label]
    best = probability.topk(min(_CANDIDATES_PER_BOX, len(candidates))).indices
    logits = dense.masks_of(candidates[best])
    soft = logits.sigmoid()
    agreement = box_iou(box[None], tight_boxes(soft > 0.5) * MASK_STRIDE)[0]
    rating = agreement * (probability[best] * maskness(soft)).sqrt()
    winner = rating.argmax()[None]
    return logits[winner], rating[winner]


def _convolve(kernels_DE: torch.Tensor, features_EHW: torch.Tensor) -> torch.Tensor:
    """1×1 convolutions: (D, H, W)."""
    return (kernels_DE @ features_EHW.flatten(1)).unflatten(1, features_EHW.shape[1:])


def _rows_of(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N, C) of all cells of the batch, in the order of `GridTargets`."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])


def _require_grids(numbers: Sequence[int], ranges: Sequence[Sequence[float]]) -> None:
    """Refuse grids that do not fit the pyramid, or sizes of objects that no grid takes."""
    if len(numbers) != len(LEVELS) or len(ranges) != len(LEVELS):
        raise ValueError(
            f"grid_numbers has {len(numbers)} and scale_ranges {len(ranges)} entries; SOLOv2 has a "
            f"grid for each of {', '.join(LEVELS)}"
        )
    for index, (low, high) in enumerate(ranges):
        if high <= low or (index and low > ranges[index - 1][1]):
            raise ValueError(
                f"scale_ranges[{index}]=[{low}, {high}] is empty, or leaves out sizes after "
                f"{ranges[index - 1][1]}; each range must begin within the one before"
            )
