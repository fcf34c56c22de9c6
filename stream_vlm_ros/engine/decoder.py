"""The language model's layers over a fork: one loop, its halves called plainly or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from .attention import attend_stream
from .forks import Fork, Part
from .layers import after_attention
from .packed import PackedLayer, project
from .positions import rotate

LEAST_TOKENS = 64  # fewer are not a chunk

# cos and sin, [head_dim] each
Turn = tuple[torch.Tensor, torch.Tensor]


class Halves(NamedTuple):
    """How the loop calls what lies between two attentions.

    Attributes:
        norm: a norm's module and hidden states, to the normed ones.
        turns: the turns by which queries are to be rotated further, and a cos as `before_attention`
            takes it; to what ``before`` takes of them.
        before: as `before_attention`, with the turns behind. Its queries are many: as they are, and
            then by each turn, ``[heads, n, head_dim]``; after them keys and values, each
            ``[kv_heads, n, head_dim]``.
        after: as `after_attention`.
    """

    norm: Callable[[Any, torch.Tensor], torch.Tensor]
    turns: Callable[[list[Turn], torch.Tensor], Any]
    before: Callable[..., tuple[Sequence[torch.Tensor] | torch.Tensor, ...]]
    after: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def run_layers(
    text: Any,
    halves: Halves,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    fork: Fork,
    batch: int = 1,
) -> torch.Tensor:
    """Append tokens to a fork: the layers and the last norm, as in ``Qwen2_5_VLTextModel.forward``.

    Args:
        text: the library's language model.
        hidden: embeddings ``[batch * n, hidden]``, one sequence behind the other.
        positions: ``[3, 1, batch * n]``.

    Returns:
        Hidden states after the last norm, like ``hidden``.
    """
    layers = text.layers
    cos, sin = text.rotary_emb(hidden, positions)
    found, of_part = _distinct_turns(fork.parts)
    turns = halves.turns(found, cos)
    many = len(hidden) >= LEAST_TOKENS
    normed = halves.norm(layers[0].input_layernorm, hidden)
    following = [*(layer.input_layernorm for layer in layers[1:]), text.norm]
    for number, (layer, norm) in enumerate(zip(layers, following, strict=True)):
        packed = PackedLayer.kept(layer)
        queries, own = halves.before(layer, packed, normed, cos, sin, turns)
        queries = [_apart(query, batch) for query in queries]
        keys, values = fork.layers[number].update(*(_apart(x, batch) for x in own))
        shared = [(queries[at], part.of(number)) for at, part in of_part]
        scaling = layer.self_attn.scaling
        attended = attend_stream(queries[0], keys, values, scaling, shared).flatten(0, 1)
        # As its projection wants it in any case: kernels leave it in this order or that, for each
        # of which the compiler would begin anew.
        attended = attended.contiguous()
        # With many rows the halves of one product are slow to split.
        hidden, normed = halves.after(layer, None if many else packed, norm, hidden, attended)
    return normed


def _apart(x: torch.Tensor, batch: int) -> torch.Tensor:
    """``[heads, batch * n, head_dim]`` to ``[batch, heads, n, head_dim]``."""
    return x.unsqueeze(0) if batch == 1 else x.unflatten(1, (batch, -1)).transpose(0, 1)


def _distinct_turns(parts: Sequence[Part]) -> tuple[list[Turn], list[tuple[int, Part]]]:
    """The turns that the parts want, and each part with the number of its own; 0 is none at all."""
    found: list[Turn] = []
    of_part = []
    for part in parts:
        if part.turn is not None:
            found.append(part.turn)
        of_part.append((0 if part.turn is None else len(found), part))
    return found, of_part


def _before_attention(
    layer: Any,
    packed: PackedLayer | None,
    normed: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turns: list[Turn],
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    # Queries and keys lie side by side: one rotation, where each operation costs by itself.
    size = layer.self_attn.head_dim
    together = project(layer.self_attn, packed, normed, functional.linear)
    heads = together.unflatten(-1, (-1, size)).transpose(0, 1)
    kv_heads = layer.self_attn.v_proj.out_features // size
    rotated = rotate(heads[:-kv_heads], cos, sin)
    query, own = rotated[:-kv_heads], (rotated[-kv_heads:], heads[-kv_heads:])
    return [query, *(rotate(query, *turn) for turn in turns)], own


PLAIN = Halves(
    norm=lambda norm, hidden: norm(hidden),
    turns=lambda turns, like: turns,
    before=_before_attention,
    after=after_attention,
)
