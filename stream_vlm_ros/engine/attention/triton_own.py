# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Triton kernels for what a step computes around another kernel's attention over its memory.

Before it, queries are rotated to see each part; behind it, a step's own tokens are attended to and
all is merged by log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .base import AttnState
from .step import MAX_PARTS, StepInputs, StepMemory
from .triton_decode import _LOG2_E, _masked, _rotated

_PARTS = tl.constexpr(MAX_PARTS)
_FACTOR = tl.constexpr(_LOG2_E)
_FEW_ROWS = 2048  # up to so many, tiles are small, so that more programs share them


@triton.jit
def _turn_kernel(
    queries,  # [heads, requests * size, D]
    lengths,  # [requests * MAX_PARTS]
    offsets,  # [requests, 2, MAX_PARTS, D] in float32
    scalars,  # [requests, 4]
    out,  # [requests * MAX_PARTS * size, heads, D]
    query_head,  # strides
    query_token,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    token, part = tl.program_id(0), tl.program_id(1)  # part: of all requests
    size = tl.num_programs(0)
    request = part // _PARTS
    # Of a part that is not there nothing is read. (Nor of padding, which is zero.)
    if tl.load(lengths + part) == 0:
        return
    head, dim = tl.arange(0, HEADS_BLOCK), tl.arange(0, D)
    there = head < HEADS
    real = there & (token < tl.load(scalars + request * 4))
    at = queries + head * query_head + (request * size + token) * query_token
    offset = offsets + request * 2 * _PARTS * D + (part % _PARTS) * D
    rotated = _rotated(at, offset, real, D)
    to = out + ((part * size + token) * HEADS + head)[:, None].to(tl.int64) * D + dim[None, :]
    tl.store(to, rotated, mask=there[:, None])


def turn(queries: torch.Tensor, memory: StepMemory, inputs: StepInputs) -> torch.Tensor:
    """Queries as each part is seen: ``[requests * MAX_PARTS * size, heads, head_dim]``.

    Those of parts that are not there are not written.

    Args:
        queries: ``[heads, requests * size, head_dim]``.
    """
    heads, _, size = queries.shape
    assert queries.stride(2) == 1
    parts = memory.requests * MAX_PARTS
    out = queries.new_empty(parts * inputs.size, heads, size)
    with torch.cuda.device_of(queries):  # Triton launches on the current one
        _turn_kernel[inputs.size, parts](
            queries,
            memory.lengths,
            memory.offsets,
            inputs.scalars,
            out,
            *queries.stride()[:2],
            HEADS=heads,
            HEADS_BLOCK=triton.next_power_of_2(heads),
            D=size,
            num_warps=2,
        )
    return out


@triton.jit
def _own_kernel(
    queries,  # [heads, requests * size, D]
    tail,  # [2, kv_heads, slots, D]
    begins,  # [requests * size]
    slots,  # [requests * size]
    scalars,  # [requests, 4]
    lengths,  # [requests * MAX_PARTS]
    past,  # [requests * MAX_PARTS * size, heads, D]
    past_lse,  # [heads, requests * MAX_PARTS * size] in float32, natural
    out,  # [requests * size, heads, D]
    scale,  # to base 2
    size,
    query_head,  # strides
    query_token,
    tail_kind,
    tail_head,
    tail_slot,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of the rows that share a KV head: row ``r`` is query head ``r % GROUP`` of token
    ``r // GROUP``, as in `triton_decode`."""
    tile, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    requests = tl.num_programs(2)
    count = tl.load(scalars + request * 4).to(tl.int32)
    shared = tl.load(scalars + request * 4 + 1).to(tl.int32)
    before = tl.load(scalars + request * 4 + 2).to(tl.int32)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, dim = row // GROUP, tl.arange(0, D)
    real, there = token < count, token < size
    mine = request * size + token
    query_at = queries + (head * GROUP + row % GROUP) * query_head + mine * query_token
    query = tl.load(query_at[:, None] + dim[None, :], mask=real[:, None], other=0.0)
    begin = tl.load(begins + mine, mask=real, other=0).to(tl.int32)

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, D], tl.float32)
    first = tl.load(slots + request * size) - before
    keys = tail + head * tail_head + first * tail_slot
    high = before + tl.minimum(count, (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    high = tl.where(tile * BLOCK_M < count * GROUP, high, 0)  # of padding, none
    for block in range(0, high, BLOCK_N):
        # The step's own tokens: each sees none after it, and only its own text.
        own = (block + tl.arange(0, BLOCK_N) - before)[None, :]
        seen = (own <= token[:, None]) & ((own < shared) | (own >= begin[:, None]))
        most, total, sums = _masked(
            query, keys, keys + tail_kind, tail_slot, block, high, seen | (own < 0), most, total,
            sums, scale, D, BLOCK_N,
        )  # fmt: skip

    query_heads = KV_HEADS * GROUP
    number = head * GROUP + row % GROUP
    for part in range(_PARTS):
        if tl.load(lengths + request * _PARTS + part) > 0:
            at = (request * _PARTS + part) * size + token
            lse = tl.load(
                past_lse + number.to(tl.int64) * (requests * _PARTS * size) + at,
                mask=real,
                other=0.0,
            )
            lse = lse * _FACTOR
            values = tl.load(
                past + (at.to(tl.int64) * query_heads + number)[:, None] * D + dim[None, :],
                mask=real[:, None],
                other=0.0,
            )
            higher = tl.maximum(most, lse)
            zero = tl.where(higher == float("-inf"), 0.0, higher)
            weight, fade = tl.exp2(lse - zero), tl.exp2(most - zero)
            total = total * fade + weight
            sums = sums * fade[:, None] + values.to(tl.float32) * weight[:, None]
            most = higher

    sums = tl.where(real[:, None], sums / tl.where(total > 0.0, total, 1.0)[:, None], 0.0)
    to = out + (mine.to(tl.int64) * query_heads + number)[:, None] * D + dim[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=there[:, None])


def attend_own_and_merge(
    queries: torch.Tensor,
    tail: torch.Tensor,
    memory: StepMemory,
    inputs: StepInputs,
    scaling: float,
    past: AttnState,
) -> torch.Tensor:
    """`step.attend_step`, given the attention over each part of the memory.

    Args:
        queries: ``[heads, requests * size, head_dim]``, as the tail is seen.
        tail: one layer's, ``[2, kv_heads, slots, head_dim]``.
        past: as queries of `turn` attend: ``[requests * MAX_PARTS * size, heads, head_dim]``, and
            the log-sum-exp ``[heads, requests * MAX_PARTS * size]``. What it says of parts that
            are not there is not read.

    Returns:
        ``[requests * size, heads, head_dim]``; zero for padding.
    """
    heads, tokens, size = queries.shape
    kv_heads = tail.shape[1]
    group = heads // kv_heads
    attended, lse = past
    assert attended.is_contiguous() and lse.is_contiguous()
    assert queries.stride(2) == tail.stride(3) == 1
    rows = inputs.size * group
    block = 16 if memory.requests * rows <= _FEW_ROWS else 64
    out = queries.new_empty(tokens, heads, size)
    with torch.cuda.device_of(queries):
        _own_kernel[triton.cdiv(rows, block), kv_heads, memory.requests](
            queries,
            tail,
            inputs.begins,
            inputs.slots,
            inputs.scalars,
            memory.lengths,
            attended,
            lse,
            out,
            scaling * _LOG2_E,
            inputs.size,
            *queries.stride()[:2],
            *tail.stride()[:3],
            KV_HEADS=kv_heads,
            GROUP=group,
            D=size,
            BLOCK_M=block,
            BLOCK_N=64 if tail.dtype != torch.float32 else 32,
            num_warps=4,
            num_stages=2,
        )
    return out
