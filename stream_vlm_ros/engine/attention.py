"""Attention over a memory in parts, and the vision tower's, registered with transformers by name.

Softmax attention over a set of keys can be computed part by part and merged by log-sum-exp. What
is already in the stream needs no causal mask and may lie in any order, so each part is one plain
call of the fastest kernel there is, no mask is ever built, and nothing is copied together first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from .long_past import Kernel, LongPast
from .merging import PartMerger, Seen, merged_plainly

# The vision tower hands over its sequence lengths only to a name that contains "flash".
VISION_ATTENTION = "stream_vlm_flash_varlen"

LONG_PAST = LongPast()
MERGER = PartMerger()

# By `attend_few` on a CPU: as long as there are no more keys than these, nor more scores a head. A
# fused kernel takes as long there; with twice as many it is up to twice as fast.
FEW_KEYS, FEW_SCORES = 2**12, 2**15

# a query as rotated to see a part, and the part's keys and values
SeenFrom = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool = False,
) -> list[Seen]:
    """Attention of ``query [b, h, n, d]``, as attention over disjoint sets of the keys.

    Args:
        key: ``[b, h, m, d]``, like ``value``; ``m == n`` where ``causal``.

    Returns:
        For each set the output ``[b, h, n, d]`` in the query's dtype and the log-sum-exp
        ``[b, h, n]`` in float32.
    """
    aten = torch.ops.aten
    if not query.is_cuda:
        seen = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scaling
        )
        return [seen]
    if query.dtype in (torch.float16, torch.bfloat16):
        return attend_many(query, key, value, scaling, LONG_PAST, _flash, causal)
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scaling
    )
    return [(out[0], out[1][..., : query.shape[2]].contiguous())]  # it pads them to 32


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool
) -> Seen:
    out = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scaling
    )
    return out[0], out[1]


def attend_many(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    long_past: LongPast,
    other: Kernel,
    causal: bool = False,
) -> list[Seen]:
    """Like `attend`: by ``long_past`` what it takes, by ``other`` the rest."""
    if causal:
        if not long_past.takes(query, key, causal):
            return [other(query, key, value, scaling, causal)]
        return [long_past.attend(query, key, value, scaling, other, causal)]
    found, begin = [], 0
    for count in long_past.pieces(query, key):
        of = slice(begin, begin + count)
        found.append(long_past.attend(query, key[:, :, of], value[:, :, of], scaling, other))
        begin += count
    if begin < key.shape[2]:
        found.append(other(query, key[:, :, begin:], value[:, :, begin:], scaling, False))
    return found


def merge(parts: Sequence[Seen]) -> torch.Tensor:
    """Attention over the union of disjoint sets of keys, from the attention over each.

    ``softmax`` over a union weighs each part's output by ``exp(lse_part - lse_union)``.

    Args:
        parts: outputs ``[..., d]`` and their log-sum-exp ``[...]``.
    """
    first = parts[0][0]
    if len(parts) == 1:
        return first
    if first.is_cuda and (merged := MERGER.merge(parts)) is not None:
        return merged
    return merged_plainly(parts)


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
) -> list[Seen]:
    """Attention of a batch over one part that all its sequences see entirely.

    Args:
        query: ``[b, h, n, d]``.
        key: ``[kv_heads, m, d]``, like ``value``.

    Returns:
        As `attend_own`.
    """
    batch, heads, length, _ = query.shape
    kv_heads = key.shape[0]
    apart = (batch, heads // kv_heads, length)
    seen = attend(_grouped(query, kv_heads), key.unsqueeze(0), value.unsqueeze(0), scaling)
    return [
        (
            out[0].unflatten(1, apart).transpose(0, 1),
            lse[0].unflatten(1, apart).transpose(0, 1),
        )
        for out, lse in seen
    ]


def attend_own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> list[Seen]:
    """Causal attention of the last ``n`` tokens of each sequence over that sequence, in parts.

    Args:
        query: ``[b, h, n, d]``.
        key: ``[b, kv_heads, m, d]`` with ``m >= n``: the tokens before, then the new ones.

    Returns:
        For each part the output ``[b, kv_heads, h / kv_heads, n, d]`` and its log-sum-exp.
    """
    heads, new = query.shape[1:3]
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if new == 1:  # no mask: the queries that share a KV head are rows of one product
        rows = query[:, :, 0].unflatten(1, (kv_heads, groups))
        return [
            (out.unsqueeze(3), lse.unsqueeze(3)) for out, lse in attend(rows, key, value, scaling)
        ]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    before = key.shape[2] - new
    parts = attend(query, key[:, :, before:], value[:, :, before:], scaling, causal=True)
    if before:
        parts = [*parts, *attend(query, key[:, :, :before], value[:, :, :before], scaling)]
    apart = (kv_heads, groups)
    return [(out.unflatten(1, apart), lse.unflatten(1, apart)) for out, lse in parts]


def attend_stream(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    shared: Sequence[SeenFrom],
) -> torch.Tensor:
    """Attention over a fork's own tokens and parts of the stream.

    Args:
        query: ``[b, h, n, d]``.
        key: ``[b, kv_heads, m, d]``, like ``value``: own tokens, the new ones last.
        shared: for each part the query as rotated to see it, its keys and its values.

    Returns:
        ``[b, n, h, d]``.
    """
    keys = key.shape[2] + sum(part[0].shape[1] for _, part in shared)
    few = keys <= FEW_KEYS and keys * query.shape[2] <= FEW_SCORES and len(query) == 1
    if few and query.device.type == "cpu" and query.dtype == torch.float32:
        parts = [(query, (key[0], value[0])), *shared]
        return attend_few(parts, scaling).transpose(1, 2)
    seen = attend_own(query, key, value, scaling)
    for seen_from, part in shared:
        seen += attend_shared(seen_from, *part, scaling)
    return merge(seen).flatten(1, 2).transpose(1, 2)


def attend_few(parts: Sequence[SeenFrom], scaling: float) -> torch.Tensor:
    """Attention of one sequence's newest ``n`` tokens, by plain matrix products.

    For few tokens on a CPU: a fused kernel has no tile to fill, and a call a part and the merging
    of what they return take longer than all scores side by side and one softmax.

    Args:
        parts: for each the query ``[1, h, n, d]``, keys and values ``[kv_heads, m, d]``; first the
            sequence's own tokens, of which each of the ``n`` newest sees those up to itself.

    Returns:
        ``[1, h, n, d]``.
    """
    query, (own, _) = parts[0]
    kv_heads, length, size = own.shape
    new = query.shape[2]
    # The queries that share a KV head are rows of one product.
    scores = [
        torch.bmm(seen_from.reshape(kv_heads, -1, size), keys.mT) for seen_from, (keys, _) in parts
    ]
    if new > 1:
        later = torch.ones(new, new, dtype=torch.bool).triu(1)
        scores[0].unflatten(1, (-1, new))[..., length - new :].masked_fill_(later, -torch.inf)
    weights = torch.cat(scores, dim=-1).mul_(scaling).softmax(-1)
    of_parts = weights.split([keys.shape[1] for _, (keys, _) in parts], dim=-1)
    out = torch.bmm(of_parts[0], parts[0][1][1])
    for weight, (_, (_, values)) in zip(of_parts[1:], parts[1:], strict=True):
        out.baddbmm_(weight, values)
    return out.view(query.shape)


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
        most = int(max_length_q)
        sequences = len(cu_seq_lens_q) - 1
        if sequences * most == query.shape[2]:  # all of one length
            q, k, v = (
                x[0].unflatten(1, (sequences, most)).transpose(0, 1) for x in (query, key, value)
            )
            if LONG_PAST.takes(q, k):
                out, _ = LONG_PAST.attend(q, k, v, scaling, _flash)
                return out.transpose(1, 2).flatten(0, 1).unsqueeze(0), None
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [n, h, d]
        lengths = cu_seq_lens_q.to(torch.int32)
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


AttentionInterface.register(VISION_ATTENTION, varlen_attention)
