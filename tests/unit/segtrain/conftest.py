"""Small models and batches for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from segtrain.modeling.backbones import build_timm_fpn
from segtrain.modeling.build import build_condinst
from segtrain.modeling.condinst import CondInst


@pytest.fixture
def make_model() -> Callable[..., CondInst]:
    def make(**settings: Any) -> CondInst:
        torch.manual_seed(0)
        backbone = build_timm_fpn("tf_efficientnet_lite0", out_channels=32)
        return build_condinst(
            backbone=backbone, num_classes=3, feature_channels=32, tower_depth=1, **settings
        )

    return make


@pytest.fixture
def make_batch() -> Callable[..., list[dict[str, Any]]]:
    def make(num_boxes: int = 3, size: tuple[int, int] = (96, 128)) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(1)
        height, width = size
        batch = []
        for _ in range(2):
            corner = torch.rand(num_boxes, 2, generator=generator) * 60
            boxes = torch.cat((corner, corner + 30), dim=1)
            instances = Instances(size)
            instances.gt_boxes = Boxes(boxes)
            instances.gt_classes = torch.arange(num_boxes) % 3
            batch.append(
                {
                    "image": torch.randint(0, 256, (3, *size), generator=generator).byte(),
                    "height": 2 * height,
                    "width": 2 * width,
                    "file_name": "x.png",
                    "instances": instances,
                    "inverse_depth_255": torch.rand(size, generator=generator) * 255,
                    "teacher_image": torch.randint(
                        0, 256, (3, height + 32, width + 40), generator=generator
                    ).byte(),
                }
            )
        return batch

    return make
