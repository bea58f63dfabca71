"""CondInst with box supervision, pseudo depth and self-distillation; every part is a switch.

Shape legend: B images, I mask instances, P positive locations, G boxes of the batch, H×W mask grid.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from segtrain.distillation.matching import (
    BoxMatch,
    box_affinity,
    depth_matching_scores,
    match_predictions,
    possible_matches,
)
from segtrain.distillation.teaching import (
    DistillationSettings,
    reliable_dice_loss,
    resize_teacher_masks,
)
from segtrain.losses.annotated_masks import annotated_masks
from segtrain.losses.colour import (
    MASK_STRIDE,
    color_similarity,
    downsample_to_mask_grid,
    image_validity,
)
from segtrain.losses.depth import depth_loss
from segtrain.losses.detector import fcos_losses
from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
from segtrain.losses.projection import dice_distance, projection_loss
from segtrain.mask_grid.bitmasks import fill_ratio, filled_pixels, mask_grid_extents
from segtrain.mask_grid.neighbours import neighbour_similarity
from segtrain.modeling.condinst_settings import LossSettings, MaskSettings
from segtrain.modeling.dynamic_mask_head import (
    SIZES_OF_INTEREST,
    DepthForm,
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
from segtrain.modeling.fcos_targets import FCOSTargets, assign_targets
from segtrain.modeling.mask_branch import MaskBranch
from segtrain.modeling.mask_postprocessing import encoded_masks, full_size_masks
from segtrain.modeling.masks_for_boxes import best_locations, cut_to_boxes
from segtrain.precision import widen
from segtrain.process_group import joint_normaliser

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


@dataclass(frozen=True, kw_only=True)
class _BatchTruth:
    """The boxes of a batch, concatenated over its images."""

    boxes: list[torch.Tensor]
    classes: list[torch.Tensor]
    extents: torch.Tensor  # (G, 4) filled cells on the mask grid
    image_indices: torch.Tensor  # (G,)


@dataclass(frozen=True)
class _DensePredictions:
    """What the network computes at every location, for a batch; lists have one map a level."""

    levels: list[torch.Tensor]  # the pyramid, (B, C, H, W)
    box_features: list[torch.Tensor]  # (B, C, H, W)
    offsets: list[torch.Tensor]  # (B, 4, H, W)
    quality: list[torch.Tensor]  # (B, 1, H, W) logits
    mask_features: torch.Tensor  # (B, mask channels, H, W) at stride 8


class CondInst(nn.Module):
    """Instance segmentation with conditional convolutions, trained from boxes.

    Args:
        backbone: maps an image batch to a dict with p3 to p7.
        num_classes: without background.
        fcos: detector settings.
        mask: mask head settings.
        losses: supervision settings.
        distillation: None without a teacher; acts once a teacher is attached.
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
        losses: LossSettings,
        distillation: DistillationSettings | None = None,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        feature_channels: int = 256,
        encode_masks: bool = False,
    ) -> None:
        super().__init__()
        if losses.supervision == "masks" and distillation is not None:
            raise ValueError("supervision='masks' needs no teacher; set distillation to None")
        self.backbone = backbone
        self.proposal_generator = FCOS(FCOSHead(num_classes, feature_channels, fcos.tower_depth))
        self.mask_branch = MaskBranch(
            feature_channels, mask.channels, min(128, feature_channels), mask.norm
        )
        self.mask_head = MaskHeadState()
        self.controller = nn.Conv2d(
            feature_channels,
            num_mask_parameters(mask.channels, depth_layer=mask.depth_layer),
            3,
            padding=1,
        )
        nn.init.normal_(self.controller.weight, std=0.01)
        if self.controller.bias is not None:
            nn.init.zeros_(self.controller.bias)
        self.num_classes = num_classes
        self.fcos_settings, self.mask_settings = fcos, mask
        self.loss_settings, self.distillation = losses, distillation
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
        return (
            (
                self.loss_settings.supervision != "masks"
                and (self.mask_settings.depth_layer and self.loss_settings.depth_weight > 0)
            )
            or self.loss_settings.consistency
            or (self.distillation is not None and self.distillation.depth_matching)
        )

    def set_iteration(self, iteration: int) -> None:
        """Tell the model the 0-based iteration of the coming step; warm-ups and β(t) follow it."""
        self._iteration = iteration
        self.mask_head._iter.fill_(float(iteration + 1))

    def attach_teacher(self, teacher: CondInst | None) -> None:
        """Learn from this model's masks from now on; it stays out of this model's state dict."""
        if teacher is not None and self.distillation is None:
            raise ValueError("a teacher needs distillation settings; build the model with them")
        self.__dict__["_teacher"] = teacher

    @property
    def teacher(self) -> CondInst | None:
        """The attached teacher."""
        teacher: CondInst | None = self.__dict__.get("_teacher")
        return teacher

    def pop_metrics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last training step: fill ratio of masks in boxes, matched masks."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def forward(self, batched_inputs: BatchedInputs) -> Any:
        """Losses in training; detections with masks at the original size otherwise.

        Args:
            batched_inputs: per image `image` uint8 (3, H, W) BGR, `height`, `width`; in training
                `instances`, and `inverse_depth_255`, `teacher_image` where the settings need them.

        Returns:
            dict of weighted losses, or a list of {"instances": Instances}.
        """
        if self.training:
            return self._training_losses(batched_inputs)
        return self._inference(batched_inputs)

    def _training_losses(self, batched_inputs: BatchedInputs) -> dict[str, torch.Tensor]:
        images = self._batch_images([entry["image"] for entry in batched_inputs])
        padded_size = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
        truth = self._batch_truth(batched_inputs, padded_size)
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
        chosen = self._choose_positives(targets, flat_logits, quality_logits, truth)
        mask_features = self.mask_branch(features)
        taught = self._ask_teacher(batched_inputs, truth)
        with torch.autocast(self.device.type, enabled=False):
            mask_logits, depth = run_dynamic_head(
                mask_features,
                self._mask_parameters(patches[chosen]),
                targets.locations[chosen],
                self.mask_head.sizes_of_interest[targets.levels[chosen]],
                targets.image_indices[chosen],
                depth_form=self.depth_form,
            )
            box_indices = targets.box_indices[targets.positives][chosen]
            losses |= self._mask_losses(
                batched_inputs, padded_size, truth, box_indices, mask_logits, depth, taught
            )
        return losses

    def _mask_losses(
        self,
        batched_inputs: BatchedInputs,
        padded_size: tuple[int, int],
        truth: _BatchTruth,
        box_indices_I: torch.Tensor,
        mask_logits_IHW: torch.Tensor,
        depth_IHW: torch.Tensor | None,
        taught: Sequence[tuple[Detections, torch.Tensor]] | None,
    ) -> dict[str, torch.Tensor]:
        settings = self.loss_settings
        image_indices_I = truth.image_indices[box_indices_I]
        extents_I4 = truth.extents[box_indices_I]
        losses: dict[str, torch.Tensor] = {}
        boxed = mask_logits_IHW
        boxed_images, boxed_extents = image_indices_I, extents_I4
        if settings.supervision != "boxes":
            masks_GHW, has_mask_G = annotated_masks(
                batched_inputs, padded_size, settings.supervision
            )
            has_mask_G = has_mask_G.to(self.device)
            with_mask = torch.nonzero(has_mask_G[box_indices_I])[:, 0]
            target = masks_GHW.to(self.device)[box_indices_I[with_mask]].float()
            normaliser = joint_normaliser(mask_logits_IHW.new_tensor(float(len(with_mask))))
            losses["loss_mask"] = (
                dice_distance(mask_logits_IHW[with_mask].sigmoid(), target).sum() / normaliser
            )
            without = torch.nonzero(~has_mask_G[box_indices_I])[:, 0]
            boxed = mask_logits_IHW[without]
            boxed_images, boxed_extents = image_indices_I[without], extents_I4[without]
        inverse_depth = self._depth_on_mask_grid(batched_inputs, padded_size)
        depth_edges = self._depth_edges(inverse_depth, batched_inputs, padded_size)
        if settings.supervision != "masks":
            losses["loss_proj"] = projection_loss(boxed, boxed_extents)
            losses |= self._pairwise_terms(
                batched_inputs, padded_size, boxed, boxed_images, boxed_extents, depth_edges
            )
        if depth_IHW is not None:
            losses["loss_depth"] = (
                settings.depth_weight
                * (self._warmup() if settings.depth_warmup else 1.0)
                * depth_loss(depth_IHW, inverse_depth, image_indices_I, extents_I4)
                if inverse_depth is not None and settings.depth_weight > 0
                else depth_IHW.sum() * 0.0
            )
        if self.distillation is not None and taught is not None:
            pseudo_masks, matching_scores = self._match_teacher(
                batched_inputs, padded_size, truth, depth_edges, taught
            )
            losses["loss_dice"] = self.distillation.loss_weight * reliable_dice_loss(
                mask_logits_IHW,
                box_indices_I,
                pseudo_masks,
                matching_scores,
                truth.extents,
                threshold=self.distillation.score_threshold,
            )
            reliable = matching_scores >= self.distillation.score_threshold
            self._metrics["num_reliable_masks"] = reliable.sum().float()
            self._metrics["reliable_share"] = reliable.float().sum() / max(len(reliable), 1)
        self._metrics["mask_box_fill_ratio"] = fill_ratio(mask_logits_IHW, extents_I4)
        self._metrics["num_mask_instances"] = torch.tensor(float(len(mask_logits_IHW)))
        return losses

    def _pairwise_terms(
        self,
        batched_inputs: BatchedInputs,
        padded_size: tuple[int, int],
        mask_logits_IHW: torch.Tensor,
        image_indices_I: torch.Tensor,
        extents_I4: torch.Tensor,
        depth_edges: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Colour and consistency terms, in one pass over the boxes."""
        settings = self.loss_settings
        names, edges, extents = [], [], []
        if settings.color:
            similarity = color_similarity(
                [entry["image"].to(self.device) for entry in batched_inputs],
                [int(entry.get("height", entry["image"].shape[-2])) for entry in batched_inputs],
                padded_size,
                settings.bottom_pixels_removed,
            )
            names.append("loss_color")
            edges.append(edges_from_similarity(similarity, settings.color_threshold))
            extents.append(extents_I4)
        if settings.consistency:
            assert depth_edges is not None
            names.append("loss_consistency")
            edges.append(depth_edges)
            whole = torch.tensor(
                [0, mask_logits_IHW.shape[1], 0, mask_logits_IHW.shape[2]], device=self.device
            )
            extents.append(
                extents_I4
                if settings.consistency_inside_box_only
                else whole.expand(len(extents_I4), 4)
            )
        if not names:
            return {}
        values = pairwise_losses(mask_logits_IHW, edges, image_indices_I, extents)
        warmup = self._warmup()
        return {name: value * warmup for name, value in zip(names, values, strict=True)}

    def _warmup(self) -> float:
        """w(t) of Eq. 6."""
        return min((self._iteration + 1) / max(self.loss_settings.warmup_iterations, 1), 1.0)

    def _depth_on_mask_grid(
        self, batched_inputs: BatchedInputs, padded_size: tuple[int, int]
    ) -> torch.Tensor | None:
        """Pseudo depth of the batch in 0..255, (B, H, W), None where no loss reads it."""
        if not self.needs_depth:
            return None
        missing = [e.get("file_name", "?") for e in batched_inputs if "inverse_depth_255" not in e]
        if missing:
            raise ValueError(
                f"no inverse_depth_255 for {missing[:3]}; compute it with `pipeline depth`, or "
                "switch off the depth layer, consistency and depth matching"
            )
        return torch.stack(
            [
                downsample_to_mask_grid(
                    torch.as_tensor(entry["inverse_depth_255"])[None].to(self.device), padded_size
                )[0]
                for entry in batched_inputs
            ]
        )

    def _depth_edges(
        self,
        inverse_depth_255_BHW: torch.Tensor | None,
        batched_inputs: BatchedInputs,
        padded_size: tuple[int, int],
    ) -> torch.Tensor | None:
        """Consistency map 1[S_pq ≥ τ], (B, 8, H, W); the padding is no neighbour."""
        if inverse_depth_255_BHW is None:
            return None
        validity = []
        for entry in batched_inputs:
            size = (int(entry["image"].shape[-2]), int(entry["image"].shape[-1]))
            full = image_validity(size, size[0], padded_size, 0, self.device)
            validity.append(full[MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE])
        similarity = neighbour_similarity(inverse_depth_255_BHW[:, None], torch.stack(validity))
        return edges_from_similarity(similarity, self.loss_settings.depth_threshold)

    def _choose_positives(
        self,
        targets: FCOSTargets,
        flat_logits: torch.Tensor,
        quality_logits: torch.Tensor,
        truth: _BatchTruth,
    ) -> torch.Tensor:
        """Indices into the positives that are trained on masks.

        An image with more positives than `masks_per_image` shares them among its boxes: each keeps
        its positives of the highest class × quality score, at least one.
        """
        limit = self.mask_settings.masks_per_image
        with torch.no_grad():
            best_class = flat_logits[targets.positives].float().sigmoid().amax(1)
            scores = best_class * quality_logits.float().sigmoid()
            kept = []
            for image in range(len(truth.boxes)):
                own = torch.nonzero(targets.image_indices == image)[:, 0]
                if len(own) <= limit:
                    kept.append(own)
                    continue
                boxes = targets.box_indices[targets.positives][own]
                share = max(limit // len(boxes.unique()), 1)
                order = torch.argsort(scores[own], descending=True, stable=True)
                order = order[torch.argsort(boxes[order], stable=True)]
                sorted_boxes = boxes[order]
                first = torch.searchsorted(sorted_boxes, sorted_boxes)
                rank = torch.arange(len(order), device=order.device) - first
                kept.append(own[order[rank < share]])
            return torch.cat(kept)

    @torch.no_grad()
    def _ask_teacher(
        self, batched_inputs: BatchedInputs, truth: _BatchTruth
    ) -> list[tuple[Detections, torch.Tensor]] | None:
        """The teacher's predictions that may be matched to a box; None without a teacher.

        It computes in bfloat16 if the settings say so, else as precisely as the student. What can
        never be matched is not computed: other classes than the image's, masks of detections that
        are too far from every box.
        """
        settings = self.distillation
        if self.teacher is None or settings is None:
            return None
        beta = settings.beta_at(self._iteration)

        def may_be_matched(image: int, found: Detections) -> torch.Tensor:
            return possible_matches(
                _affinity_to_teacher(batched_inputs[image], truth.boxes[image], found, settings),
                found.scores,
                truth.classes[image],
                found.classes,
                alpha=settings.alpha,
                beta=beta,
            )

        precision = (
            torch.autocast(self.device.type, dtype=torch.bfloat16)
            if settings.teaches_in_bfloat16(self.device)
            else contextlib.nullcontext()
        )
        self.teacher.eval()
        with precision:
            return self.teacher.predict_soft_masks(
                [_teacher_image(entry) for entry in batched_inputs], truth.classes, may_be_matched
            )

    @torch.no_grad()
    def _match_teacher(
        self,
        batched_inputs: BatchedInputs,
        padded_size: tuple[int, int],
        truth: _BatchTruth,
        depth_edges: torch.Tensor | None,
        predictions: Sequence[tuple[Detections, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's mask of every box on the student's mask grid, and its matching score."""
        settings = self.distillation
        assert settings is not None
        beta = settings.beta_at(self._iteration)
        masks, scores = [], []
        first_box = 0
        for image, (detections, soft_masks) in enumerate(predictions):
            boxes = truth.boxes[image]
            extents = truth.extents[first_box : first_box + len(boxes)]
            first_box += len(boxes)
            entry = batched_inputs[image]
            in_student = resize_teacher_masks(
                soft_masks, _size(_teacher_image(entry)), _size(entry["image"]), padded_size
            )
            affinity = _affinity_to_teacher(entry, boxes, detections, settings)
            depth_scores = (
                depth_matching_scores(in_student, depth_edges[image], extents)
                if beta > 0 and depth_edges is not None
                else torch.zeros_like(affinity)
            )
            match: BoxMatch = match_predictions(
                affinity,
                depth_scores,
                detections.scores,
                truth.classes[image],
                detections.classes,
                alpha=settings.alpha,
                beta=beta,
            )
            chosen = in_student.new_zeros(len(boxes), *in_student.shape[1:])
            is_matched = match.predictions >= 0
            chosen[is_matched] = in_student[match.predictions[is_matched]]
            masks.append(chosen)
            scores.append(match.scores)
        return torch.cat(masks), torch.cat(scores)

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

    def _batch_truth(
        self, batched_inputs: BatchedInputs, padded_size: tuple[int, int]
    ) -> _BatchTruth:
        instances = [entry["instances"].to(self.device) for entry in batched_inputs]
        boxes = [image.gt_boxes.tensor.float() for image in instances]
        extents = mask_grid_extents(filled_pixels(torch.cat(boxes), padded_size), MASK_STRIDE)
        image_indices = torch.cat(
            [
                torch.full((len(image),), index, device=self.device, dtype=torch.int64)
                for index, image in enumerate(instances)
            ]
        )
        return _BatchTruth(
            boxes=boxes,
            classes=[image.gt_classes for image in instances],
            extents=extents,
            image_indices=image_indices,
        )


def _teacher_image(entry: dict[str, Any]) -> torch.Tensor:
    """(3, H, W): the teacher's own view of a photo where there is one."""
    image: torch.Tensor = entry.get("teacher_image", entry["image"])
    return image


def _size(image: torch.Tensor) -> tuple[int, int]:
    """Height and width."""
    return int(image.shape[-2]), int(image.shape[-1])


def _affinity_to_teacher(
    entry: dict[str, Any], boxes_G4: torch.Tensor, found: Detections, settings: DistillationSettings
) -> torch.Tensor:
    """(G, J): affinity of boxes to what the teacher found in its own view, in the student's."""
    teacher_height, teacher_width = _size(_teacher_image(entry))
    height, width = _size(entry["image"])
    scale = found.boxes.new_tensor([width / teacher_width, height / teacher_height] * 2)
    return box_affinity(boxes_G4, found.boxes * scale, settings.box_affinity)
