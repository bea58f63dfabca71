"""CondInst: the network, its detections, and what a training step hands to the supervision.

Shape legend: B images, I mask instances, P positive locations, H×W mask grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.structures import Instances

from segtrain.losses.detector import fcos_losses
from segtrain.losses.supervision import (
    BatchBoxes,
    Distillation,
    MaskBatch,
    MaskTeacher,
    Supervision,
)
from segtrain.mask_grid.bitmasks import fill_ratio
from segtrain.modeling.condinst_network import LEVELS, CondInstNetwork, DensePredictions
from segtrain.modeling.dynamic_mask_head import run_dynamic_head
from segtrain.modeling.fcos import Detections, gather_patches
from segtrain.modeling.fcos_targets import assign_targets
from segtrain.modeling.image_batches import original_size
from segtrain.modeling.mask_positives import choose_positives
from segtrain.modeling.mask_postprocessing import finish_detections
from segtrain.modeling.masks_for_boxes import (
    VIEWS,
    BoxMasks,
    best_locations,
    candidate_locations,
    choose_masks,
    view_image,
)

BatchedInputs = Sequence[dict[str, Any]]


class CondInst(CondInstNetwork):
    """Instance segmentation with conditional convolutions: losses in training, else instances.

    Args:
        supervision: what teaches the masks.
        distillation: what makes a teacher when the trainer wants one; None without.
        encode_masks: return COCO run-length codes (`pred_masks_rle`) instead of `pred_masks`.
        **network: arguments of `CondInstNetwork`.
    """

    def __init__(
        self,
        *,
        supervision: Supervision,
        distillation: Distillation | None = None,
        encode_masks: bool = False,
        **network: Any,
    ) -> None:
        super().__init__(**network)
        self.supervision, self.distillation = supervision, distillation
        self.encode_masks = encode_masks
        self._metrics: dict[str, torch.Tensor] = {}
        self._iteration = 0

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
        images = self.batch_images([entry["image"] for entry in batched_inputs])
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
                self.mask_parameters(patches[chosen]),
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
        dense = self.predict_densely(self.batch_images(images).tensor)
        detections = self.detect_in(dense, classes)
        if keep is not None:
            detections = [
                found.select(torch.nonzero(keep(image, found))[:, 0])
                for image, found in enumerate(detections)
            ]
        return [
            (found, self.masks_of(found, image, dense)[0].sigmoid())
            for image, found in enumerate(detections)
        ]

    @torch.no_grad()
    def _inference(self, batched_inputs: BatchedInputs) -> list[dict[str, Instances]]:
        images = self.batch_images([entry["image"] for entry in batched_inputs])
        dense = self.predict_densely(images.tensor)
        results = []
        for image, (entry, size, detections) in enumerate(
            zip(batched_inputs, images.image_sizes, self.detect_in(dense), strict=True)
        ):
            mask_logits, _ = self.masks_of(detections, image, dense)
            instances = finish_detections(
                detections, mask_logits, size, original_size(entry, size), encode=self.encode_masks
            )
            results.append({"instances": instances})
        return results

    @torch.no_grad()
    def predict_depth(self, batched_inputs: BatchedInputs) -> list[torch.Tensor]:
        """Predicted inverse depth in [0, 1] at stride 4 of each image, (H, W).

        Each pixel takes the mean over the detections, weighted by how likely it belongs to them.

        Raises:
            ValueError: the model has no depth layer.
        """
        if self.depth_form is None:
            raise ValueError("this model has no depth layer; build it with depth_layer=True")
        images = self.batch_images([entry["image"] for entry in batched_inputs])
        dense = self.predict_densely(images.tensor)
        results = []
        for image, detections in enumerate(self.detect_in(dense)):
            logits, depth = self.masks_of(detections, image, dense)
            assert depth is not None
            weights = logits.sigmoid() + 1e-3
            results.append((weights * depth).sum(0) / weights.sum(0).clamp(min=1e-3))
        return results

    @torch.no_grad()
    def predict_masks_for_boxes(self, batched_inputs: BatchedInputs) -> list[Instances]:
        """A mask for every given box, in the order of the boxes.

        The image is looked at in several sizes, also mirrored. In each view the locations that
        predict the box best, and its centre, are candidates; the mask whose extents agree best with
        the box is taken. The mean of the views is cut to the box; where it is empty it becomes the
        filled box, with score 0, so that every box yields a mask.

        Args:
            batched_inputs: as for training, `instances` in the frame of `image`.

        Returns:
            Instances at the original size with `pred_masks` bool, `pred_boxes`, `pred_classes` and
            `scores` in [0, 1].
        """
        results = []
        for entry in batched_inputs:
            given = entry["instances"].to(self.device)
            boxes, size = given.gt_boxes.tensor, entry["image"].shape[-2:]
            masks = BoxMasks(boxes, size, original_size(entry, size))
            for factor, mirrored in VIEWS:
                image, seen = view_image(entry["image"].to(self.device), boxes, factor, mirrored)
                view_size = int(image.shape[1]), int(image.shape[2])
                dense = self.predict_densely(self.batch_images([image]).tensor)
                found, allowed = candidate_locations(
                    *self._of_image(dense, 0), seen, given.gt_classes
                )
                logits = self.masks_of(found, 0, dense)[0]
                chosen, scores = choose_masks(logits, allowed, seen, view_size)
                masks.add(chosen, scores, view_size, mirrored)
            results.append(masks.finish(given.gt_classes))
        return results

    @torch.no_grad()
    def soft_masks_for_boxes(
        self,
        images: Sequence[torch.Tensor],
        boxes: Sequence[torch.Tensor],
        classes: Sequence[torch.Tensor],
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """A mask for every given box of each image, as probabilities at stride 4, (G, H, W).

        Args:
            images: (3, H, W) each.
            boxes: (G, 4) of each, in its pixels.
            classes: (G,) of each.

        Returns:
            The masks of each image, and the mask branch's features of all, at stride 8.
        """
        dense = self.predict_densely(self.batch_images(images).tensor)
        drawn = []
        for image, (own_boxes, own_classes) in enumerate(zip(boxes, classes, strict=True)):
            found = best_locations(*self._of_image(dense, image), own_boxes, own_classes)
            drawn.append(self.masks_of(found, image, dense)[0].sigmoid())
        return drawn, dense.mask_features

    def _of_image(
        self, dense: DensePredictions, image: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Class logits, offsets and quality of one image, level by level."""
        class_logits = self.proposal_generator.fcos_head.class_logits(
            [level[image : image + 1] for level in dense.levels]
        )
        return (
            [level[0] for level in class_logits],
            [level[image] for level in dense.offsets],
            [level[image] for level in dense.quality],
        )
