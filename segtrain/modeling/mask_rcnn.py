"""detectron2's Mask R-CNN as a model that this package's engine can train and label with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import (
    Backbone,
    GeneralizedRCNN,
    StandardROIHeads,
    build_proposal_generator,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from segtrain.losses.supervision import Supervision
from segtrain.modeling.image_batches import original_size
from segtrain.modeling.masks_for_boxes import keep_inside_boxes


class MaskRCNN(GeneralizedRCNN):
    """Mask R-CNN with what the engine asks of a model; nothing of it follows the iteration."""

    needs_depth = False
    distillation = None
    supervision = Supervision(name="Mask R-CNN", reads_masks=True)

    @property
    def num_classes(self) -> int:
        """Without background."""
        return int(self.roi_heads.num_classes)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, detections otherwise, as GeneralizedRCNN gives them."""
        # Its heads write statistics into the storage of detectron2's own training loop.
        with EventStorage():
            return super().forward(batched_inputs)

    def set_iteration(self, iteration: int) -> None:
        """Nothing in this model follows the iteration."""

    def pop_metrics(self) -> dict[str, torch.Tensor]:
        """This model measures nothing besides its losses."""
        return {}

    @torch.no_grad()
    def predict_masks_for_boxes(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """A mask for every given box: what the mask head sees in it, as its given class.

        The score is √(the box head's probability of that class × mean mask probability above 1/2).

        Args:
            batched_inputs: as for training, `instances` in the frame of `image`.

        Returns:
            As `CondInst.predict_masks_for_boxes`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        given = []
        for entry, size in zip(batched_inputs, images.image_sizes, strict=True):
            boxes = Instances((int(size[0]), int(size[1])))
            boxes.pred_boxes = entry["instances"].gt_boxes.to(self.device)
            boxes.pred_classes = entry["instances"].gt_classes.to(self.device)
            given.append(boxes)
        heads: Any = self.roi_heads
        pooled = heads.box_pooler(
            [features[name] for name in heads.box_in_features], [each.pred_boxes for each in given]
        )
        class_logits = heads.box_predictor(heads.box_head(pooled))[0].float()
        every_class = torch.cat([each.pred_classes for each in given])
        probabilities = class_logits.softmax(1).gather(1, every_class[:, None])[:, 0]
        parts = probabilities.split([len(each) for each in given])
        results = []
        for entry, found, own in zip(
            batched_inputs, heads.forward_with_given_boxes(features, given), parts, strict=True
        ):
            height, width = found.image_size
            size = original_size(entry, (height, width))
            soft = found.pred_masks[:, 0].float()
            inside = soft > 0.5
            certainty = (soft * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
            boxes = Boxes(found.pred_boxes.tensor.clone())
            boxes.scale(size[1] / width, size[0] / height)
            masks = paste_masks_in_image(soft, boxes, size, threshold=0.5)
            scores = (own * certainty).sqrt()
            results.append(keep_inside_boxes(masks, boxes, found.pred_classes, scores))
        return results


class PartlyAnnotatedHeads(StandardROIHeads):
    """The standard heads; objects without a mask teach the box head only."""

    def _forward_mask(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        if self.training:  # an image without any object has no such field, and no positive
            instances = [
                each[each.gt_has_mask] if each.has("gt_has_mask") else each for each in instances
            ]
        return super()._forward_mask(features, instances)


def build_mask_rcnn(
    *,
    backbone: Backbone | nn.Module,
    num_classes: int = 80,
    head_channels: int = 256,
    rois_per_image: int = 512,
    pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
) -> MaskRCNN:
    """Mask R-CNN, as detectron2's COCO baselines define it.

    Args:
        backbone: with a pyramid p2 to p6 (`finest_level=2` of its builder).
        num_classes: without background.
        head_channels: of the mask head's convolutions; the box head's layers have four times these.
        rois_per_image: regions that train the heads, at most a quarter of them positive.
        pixel_mean: subtracted from BGR pixels in 0..255.
        pixel_std: by which they are divided.

    Raises:
        ValueError: the pyramid has other levels.
    """
    levels = ["p2", "p3", "p4", "p5", "p6"]
    shapes: Any = backbone.output_shape()  # type: ignore[operator]
    if list(shapes) != levels:
        raise ValueError(
            f"Mask R-CNN reads {', '.join(levels)}, the backbone has {', '.join(shapes)}; set "
            "model.backbone.finest_level=2"
        )
    cfg: Any = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = levels
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    cfg.MODEL.ROI_HEADS.IN_FEATURES = levels[:-1]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = rois_per_image
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 4 * head_channels
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = head_channels
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    return MaskRCNN(
        backbone=backbone,
        proposal_generator=build_proposal_generator(cfg, shapes),
        roi_heads=PartlyAnnotatedHeads(cfg, shapes),
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        input_format=cfg.INPUT.FORMAT,
    )
