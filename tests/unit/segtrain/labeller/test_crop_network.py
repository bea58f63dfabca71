"""Encoders of each kind: convolutions, plain and windowed transformers, from weights to masks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from segtrain.errors import CheckpointError, TrainingConfigError
from segtrain.labeller import BoxedPhoto, LabellerSettings, choose_settings, label_boxes
from segtrain.labeller.crop_network import (
    CropNetwork,
    NetworkDescription,
    build_crop_network,
    load_crop_network,
    save_crop_network,
)
from segtrain.labeller.mask_prediction import load_labeller
from tests.unit.segtrain.labeller.conftest import draw_disc, follow_loss

# The kinds at a size that a test can afford; "plain" has patches of 14, as DINOv2 has.
ENCODERS = {
    "convnext": ("convnext_atto", {"dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}),
    "plain": (
        "vit_small_patch14_dinov2",
        {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3},
    ),
    "any size": (
        "vit_tiny_patch16_224",
        {"dynamic_img_size": True, "embed_dim": 48, "depth": 3, "num_heads": 3},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_of_every_kind_learns_from_boxes_and_labels(
    kind: str, photos: list[BoxedPhoto], eager_settings: LabellerSettings, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name, settings = ENCODERS[kind]
    start = tmp_path / "start.safetensors"
    save_crop_network(build_crop_network(name, pretrained=False, **settings), start)
    eager = dataclasses.replace(
        eager_settings, max_iterations=14, depth="input", teacher_weight=0, encoder_rate=0.03
    )
    losses = follow_loss("projection", photos, eager, tmp_path / "run", start=start)
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])

    labeller = load_labeller(tmp_path / "run" / "labeller.safetensors")
    image, _, box, depth = draw_disc(1)
    photo = np.tile(image, (3, 3, 1))
    boxes = np.concatenate((box[None], box[None] + 96, [[0, 0, 384, 288]])).astype(np.float32)
    masks = label_boxes(labeller, photo, boxes, np.tile(depth, (3, 3)))
    assert [mask.crop.shape for mask in masks][2] == (288, 384)
    blind = label_boxes(labeller, photo, boxes)
    assert masks[0].signs != blind[0].signs, "depth is seen"


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_network_survives_its_file_and_sees_the_same_in_a_mirror_of_the_batch(
    kind: str, tmp_path: Path
) -> None:
    name, settings = ENCODERS[kind]
    network = build_crop_network(name, pretrained=False, **settings).eval()
    torch.nn.init.normal_(network.head.weight)
    rgb_N3SS, hints_N2SS = torch.randn(3, 3, 64, 64), torch.randn(3, 2, 64, 64)
    save_crop_network(network, tmp_path / "a.safetensors")
    again, _ = load_crop_network(tmp_path / "a.safetensors")
    with torch.inference_mode():
        logits_NGG = network(rgb_N3SS, hints_N2SS)
        torch.testing.assert_close(again(rgb_N3SS, hints_N2SS), logits_NGG)
        turned_NGG = network(rgb_N3SS.flip(0), hints_N2SS.flip(0))
    assert logits_NGG.shape == (3, 32, 32)
    torch.testing.assert_close(turned_NGG.flip(0), logits_NGG, rtol=1e-3, atol=1e-4)


def test_a_plain_vit_outlines_finer_than_its_patches() -> None:
    name, settings = ENCODERS["any size"]
    network = build_crop_network(name, pretrained=False, **settings).eval()
    assert network.octaves == [4, 4, 4, 3, 2]
    torch.nn.init.normal_(network.head.weight)
    rgb_13SS = torch.randn(1, 3, 64, 64)
    changed_13SS = rgb_13SS.clone()
    changed_13SS[:, :, 30:34, 30:34] += 1
    # What the encoder sees is held still, so that only the detail can tell.
    seen = network.encoder(rgb_13SS)
    network.encoder.register_forward_hook(lambda *_: seen)
    with torch.inference_mode():
        hints = torch.zeros(1, 2, 64, 64)
        assert not torch.equal(network(rgb_13SS, hints), network(changed_13SS, hints))


def test_a_network_of_an_older_file_has_the_levels_that_its_description_says() -> None:
    plain = NetworkDescription(encoder="test_vit", widths=(96, 64, 48))
    assert len(CropNetwork(plain).levels) == 3
    assert not any("detail" in key for key in CropNetwork(NetworkDescription()).state_dict())


def test_channels_last_are_told_from_the_encoder_not_from_the_size() -> None:
    """A map as wide as it has channels reads alike both ways."""
    _, settings = ENCODERS["swin"]
    network = build_crop_network(ENCODERS["swin"][0], pretrained=False, **settings).eval()
    seen: list[torch.Tensor] = []
    network.levels[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    with torch.inference_mode():
        rgb_13SS = torch.randn(1, 3, 64, 64)
        network(rgb_13SS, torch.zeros(1, 2, 64, 64))
        finest_1hwC = network.encoder(rgb_13SS)[0]
    assert finest_1hwC.shape == (1, 16, 16, 16)
    torch.testing.assert_close(seen[0][:, :16], finest_1hwC.permute(0, 3, 1, 2))


def test_an_encoder_of_one_size_is_known_as_such(tmp_path: Path) -> None:
    small = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    network = build_crop_network("vit_tiny_patch16_224", pretrained=False, **small)
    assert network.description.only_size == 224
    save_crop_network(network, tmp_path / "vit.safetensors")
    assert choose_settings(100, tmp_path / "vit.safetensors").crop_size == 224
    with pytest.raises(ValueError, match="which takes 224 only: set crop_size=224"):
        network(torch.zeros(1, 3, 128, 128), torch.zeros(1, 2, 128, 128))


@pytest.mark.parametrize(
    ("encoder", "unfit", "message", "remedy"),
    [
        (
            "test_vit",
            {"out_indices": range(6)},
            r"strides \[16, .*out_indices=",
            {"out_indices": [5]},
        ),
        ("test_vit", {"img_size": 80}, r"crops of 80 pixels only.*img_size=224", {"img_size": 96}),
        ("vit_small_patch14_dinov2", {}, "crops of 518 pixels only", {"img_size": 224}),
    ],
)
def test_an_encoder_that_does_not_suit_is_refused_with_a_remedy(
    encoder: str, unfit: dict[str, Any], message: str, remedy: dict[str, Any]
) -> None:
    small = {"embed_dim": 48, "depth": 6, "num_heads": 3}
    with pytest.raises(TrainingConfigError, match=message):
        build_crop_network(encoder, pretrained=False, **small, **unfit)
    build_crop_network(encoder, pretrained=False, **small, **remedy)


def test_weights_of_an_encoder_come_from_a_file_without_a_hub(tmp_path: Path) -> None:
    name, settings = ENCODERS["any size"]
    model = timm.create_model(name, **settings)
    save_file(model.state_dict(), tmp_path / "encoder.safetensors")
    network = build_crop_network(name, encoder_weights=tmp_path / "encoder.safetensors", **settings)
    torch.testing.assert_close(
        network.encoder.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight
    )


def test_a_file_of_an_encoder_that_is_not_known_is_refused(tmp_path: Path) -> None:
    network = build_crop_network("test_convnext", pretrained=False)
    network.description = NetworkDescription(encoder="not_in_this_timm")
    save_crop_network(network, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"is no labeller.*not_in_this_timm"):
        load_crop_network(tmp_path / "a.safetensors")
