"""The paper's backbones, and others, give a pyramid that trains."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling.backbone import Backbone

from segtrain.cpu_kernels.acceleration import accelerate
from segtrain.modeling.backbones import build_resnet_fpn, build_swin_fpn, build_timm_fpn


# detectron2's Swin calls meshgrid in the way that torch asks to change.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize(
    "kind", ["resnet", "deformable", "swin", "convnext", "resnet_timm", "channels_last"]
)
def test_pyramid_has_five_levels_and_gradients(kind: str) -> None:
    backbone: Backbone = {
        "resnet": lambda: build_resnet_fpn(50, out_channels=32),
        "deformable": lambda: build_resnet_fpn(50, deformable=True, out_channels=32),
        "swin": lambda: build_swin_fpn("tiny", out_channels=32),
        "convnext": lambda: build_timm_fpn("test_convnext", out_channels=32),
        "resnet_timm": lambda: build_timm_fpn("test_resnet", out_channels=32),
        # timm's own Swin gives maps with channels last.
        "channels_last": lambda: build_timm_fpn(
            "swin_tiny_patch4_window7_224", out_channels=32, img_size=64
        ),
    }[kind]()
    levels = backbone(torch.randn(1, 3, 64, 64))
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 32, size, size) for size in (8, 4, 2, 1, 1)
    ]
    sum(level.square().sum() for level in levels.values()).backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_deformable_convolutions_start_as_ordinary_ones() -> None:
    torch.manual_seed(0)
    plain = build_resnet_fpn(50, out_channels=16).eval()
    deformable = build_resnet_fpn(50, deformable=True, out_channels=16).eval()
    missing = deformable.load_state_dict(plain.state_dict(), strict=False)
    # Every weight of a published R-50 has its place; only the offsets are new.
    assert missing.unexpected_keys == []
    assert {key.split(".")[-2] for key in missing.missing_keys} == {"conv2_offset"}
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, level in deformable(image).items():
            torch.testing.assert_close(level, plain(image)[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("deformable", [False, True])
def test_fused_layers_compute_what_the_layers_of_training_do(
    memory_format: torch.memory_format, deformable: bool
) -> None:
    torch.manual_seed(0)
    backbone = build_resnet_fpn(50, deformable=deformable, out_channels=16, freeze_at=0)
    plain = copy.deepcopy(backbone)
    accelerate(backbone)
    image = torch.randn(2, 3, 96, 160).to(memory_format=memory_format)
    original = image.clone()
    with torch.no_grad():
        for name, value in backbone.state_dict().items():
            if "norm" in name:  # else the normalisation is the identity
                value.uniform_(0.5, 1.0)
            if name.endswith("conv3.norm.weight"):
                value.fill_(0.1)
        fused = [level.clone() for level in backbone(image).values()]
    plain.load_state_dict(backbone.state_dict())
    for level, expected in zip(fused, plain(image).values(), strict=True):
        torch.testing.assert_close(level, expected.detach(), rtol=1e-3, atol=1e-3)
    # Another order of the same sums: the longest has 512·9 products, each rounded to 2⁻²⁴ of its
    # size, and roundings add up like a random walk. So values near zero are off by a share of
    # the largest.
    rounding = (512 * 9) ** 0.5 * 2**-24
    for level, expected in zip(fused, backbone(image).values(), strict=True):
        assert expected.requires_grad
        close = rounding * float(level.abs().max())
        torch.testing.assert_close(level, expected.detach(), rtol=0, atol=close)
    assert torch.equal(image, original)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = backbone(image)["p3"].detach()
        with torch.no_grad():
            also_rounded = backbone(image)["p3"]
    assert also_rounded.dtype == rounded.dtype == torch.bfloat16
    assert (rounded - fused[0]).norm() < 0.03 * fused[0].norm()
    assert (also_rounded - fused[0]).norm() < 0.03 * fused[0].norm()


def test_unknown_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="50 or 101"):
        build_resnet_fpn(34)
    with pytest.raises(ValueError, match="strides"):
        build_timm_fpn("test_vit")
