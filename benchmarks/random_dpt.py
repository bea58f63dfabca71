"""Depth models of any size for benchmarks: what they cost does not depend on their weights."""

from __future__ import annotations

from pathlib import Path


def write_dpt(folder: Path, *, hidden_size: int, num_layers: int, side: int) -> None:
    """A plain DPT with random weights, in HuggingFace format.

    Args:
        folder: gets model and image processor.
        hidden_size: of the transformer; 768 is a ViT-B, 1024 a ViT-L.
        num_layers: a multiple of 4.
        side: of the square input in pixels.
    """
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    width = hidden_size // 4
    config = DPTConfig(
        hidden_size=hidden_size, num_hidden_layers=num_layers, intermediate_size=4 * hidden_size,
        num_attention_heads=max(hidden_size // 64, 2), image_size=side, patch_size=16,
        backbone_out_indices=[num_layers * k // 4 - 1 for k in range(1, 5)], is_hybrid=False,
        neck_hidden_sizes=[width, 2 * width, 4 * width, 4 * width], fusion_hidden_size=width,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
