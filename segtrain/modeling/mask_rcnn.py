"""detectron2's Mask R-CNN as a baseline that this package's engine can train."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.events import EventStorage

from segtrain.losses.supervision import Supervision


class MaskRCNN(GeneralizedRCNN):
    """Mask R-CNN with what the engine asks of a model; nothing of it follows the iteration."""

    needs_depth = False
    distillation = None
    supervision = Supervision(name="Mask R-CNN", reads_masks=True)

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


def build_mask_rcnn(*, depth: int = 50, num_classes: int = 80) -> MaskRCNN:
    """Mask R-CNN with a ResNet-FPN, as detectron2's COCO baselines define it.

    Args:
        depth: of the ResNet, 50 or 101.
        num_classes: without background.
    """
    cfg: Any = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    return MaskRCNN(**GeneralizedRCNN.from_config(cfg))
