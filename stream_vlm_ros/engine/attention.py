"""Attention over a memory in parts, registered with transformers by name.

Softmax attention over a set of keys can be computed part by part and merged by log-sum-exp. What
is already in the stream needs no causal mask and may lie in any order, so each part is one plain
call of the fastest kernel there is, no mask is ever built, and nothing is copied together first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .long_past import Kernel, LongPast
from .positions import rotate

if TYPE_CHECKING:
    from .forks import Fork

STREAM_ATTENTION = "stream_vlm"
# The vision tower hands over its sequence lengths only to a name that contains "flash".
VISION_ATTENTION = "stream_vlm_flash_varlen"

LONG_PAST = LongPast()


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of ``query [b, h, n, d]`` over one part, and its log-sum-exp.

    Args:
        key: ``[b, h, m, d]``, like ``value``; ``m == n`` where ``causal``.

    Returns:
        Output ``[b, h, n, d]`` in the query's dtype and log-sum-exp ``[b, h, n]`` in float32.
    """
    aten = torch.ops.aten
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scaling
        )
    if query.dtype in (torch.float16, torch.bfloat16):
        if causal:
            return _flash(query, key, value, scaling, causal=True)
        return attend_long(query, key, value, scaling, LONG_PAST, _flash)
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scaling
    )
    return out[0], out[1][..., : query.shape[2]]  # that kernel pads the log-sum-exp to 32


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scaling
    )
    return out[0], out[1]


def attend_long(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    long_past: LongPast,
    other: Kernel,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `attend` without a mask: by ``long_past`` what it takes, by ``other`` the rest."""
    front = long_past.tokens(query, key)
    if not front:
        return other(query, key, value, scaling)
    result = long_past.attend(query, key[:, :, :front], value[:, :, :front], scaling, other)
    if front < key.shape[2]:
        rest = other(query, key[:, :, front:], value[:, :, front:], scaling)
        result = merge(result, rest)
    return result


Seen = tuple[torch.Tensor, torch.Tensor]  # attention over a part, and its log-sum-exp


def merge(*parts: Seen) -> Seen:
    """Attention over the union of disjoint parts, from the attention over each."""
    if len(parts) == 1:
        return parts[0]
    return merged_output(*parts), torch.stack([lse for _, lse in parts]).logsumexp(0)


def merged_output(*parts: Seen) -> torch.Tensor:
    """The output of `merge` alone.

    ``softmax`` over a union weighs each part's output by ``exp(lse_part - lse_union)``.
    """
    first = parts[0][0]
    if len(parts) == 1:
        return first
    weights = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(-1)
    out = first * weights[0]  # in float32, as the weights are
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        out.addcmul_(part, weight)
    return out.to(first.dtype)


def _grouped(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """``[b, h, n, d]`` to ``[1, kv_heads, b * h / kv_heads * n, d]``.

    All queries that share a KV head, of every sequence of the batch, as rows of one product: the
    part is read once, and its keys are not repeated.
    """
    batch, heads, length, size = query.shape
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, length, size)
    return grouped.transpose(0, 1).reshape(1, kv_heads, -1, size)


def attend_shared(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a batch over one part that all its sequences see entirely.

    Args:
        query: ``[b, h, n, d]``.
        key: ``[kv_heads, m, d]``, like ``value``.
    """
    batch, heads, length, size = query.shape
    kv_heads = key.shape[0]
    out, lse = attend(_grouped(query, kv_heads), key.unsqueeze(0), value.unsqueeze(0), scaling)
    shape = (kv_heads, batch, heads // kv_heads, length)
    out = out.reshape(*shape, size).transpose(0, 1).reshape(batch, heads, length, size)
    return out, lse.reshape(shape).transpose(0, 1).reshape(batch, heads, length)


def attend_own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> list[Seen]:
    """Causal attention of the last ``n`` tokens of each sequence over that sequence, in parts.

    Args:
        query: ``[b, h, n, d]``.
        key: ``[b, kv_heads, m, d]`` with ``m >= n``: the tokens before, then the new ones.
    """
    batch, heads, new, size = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if new == 1:  # no mask: the queries that share a KV head are rows of one product
        out, lse = attend(query.reshape(batch, kv_heads, groups, size), key, value, scaling)
        return [(out.reshape(query.shape), lse.reshape(batch, heads, 1))]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    before = key.shape[2] - new
    parts = [attend(query, key[:, :, before:], value[:, :, before:], scaling, causal=True)]
    if before:
        parts.append(attend(query, key[:, :, :before], value[:, :, :before], scaling))
    return parts


def stream_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    fork: Fork | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The language model's attention: a fork's own tokens, and the parts of the stream it reads.

    Args:
        query: ``[b, h, n, d]``, rotated in the frame of the stream's newest run.
        key: ``[b, kv_heads, m, d]``: the fork's own tokens, the new ones last.
        fork: what is read besides; without one this is the library's own attention.

    Returns:
        ``[b, n, h, d]`` and no weights.
    """
    if fork is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    seen = attend_own(query, key, value, scaling)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    for part in fork.parts:
        seen_from = query if part.turn is None else rotate(query, *part.turn)
        seen.append(attend_shared(seen_from, *part.of(layer), scaling))
    return merged_output(*seen).transpose(1, 2), None


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The vision tower's attention, within each of many short sequences laid end to end.

    Args:
        query: ``[1, h, n, d]``, like ``key`` and ``value``.
        cu_seq_lens_q: ``[sequences + 1]``, where each begins and the last ends.

    Returns:
        ``[1, n, h, d]`` and no weights.
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [n, h, d]
        lengths = cu_seq_lens_q.to(torch.int32)
        most = int(max_length_q)
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, lengths, lengths, most, most, 0.0, False, False, scale=scaling
        )[0]
        return out.unsqueeze(0), None
    out = torch.empty_like(query.transpose(1, 2))  # [1, n, h, d]
    for rows in _rows_by_length(cu_seq_lens_q):  # [sequences of that length, length]
        q, k, v = (x[0][:, rows].transpose(0, 1) for x in (query, key, value))
        alike = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        out[0, rows] = alike.transpose(1, 2)
    return out, None


def _rows_by_length(cu_seq_lens: torch.Tensor) -> list[torch.Tensor]:
    """Row numbers of all sequences, one ``[sequences, length]`` for each length that occurs."""
    starts, lengths = cu_seq_lens[:-1], cu_seq_lens.diff()
    return [
        starts[lengths == length, None] + torch.arange(int(length), device=starts.device)
        for length in lengths.unique().tolist()
        if length
    ]


AttentionInterface.register(STREAM_ATTENTION, stream_attention)
# Only for plain calls of the model; a streaming forward builds no mask.
AttentionMaskInterface.register(STREAM_ATTENTION, sdpa_mask)
AttentionInterface.register(VISION_ATTENTION, varlen_attention)
