"""Attention for bf16 on a CPU: two batched products with a softmax between them.

torch's fused attention computes bf16 no faster than fp32 on a CPU (34 ms for 4 images of 577 tokens
with 12 heads); oneDNN's bf16 products do it in 23 (docs/cache-performance.md). Softmax weights are
rounded to bf16, as every other value of such a network is.
"""

from __future__ import annotations

from typing import Any

NAME = "depthcache_bf16_cpu"
# Heads whose scores are made at once: enough for two threads, small enough to stay in the cache.
_HEADS_AT_ONCE = 2


def use_bf16_attention(network: Any) -> None:
    """Let a transformers network use `attend` wherever it dispatches its attention by name.

    Networks with an attention of their own (Swin V2, GLPN) stay as they are.

    Args:
        network: a transformers model whose weights are bf16 and on a CPU.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    for module in network.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Any = None,
    **options: Any,
) -> tuple[Any, None]:
    """softmax(query · keyᵀ · scaling) · value, in the form that transformers calls.

    Args:
        module: the calling layer.
        query: (N, heads, tokens, size) bf16.
        key: as query.
        value: as query.
        attention_mask: with one, as with dropout, a bias, causality or another precision,
            transformers' own function answers.
        scaling: of the scores; None means 1 / √size.
        dropout: of the weights.
        is_causal: None asks the layer, as transformers does.
        position_bias: added to the scores.
        options: further ones of transformers.

    Returns:
        (N, tokens, heads, size), and None in place of the weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_plain = attention_mask is None and position_bias is None and not causal and dropout == 0.0
    is_bf16_on_cpu = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if not (is_plain and is_bf16_on_cpu and key.shape == query.shape):
        output, _ = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **options,
        )
        return output, None
    num_images, num_heads, num_tokens, size = query.shape
    factor = size**-0.5 if scaling is None else scaling
    output = query.new_empty(num_images, num_tokens, num_heads, value.shape[-1])
    for image in range(num_images):
        q = (query[image] * factor).contiguous()
        k, v = key[image].transpose(-1, -2).contiguous(), value[image].contiguous()
        for first in range(0, num_heads, _HEADS_AT_ONCE):
            heads = slice(first, first + _HEADS_AT_ONCE)
            weights = torch.bmm(q[heads], k[heads]).softmax(-1)
            output[image, :, heads] = torch.bmm(weights, v[heads]).transpose(0, 1)
    return output, None
