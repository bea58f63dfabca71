"""CondInst: the network, its detections, and what a training step hands to the supervision.

Shape legend: B images, I mask instances, P positive locations, H×W mask grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from segtrain.losses.detector import fcos_losses
from segtrain.losses.supervision import (
    BatchBoxes,
    Distillation,
    MaskBatch,
    MaskTeacher,
    Supervision,
)
from segtrain.mask_grid.bitmasks import fill_ratio
from segtrain.modeling.dynamic_mask_head import (
    SIZES_OF_INTEREST,
    DepthForm,
    MaskSettings,
    num_mask_parameters,
    run_dynamic_head,
)
from segtrain.modeling.fcos import (
    FCOS,
    Detections,
    FCOSHead,
    FCOSSettings,
    detect,
    gather_patches,
)
from segtrain.modeling.fcos_targets import assign_targets
from segtrain.modeling.mask_branch import MaskBranch
from segtrain.modeling.mask_positives import choose_positives
from segtrain.modeling.mask_postprocessing import encoded_masks, full_size_masks
from segtrain.modeling.masks_for_boxes import best_locations, cut_to_boxes
from segtrain.precision import widen

LEVELS = ("p3", "p4", "p5", "p6", "p7")
BatchedInputs = Sequence[dict[str, Any]]


class MaskHeadState(nn.Module):
    """The mask head's buffers; its weights come from the controller."""

    sizes_of_interest: torch.Tensor
    _iter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sizes_of_interest", torch.tensor(SIZES_OF_INTEREST))
        self.register_buffer("_iter", torch.zeros(1))


@dataclass(frozen=True)
class _DensePredictions:
    """What the network computes at every location, for a batch; lists have one map a level."""

    levels: list[torch.Tensor]  # the pyramid, (B, C, H, W)
    box_features: list[torch.Tensor]  # (B, C, H, W)
    offsets: list[torch.Tensor]  # (B, 4, H, W)
    quality: list[torch.Tensor]  # (B, 1, H, W) logits
    mask_features: torch.Tensor  # (B, mask channels, H, W) at stride 8


class CondInst(nn.Module):
    """Instance segmentation with conditional convolutions.

    Args:
        backbone: maps an image batch to a dict with p3 to p7.
        num_classes: without background.
        fcos: detector settings.
        mask: mask head settings.
        supervision: what teaches the masks.
        distillation: what makes a teacher when the trainer wants one; None without.
        pixel_mean: subtracted from BGR pixels in 0..255.
        pixel_std: by which they are divided.
        feature_channels: of the pyramid.
        encode_masks: return COCO run-length codes (`pred_masks_rle`) instead of `pred_masks`.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        fcos: FCOSSettings,
        mask: MaskSettings,
        supervision: Supervision,
        distillation: Distillation | None = None,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        feature_channels: int = 256,
        encode_masks: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = FCOS(FCOSHead(num_classes, feature_channels, fcos.tower_depth))
        self.mask_branch = MaskBranch(
            feature_channels, mask.mask_channels, min(128, feature_channels), mask.norm
        )
        self.mask_head = MaskHeadState()
        self.controller = nn.Conv2d(
            feature_channels,
            num_mask_parameters(mask.mask_channels, depth_layer=mask.depth_layer),
            3,
            padding=1,
        )
        assert self.controller.bias is not None
        nn.init.normal_(self.controller.weight, std=0.01)
        nn.init.zeros_(self.controller.bias)
        if mask.depth_layer:
            nn.init.constant_(self.controller.bias[-2:-1], mask.depth_bias)
        self.num_classes = num_classes
        self.fcos_settings, self.mask_settings = fcos, mask
        self.supervision, self.distillation = supervision, distillation
        self.encode_masks = encode_masks
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean)[:, None, None], False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std)[:, None, None], False)
        self._metrics: dict[str, torch.Tensor] = {}
        self._iteration = 0

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    @property
    def depth_form(self) -> DepthForm | None:
        """How depth guides masks, None without the depth layer."""
        return self.mask_settings.depth_form if self.mask_settings.depth_layer else None

    @property
    def needs_depth(self) -> bool:
        """Whether training reads `inverse_depth_255`."""
        return self.supervision.needs_depth(predicts_depth=self.mask_settings.depth_layer) or (
            self.distillation is not None and self.distillation.needs_depth
        )

    def set_iteration(self, iteration: int) -> None:
        """Tell the model the 0-based iteration of the coming step; warm-ups and β(t) follow it."""
        self._iteration = iteration
        self.mask_head._iter.fill_(float(iteration + 1))

    def pop_metrics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last training step: fill ratio of masks in boxes, matched masks."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def forward(self, batched_inputs: BatchedInputs, teacher: MaskTeacher | None = None) -> Any:
        """Losses in training; detections with masks at the original size otherwise.

        Args:
            batched_inputs: per image `image` uint8 (3, H, W) BGR, `height`, `width`; in training
                `instances`, and `inverse_depth_255`, `teacher_image` where the settings need them.
            teacher: adds its losses in training.

        Returns:
            dict of weighted losses, or a list of {"instances": Instances}.
        """
        if self.training:
            return self._training_losses(batched_inputs, teacher)
        return self._inference(batched_inputs)

    def _training_losses(
        self, batched_inputs: BatchedInputs, teacher: MaskTeacher | None
    ) -> dict[str, torch.Tensor]:
        images = self._batch_images([entry["image"] for entry in batched_inputs])
        padded_size = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
        truth = BatchBoxes.of(batched_inputs, padded_size, self.device)
        features = self.backbone(images.tensor)
        levels = [features[name] for name in LEVELS]
        head = self.proposal_generator.fcos_head
        class_logits = head.class_logits(levels)
        box_features = head.box_features(levels)
        targets = assign_targets(
            [(level.shape[-2], level.shape[-1]) for level in class_logits],
            truth.boxes,
            truth.classes,
            num_classes=self.num_classes,
            padded_size=padded_size,
            centre_on_bitmask=self.fcos_settings.centre_on_bitmask,
            sampling_radius=self.fcos_settings.sampling_radius,
        )
        patches = gather_patches(box_features, targets.levels, targets.image_indices, targets.cells)
        offsets, quality_logits = head.predictions_at(patches, targets.levels)
        flat_logits = torch.cat(
            [level.permute(0, 2, 3, 1).reshape(-1, self.num_classes) for level in class_logits]
        )
        losses = fcos_losses(
            flat_logits,
            targets.labels,
            offsets,
            quality_logits,
            targets.offsets,
            targets.centerness,
            quality=self.fcos_settings.quality,
        )
        chosen = choose_positives(
            targets,
            flat_logits,
            quality_logits,
            len(images),
            self.mask_settings.masks_per_image,
        )
        mask_features = self.mask_branch(features)
        taught = (
            None if teacher is None else teacher.predict(batched_inputs, truth, self._iteration)
        )
        with torch.autocast(self.device.type, enabled=False):
            mask_logits, depth = run_dynamic_head(
                mask_features,
                self._mask_parameters(patches[chosen]),
                targets.locations[chosen],
                self.mask_head.sizes_of_interest[targets.levels[chosen]],
                targets.image_indices[chosen],
                depth_form=self.depth_form,
            )
            masks = MaskBatch(
                entries=batched_inputs,
                padded_size=padded_size,
                truth=truth,
                box_indices=targets.box_indices[targets.positives][chosen],
                mask_logits=mask_logits,
                depth=depth,
                mask_features=mask_features,
                links=self.supervision.links,
                iteration=self._iteration,
            )
            losses |= self.supervision.losses(masks)
            if teacher is not None:
                losses |= teacher.losses(masks, taught)
        masks.metrics["mask_box_fill_ratio"] = fill_ratio(mask_logits, masks.extents)
        masks.metrics["num_mask_instances"] = torch.tensor(float(len(mask_logits)))
        self._metrics = masks.metrics
        return losses

    @torch.no_grad()
    def predict_soft_masks(
        self,
        images: Sequence[torch.Tensor],
        classes: Sequence[torch.Tensor] | None = None,
        keep: Callable[[int, Detections], torch.Tensor] | None = None,
    ) -> list[tuple[Detections, torch.Tensor]]:
        """Detections of each image and their masks as probabilities at stride 4, (D, H, W).

        Args:
            images: (3, H, W) each.
            classes: those to look for in each image; None looks for all.
            keep: tells from an image's index and detections which of these to draw, bool (D,); the
                others are left out. None draws all.
        """
        dense = self._predict_densely(self._batch_images(images).tensor)
        detections = self._detect(dense, classes)
        if keep is not None:
            detections = [
                found.select(torch.nonzero(keep(image, found))[:, 0])
                for image, found in enumerate(detections)
            ]
        return [
            (found, self._masks_of(found, image, dense)[0].sigmoid())
            for image, found in enumerate(detections)
        ]

    def _predict_densely(self, images: torch.Tensor) -> _DensePredictions:
        """What inference computes at every location."""
        features = self.backbone(images)
        levels = [features[name] for name in LEVELS]
        head = self.proposal_generator.fcos_head
        box_features = head.box_features(levels)
        offsets, quality = head.box_predictions(box_features)
        return _DensePredictions(levels, box_features, offsets, quality, self.mask_branch(features))

    def _detect(
        self, dense: _DensePredictions, classes: Sequence[torch.Tensor] | None = None
    ) -> list[Detections]:
        """Detections of each image, of the given classes only or of all."""
        head = self.proposal_generator.fcos_head
        if classes is None:
            logits = head.class_logits(dense.levels)
            return detect(logits, dense.offsets, dense.quality, self.fcos_settings)
        asked = torch.cat([own.to(self.device) for own in classes]).unique()
        if len(asked) == 0:  # no boxes in the batch; a convolution needs an output
            asked = asked.new_zeros(1)
        logits = head.class_logits(dense.levels, asked)
        places = [torch.searchsorted(asked, own.to(self.device).unique()) for own in classes]
        return [
            dataclasses.replace(found, classes=asked[found.classes])
            for found in detect(logits, dense.offsets, dense.quality, self.fcos_settings, places)
        ]

    def _mask_parameters(self, patches: torch.Tensor) -> torch.Tensor:
        """(I, P): what the controller predicts at the given 3×3 neighbourhoods (I, 9·C).

        Callers leave autocast for it: the weights of a network are no place for rounded values.
        """
        return F.linear(widen(patches), self.controller.weight.flatten(1), self.controller.bias)

    def _masks_of(
        self,
        found: Detections,
        image: int,
        dense: _DensePredictions,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mask logits of an image's detections, and their depth where the model predicts it."""
        image_indices = torch.full_like(found.levels, image)
        patches = gather_patches(dense.box_features, found.levels, image_indices, found.cells)
        with torch.autocast(self.device.type, enabled=False):
            return run_dynamic_head(
                dense.mask_features[image : image + 1],
                self._mask_parameters(patches),
                found.locations,
                self.mask_head.sizes_of_interest[found.levels],
                torch.zeros_like(image_indices),
                depth_form=self.depth_form,
            )

    @torch.no_grad()
    def _inference(self, batched_inputs: BatchedInputs) -> list[dict[str, Instances]]:
        images = self._batch_images([entry["image"] for entry in batched_inputs])
        dense = self._predict_densely(images.tensor)
        results = []
        for image, (entry, size, detections) in enumerate(
            zip(batched_inputs, images.image_sizes, self._detect(dense), strict=True)
        ):
            mask_logits, _ = self._masks_of(detections, image, dense)
            output_size = (int(entry.get("height", size[0])), int(entry.get("width", size[1])))
            boxes = Boxes(detections.boxes.clone())
            boxes.clip(size)
            boxes.scale(output_size[1] / size[1], output_size[0] / size[0])
            # A box predicted in the padding may not reach into the image.
            is_seen = boxes.nonempty()
            instances = Instances(output_size)
            instances.pred_boxes = boxes[is_seen]
            instances.scores = detections.scores[is_seen]
            instances.pred_classes = detections.classes[is_seen]
            self._set_masks(instances, mask_logits[is_seen], size, output_size)
            results.append({"instances": instances})
        return results

    def _set_masks(
        self,
        instances: Instances,
        mask_logits: torch.Tensor,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> None:
        image_size = (int(image_size[0]), int(image_size[1]))
        if self.encode_masks:
            instances.pred_masks_rle = encoded_masks(mask_logits, image_size, output_size)
        else:
            instances.pred_masks = full_size_masks(mask_logits, image_size, output_size)

    @torch.no_grad()
    def predict_depth(self, batched_inputs: BatchedInputs) -> list[torch.Tensor]:
        """Predicted inverse depth in [0, 1] at stride 4 of each image, (H, W).

        Each pixel takes the mean over the detections, weighted by how likely it belongs to them.

        Raises:
            ValueError: the model has no depth layer.
        """
        if self.depth_form is None:
            raise ValueError("this model has no depth layer; build it with depth_layer=True")
        images = self._batch_images([entry["image"] for entry in batched_inputs])
        dense = self._predict_densely(images.tensor)
        results = []
        for image, detections in enumerate(self._detect(dense)):
            logits, depth = self._masks_of(detections, image, dense)
            assert depth is not None
            weights = logits.sigmoid() + 1e-3
            results.append((weights * depth).sum(0) / weights.sum(0).clamp(min=1e-3))
        return results

    @torch.no_grad()
    def predict_masks_for_boxes(self, batched_inputs: BatchedInputs) -> list[Instances]:
        """A mask for every given box, in the order of the boxes.

        For each box every location whose predicted box overlaps it is a candidate; the best product
        of IoU and class × quality score of the box's own class gives the mask, cut to the box.
        A box that no prediction overlaps takes the location nearest to its centre, with score 0. An
        empty mask becomes the filled box, with score 0, so that every box yields a mask.

        Args:
            batched_inputs: as for training, `instances` in the frame of `image`.

        Returns:
            Instances at the original size with `pred_masks` bool, `pred_boxes`, `pred_classes` and
            `scores` in [0, 1].
        """
        images = self._batch_images([entry["image"] for entry in batched_inputs])
        dense = self._predict_densely(images.tensor)
        class_logits = self.proposal_generator.fcos_head.class_logits(dense.levels)
        results = []
        for image, entry in enumerate(batched_inputs):
            size = images.image_sizes[image]
            size = (int(size[0]), int(size[1]))
            given: Instances = entry["instances"]
            boxes = given.gt_boxes.tensor.to(self.device)
            classes = given.gt_classes.to(self.device)
            found, scores = best_locations(
                [level[image] for level in class_logits],
                [level[image] for level in dense.offsets],
                [level[image] for level in dense.quality],
                boxes,
                classes,
            )
            logits, _ = self._masks_of(found, image, dense)
            output_size = (int(entry.get("height", size[0])), int(entry.get("width", size[1])))
            results.append(cut_to_boxes(logits, boxes, classes, scores, size, output_size))
        return results

    def _batch_images(self, images: Sequence[torch.Tensor]) -> ImageList:
        """Normalise, then pad with zeros to a multiple of 32.

        On a CPU in channels-last memory, which all convolutions keep: oneDNN then reorders no maps.
        """
        batch = ImageList.from_tensors(
            [(image.to(self.device) - self.pixel_mean) / self.pixel_std for image in images], 32
        )
        if self.device.type == "cpu":
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch
