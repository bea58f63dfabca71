"""The dynamic mask head: three 1×1 convolutions whose weights the controller predicts per instance.

Shape legend: I instances, B images, C mask-branch channels, P parameters, H×W the stride-8 grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from segtrain.mask_grid.upsampling import aligned_bilinear

HIDDEN = 8
FEATURE_STRIDE = 8
SIZES_OF_INTEREST = (64, 128, 256, 512, 1024)
DepthForm = Literal["multiply", "add", "off"]


@dataclass(kw_only=True)
class MaskSettings:
    """The mask head's switches.

    Attributes:
        mask_channels: of the mask branch; 16 for BoxInst, 8 for CondInst.
        depth_layer: whether the head predicts depth too.
        depth_form: how depth guides the mask; Eq. 1 of arXiv 2403.01214 multiplies, "off" predicts
            depth beside masks that do not see it.
        depth_bias: the depth layer's bias at the start; 3 opens the gate to 0.95.
        masks_per_image: most positive locations of an image that are trained on masks; each box
            keeps its best ones.
        norm: of the mask branch, a name of detectron2's `get_norm`.
    """

    mask_channels: int = 16
    depth_layer: bool = False
    depth_form: DepthForm = "multiply"
    depth_bias: float = 0.0
    masks_per_image: int = 64
    norm: str = "BN"

    def __post_init__(self) -> None:
        if self.depth_form not in ("multiply", "add", "off"):
            raise ValueError(f"depth_form must be multiply, add or off, got {self.depth_form!r}")


def num_mask_parameters(mask_channels: int, *, depth_layer: bool) -> int:
    """Parameters per instance: 233 for 16 channels, 9 more with the depth layer."""
    outputs = 2 if depth_layer else 1
    weights = HIDDEN * (mask_channels + 2) + HIDDEN * HIDDEN + HIDDEN * outputs
    return weights + HIDDEN + HIDDEN + outputs


def run_dynamic_head(
    mask_features_BCHW: torch.Tensor,
    parameters_IP: torch.Tensor,
    locations_I2: torch.Tensor,
    sizes_of_interest_I: torch.Tensor,
    image_indices_I: torch.Tensor,
    *,
    depth_form: DepthForm | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Masks, and depth when asked for, of every instance at stride 4.

    h = two 1×1 convolutions with ReLU over [relative x, relative y, features]. Without depth the
    logit is w_m·h + b_m. With "multiply" depth = sigmoid(w_d·h + b_d) and the logit is
    (w_m·h + b_m) · depth; with "add" it is (w_m·h + b_m) + (w_d·h + b_d); with "off" it is what it
    is without depth. Sources: CondInst, arXiv 2003.05664; Eq. 1 of arXiv 2403.01214.

    Relative coordinates are linear in the pixel position, so they enter the first layer as three
    extra channels of the image (x, y, 1) and the instances of an image share one matrix product;
    nothing is copied per instance.

    Args:
        mask_features_BCHW: output of the mask branch.
        parameters_IP: w0, w1, [w_depth,] w_mask, b0, b1, [b_depth,] b_mask; row-major weights.
        locations_I2: x, y in pixels of the location that predicts the instance.
        sizes_of_interest_I: pixels by which relative coordinates are divided.
        image_indices_I: image of each instance.
        depth_form: None without the depth layer.

    Returns:
        Mask logits (I, 2H, 2W), and depth in [0, 1] of the same shape or None.

    Raises:
        ValueError: the number of parameters does not belong to these features.
    """
    _, channels, height, width = mask_features_BCHW.shape
    has_depth = depth_form is not None
    expected = num_mask_parameters(channels, depth_layer=has_depth)
    num_instances = len(parameters_IP)
    if parameters_IP.shape[1] != expected:
        raise ValueError(
            f"{parameters_IP.shape[1]} parameters per instance, but {channels} mask channels "
            f"{'with' if has_depth else 'without'} a depth layer need {expected}"
        )
    if num_instances == 0:
        connected = (mask_features_BCHW.sum() + parameters_IP.sum()) * 0.0
        empty = mask_features_BCHW.new_zeros(0, 2 * height, 2 * width) + connected
        return empty, empty if has_depth else None
    outputs = 2 if has_depth else 1
    w0, w1, w2, b0, b1, b2 = parameters_IP.split(
        (HIDDEN * (channels + 2), HIDDEN * HIDDEN, HIDDEN * outputs, HIDDEN, HIDDEN, outputs), dim=1
    )
    hidden = torch.relu(
        _first_layer(
            mask_features_BCHW,
            w0.reshape(num_instances, HIDDEN, channels + 2),
            b0,
            locations_I2,
            sizes_of_interest_I,
            image_indices_I,
        )
    )
    hidden = torch.relu(
        torch.baddbmm(b1[:, :, None], w1.reshape(num_instances, HIDDEN, HIDDEN), hidden)
    )
    out = torch.baddbmm(b2[:, :, None], w2.reshape(num_instances, outputs, HIDDEN), hidden)
    out = out.reshape(num_instances, outputs, height, width)
    if depth_form is None:
        return aligned_bilinear(out, 2)[:, 0], None
    depth = out[:, :1].sigmoid()
    logits = guide_by_depth(out[:, 1:], out[:, :1], depth, depth_form)
    # Two calls: the gradients of masks and depth then need no joint copy.
    return aligned_bilinear(logits, 2)[:, 0], aligned_bilinear(depth, 2)[:, 0]


def guide_by_depth(
    mask: torch.Tensor, depth_logit: torch.Tensor, depth: torch.Tensor, depth_form: DepthForm
) -> torch.Tensor:
    """Mask logits under the guidance of depth, before up-sampling."""
    if depth_form == "multiply":
        return mask * depth
    return mask + depth_logit if depth_form == "add" else mask


def _first_layer(
    features_BCHW: torch.Tensor,
    weights_IHC: torch.Tensor,
    bias_IH: torch.Tensor,
    locations_I2: torch.Tensor,
    sizes_of_interest_I: torch.Tensor,
    image_indices_I: torch.Tensor,
) -> torch.Tensor:
    """First 1×1 convolution of all instances, (I, 8, H·W)."""
    _, _, height, width = features_BCHW.shape
    dtype, device = features_BCHW.dtype, features_BCHW.device
    half = FEATURE_STRIDE // 2
    # Positions are counted from the middle of the map, which keeps the cancelling terms small.
    middle = torch.tensor((width, height), device=device) * half
    xs = torch.arange(width, device=device) * FEATURE_STRIDE + half - middle[0]
    ys = torch.arange(height, device=device) * FEATURE_STRIDE + half - middle[1]
    grid = (
        torch.stack(
            (
                xs.expand(height, width).reshape(-1),
                ys[:, None].expand(height, width).reshape(-1),
                torch.full((height * width,), 64, device=device),
            )
        ).to(dtype)
        / 64.0
    )
    scale_I = (64.0 / sizes_of_interest_I).to(weights_IHC.dtype)
    position_I2 = ((locations_I2 - middle) / sizes_of_interest_I[:, None]).to(weights_IHC.dtype)
    weights_xy = weights_IHC[:, :, :2]
    constant = bias_IH + (weights_xy * position_I2[:, None, :]).sum(2)
    kernels = torch.cat(
        (weights_IHC[:, :, 2:], -weights_xy * scale_I[:, None, None], constant[:, :, None]), dim=2
    )
    outputs = []
    order = []
    for image in range(len(features_BCHW)):
        chosen = torch.nonzero(image_indices_I == image)[:, 0]
        if len(chosen) == 0:
            continue
        inputs = torch.cat((features_BCHW[image].flatten(1), grid))
        outputs.append((kernels[chosen].flatten(0, 1) @ inputs).unflatten(0, (-1, HIDDEN)))
        order.append(chosen)
    if len(outputs) == 1:
        return outputs[0]
    positions = torch.cat(order)
    if torch.equal(positions, torch.arange(len(positions), device=device)):
        return torch.cat(outputs)
    return torch.cat(outputs)[torch.argsort(positions)]
