"""bf16 attention on a CPU is the attention of transformers, rounded where bf16 rounds."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from depthcache.stage_one.cpu_attention import attend


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_images, num_heads, num_tokens, size = shape
    # As layers hand them over: tokens before heads in memory.
    stored = (num_images, num_tokens, num_heads, size)
    return [torch.randn(stored, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]


@pytest.mark.parametrize("shape", [(2, 12, 37, 16), (1, 3, 5, 8), (3, 1, 1, 4)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_values_are_those_of_exact_attention(shape: tuple[int, ...], scaling: float | None) -> None:
    query, key, value = _inputs(shape, torch.bfloat16)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), scale=scaling
    ).transpose(1, 2)
    layer = torch.nn.Module()
    actual, weights = attend(layer, query, key, value, None, scaling=scaling, is_causal=False)
    assert weights is None
    assert actual.dtype == torch.bfloat16
    assert actual.shape == exact.shape
    # Weights and scores are rounded to 8 bits each.
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=0.03)
    assert (actual.double() - exact).square().mean().sqrt() < 0.01 * exact.std() + 1e-3


@pytest.mark.parametrize("case", ["fp32", "mask", "position bias", "causal", "a causal layer"])
def test_what_is_not_plain_gets_transformers_own(case: str) -> None:
    dtype = torch.float32 if case == "fp32" else torch.bfloat16
    query, key, value = _inputs((2, 4, 9, 8), dtype)
    scores = torch.randn(2, 4, 9, 9).to(dtype)
    layer = torch.nn.Module()
    options = {
        "is_causal": None if case == "a causal layer" else case == "causal",
        "position_bias": scores if case == "position bias" else None,
        "scaling": 0.5,
    }
    mask = scores if case == "mask" else None
    expected, _ = sdpa_attention_forward(layer, query, key, value, mask, **options)
    actual, _ = attend(layer, query, key, value, mask, **options)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
