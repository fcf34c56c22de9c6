# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Attention by torch's own kernels: of a pass over a fork, and within windows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from stream_vlm_ros.engine.cache.mrope import rotate

from .base import AttnState, KVPart, LayerAttention, Readout, RopeOffset, merge_attn_states
from .cudnn import CUDNN_PREFILL, CudnnPrefill, Kernel
from .flash3 import FLASH3_PREFILL

if TYPE_CHECKING:
    from stream_vlm_ros.engine.cache.requests import Fork
    from stream_vlm_ros.engine.model.base import LayerFunctions

# By `attend_few` on a CPU: as long as there are no more keys than these, nor more scores a head. A
# fused kernel takes as long there; with twice as many it is up to twice as fast.
FEW_KEYS, FEW_SCORES = 2**12, 2**15

# a query as rotated to see a part, and the part's keys and values, [2, kv_heads, m, d]
SeenFrom = tuple[torch.Tensor, torch.Tensor]


class ForkAttention(LayerAttention):
    """A fork's newest tokens over its own and over the parts of the memory that it reads.

    Args:
        kv_heads: of the model.
        scaling: of the scores.
        functions: how the rotations run.
        batch: sequences of one length, laid end to end, that read the same parts.
        readout: what is to be read before it is rotated.
    """

    def __init__(
        self,
        fork: Fork,
        kv_heads: int,
        scaling: float,
        functions: LayerFunctions,
        batch: int = 1,
        readout: Readout | None = None,
    ):
        self._own, self._kv_heads, self._scaling = fork.layers, kv_heads, scaling
        self._rotate, self._batch, self._readout = functions.rotate, batch, readout
        # Of an empty part a kernel divides by nothing, and takes the process with it.
        found, of_part = _distinct_offsets([part for part in fork.parts if part.length])
        self._offsets = functions.offsets(found, fork.own())
        self._parts = [(at, part.layers()) for at, part in of_part]

    def __call__(
        self, layer: int, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        if self._readout is not None:
            self._readout.take(layer, qkv, self._kv_heads, cos.shape[-1])
        queries, *own = self._rotate(qkv, cos, sin, self._offsets, self._kv_heads)
        queries, own = [self._apart(x) for x in queries], [self._apart(x) for x in own]
        keys, values = self._own[layer].update(*own)
        shared = [(queries[at], layers[layer]) for at, layers in self._parts]
        attended = attend_stream(queries[0], keys, values, self._scaling, shared)
        # As its projection wants it in any case: kernels leave it in this order or that, for each
        # of which the compiler would begin again.
        return attended.reshape(len(qkv), -1)

    def _apart(self, x: torch.Tensor) -> torch.Tensor:
        """``[heads, batch * n, head_dim]`` to ``[batch, heads, n, head_dim]``."""
        if self._batch == 1:
            return x.unsqueeze(0)
        return x.unflatten(1, (self._batch, -1)).transpose(0, 1)


def _distinct_offsets(parts: Sequence[KVPart]) -> tuple[list[RopeOffset], list[tuple[int, KVPart]]]:
    """The offsets that the parts want, and each part with the number of its own; 0 is none."""
    found: list[RopeOffset] = []
    of_part = []
    for part in parts:
        if part.rope_offset is not None:
            found.append(part.rope_offset)
        of_part.append((0 if part.rope_offset is None else len(found), part))
    return found, of_part


def rotate_qkv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    offsets: Sequence[RopeOffset],
    kv_heads: int,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Queries and keys rotated to where their tokens stand, and queries further, for each offset.

    Args:
        qkv, cos, sin: as `LayerAttention` is given them.

    Returns:
        Queries ``[heads, n, head_dim]``, as they are and then by each offset; keys; values.
    """
    # Queries and keys lie side by side: one rotation, where each operation costs by itself.
    heads = qkv.view(len(qkv), -1, cos.shape[-1]).transpose(0, 1)
    rotated = rotate(heads[:-kv_heads], cos, sin)
    query = rotated[:-kv_heads]
    further = [rotate(query, *offset) for offset in offsets]
    return [query, *further], rotated[-kv_heads:], heads[-kv_heads:]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool = False,
) -> list[AttnState]:
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
        if FLASH3_PREFILL.takes(query, causal):
            return [FLASH3_PREFILL.attend(query, key, value, scaling, flash, causal)]
        return attend_many(query, key, value, scaling, CUDNN_PREFILL, flash, causal)
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scaling
    )
    return [(out[0], out[1][..., : query.shape[2]].contiguous())]  # it pads them to 32


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool
) -> AttnState:
    out = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scaling
    )
    return out[0], out[1]


def attend_many(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    prefill: CudnnPrefill,
    other: Kernel,
    causal: bool = False,
) -> list[AttnState]:
    """Like `attend`: by ``prefill`` what it takes, by ``other`` the rest."""
    if causal:
        if not prefill.takes(query, key, causal):
            return [other(query, key, value, scaling, causal)]
        return [prefill.attend(query, key, value, scaling, other, causal)]
    found, begin = [], 0
    for count in prefill.pieces(query, key):
        of = slice(begin, begin + count)
        found.append(prefill.attend(query, key[:, :, of], value[:, :, of], scaling, other))
        begin += count
    if begin < key.shape[2]:
        found.append(other(query, key[:, :, begin:], value[:, :, begin:], scaling, False))
    return found


def _grouped(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """``[b, h, n, d]`` to ``[1, kv_heads, b * h / kv_heads * n, d]``.

    All queries that share a KV head, of every sequence of the batch, as rows of one product: the
    part is read once, and its keys are not repeated.
    """
    batch, heads, length, size = query.shape
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, length, size)
    return grouped.transpose(0, 1).reshape(1, kv_heads, -1, size)


def attend_shared(query: torch.Tensor, part: torch.Tensor, scaling: float) -> list[AttnState]:
    """Attention of a batch over one part that all its sequences see entirely.

    Args:
        query: ``[b, h, n, d]``.
        part: its keys and values, ``[2, kv_heads, m, d]``.

    Returns:
        As `attend_own`.
    """
    batch, heads, length, _ = query.shape
    kv_heads = part.shape[1]
    apart = (batch, heads // kv_heads, length)
    key, value = part.unsqueeze(1).unbind()
    seen = attend(_grouped(query, kv_heads), key, value, scaling)
    return [
        (
            out[0].unflatten(1, apart).transpose(0, 1),
            lse[0].unflatten(1, apart).transpose(0, 1),
        )
        for out, lse in seen
    ]


def attend_own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> list[AttnState]:
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
    keys = key.shape[2] + sum(part.shape[2] for _, part in shared)
    few = keys <= FEW_KEYS and keys * query.shape[2] <= FEW_SCORES and len(query) == 1
    if few and query.device.type == "cpu" and query.dtype == torch.float32:
        return attend_few(query, key[0], value[0], scaling, shared).transpose(1, 2)
    seen = attend_own(query, key, value, scaling)
    for seen_from, part in shared:
        seen += attend_shared(seen_from, part, scaling)
    return merge_attn_states(seen).flatten(1, 2).transpose(1, 2)


def attend_few(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    shared: Sequence[SeenFrom],
) -> torch.Tensor:
    """`attend_stream` of one sequence by plain matrix products, as ``[1, h, n, d]``.

    For few tokens on a CPU: a fused kernel has no tile to fill, and a call a part and the merging
    of what they return take longer than all scores side by side and one softmax.

    Args:
        key: ``[kv_heads, m, d]``, like ``value``.
    """
    kv_heads, length, size = key.shape
    new = query.shape[2]
    parts = [part.unbind() for _, part in shared]
    # The queries that share a KV head are rows of one product.
    scores = [torch.bmm(query.reshape(kv_heads, -1, size), key.mT)]
    for (seen_from, _), (keys, _) in zip(shared, parts, strict=True):
        scores.append(torch.bmm(seen_from.reshape(kv_heads, -1, size), keys.mT))
    if new > 1:
        later = torch.ones(new, new, dtype=torch.bool).triu(1)
        scores[0].unflatten(1, (-1, new))[..., length - new :].masked_fill_(later, -torch.inf)
    weights = torch.cat(scores, dim=-1).mul_(scaling).softmax(-1)
    own, *of_parts = weights.split([x.shape[-1] for x in scores], dim=-1)
    out = torch.bmm(own, value)
    for weight, (_, values) in zip(of_parts, parts, strict=True):
        out.baddbmm_(weight, values)
    return out.view(query.shape)


class Sequences(NamedTuple):
    """Short sequences laid end to end, for attention within each.

    Attributes:
        starts: ``[sequences + 1]`` int32, where each begins and the last ends.
        longest: of their lengths. (A plain number: a tensor would make the host wait.)
        rows: ``[sequences, length]`` numbers of their rows, for each length that occurs; empty
            where all are of one length.
    """

    starts: torch.Tensor
    longest: int
    rows: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, lengths: torch.Tensor, device: torch.device) -> Sequences:
        """Sequences of these lengths ``[sequences]``, none of them 0."""
        starts = functional.pad(lengths.cumsum(0), (1, 0))
        kinds = lengths.unique().tolist()
        rows = [
            (starts[:-1][lengths == length, None] + torch.arange(length)).to(device)
            for length in (kinds if len(kinds) > 1 else ())
        ]
        return cls(starts.int().to(device), max(kinds), tuple(rows))


def attend_within(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    sequences: Sequences,
) -> torch.Tensor:
    """Attention within each of many short sequences, every token seeing its own entirely.

    Args:
        query: ``[n, h, d]``, like ``key`` and ``value``.

    Returns:
        ``[n, h, d]``.
    """
    starts, longest, rows = sequences
    given = (query, key, value)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        if not rows:
            q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in given)
            if CUDNN_PREFILL.takes(q, k):
                out, _ = CUDNN_PREFILL.attend(q, k, v, scaling, flash)
                return out.transpose(1, 2).flatten(0, 1)
        return torch.ops.aten._flash_attention_forward(
            *given, starts, starts, longest, longest, 0.0, False, False, scale=scaling
        )[0]
    if not rows:
        q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in given)
        out = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        return out.transpose(1, 2).flatten(0, 1)
    out = torch.empty_like(query)
    for some in rows:
        q, k, v = (x[some].transpose(1, 2) for x in given)
        alike = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        out[some] = alike.transpose(1, 2)
    return out
