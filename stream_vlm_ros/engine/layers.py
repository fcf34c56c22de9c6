"""A layer of either tower in two halves, before its attention and after it.

So that each can be compiled as one, and the attention between them be ours. The library's own
modules in the order of ``Qwen2_5_VLDecoderLayer.forward`` and ``Qwen2_5_VLVisionBlock.forward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .packed import Linear, PackedLayer, feed_forward, product, project
from .positions import rotate


def before_attention(
    layer: Any,
    packed: PackedLayer | None,
    normed: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """From hidden states behind the layer's norm, ``[n, hidden]``, to what attention needs.

    Returns:
        Queries ``[heads, n, head_dim]``; keys and values ``[2, kv_heads, n, head_dim]``.
    """
    attention = layer.self_attn
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    projected = project(attention, packed, normed, functional.linear)
    query, key, value = (
        x.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for x in projected.split([projection.out_features for projection in projections], dim=-1)
    )
    return rotate(query, cos, sin), torch.stack([rotate(key, cos, sin), value])


def after_attention(
    layer: Any,
    packed: PackedLayer | None,
    norm: torch.nn.Module,
    hidden: torch.Tensor,
    attended: torch.Tensor,
    linear: Linear = functional.linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer from what was ``attended [n, heads, head_dim]`` on, and the norm that follows it.

    Returns:
        Hidden states ``[n, hidden]``, and the same behind that norm.
    """
    hidden = _sum(hidden, product(layer.self_attn.o_proj, attended.flatten(1), linear))
    normed = layer.post_attention_layernorm(hidden)
    hidden = _sum(hidden, feed_forward(layer.mlp, normed, packed, linear))
    return hidden, norm(hidden)


def before_vision_attention(
    block: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From a vision block's input ``[patches, hidden]`` to what its attention needs.

    Args:
        cos, sin: ``[patches, head_dim]``.

    Returns:
        Query, key and value, each ``[patches, heads, head_dim]``.
    """
    attention = block.attn
    together = attention.qkv(block.norm1(hidden))
    query, key, value = together.unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    cos, sin = cos[:, None], sin[:, None]
    return rotate(query, cos, sin), rotate(key, cos, sin), value


def after_vision_attention(
    block: Any, hidden: torch.Tensor, attended: torch.Tensor
) -> torch.Tensor:
    """A vision block from its input and what was ``attended [patches, heads, head_dim]`` on."""
    hidden = hidden + block.attn.proj(attended.flatten(1))
    return hidden + block.mlp(block.norm2(hidden))


def _sum(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Their sum, rounded as ever.

    In float32 on the way, so that the compiler does not take it into the matrix product before it,
    for which it first has to copy one of them.
    """
    return (one.float() + other.float()).to(one.dtype)
