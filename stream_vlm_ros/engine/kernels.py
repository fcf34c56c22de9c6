"""Triton kernels: attention of a question over memory and tail, all lengths read on the device.

Imported only where there is a GPU (and by their tests, which run them in Triton's interpreter).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .static_step import Reading, StaticAttention, StepInputs

_LOG2_E = 1.4426950408889634


class _Tiling(NamedTuple):
    """What one program works on, and how Triton is to build it."""

    rows: int
    keys: int
    warps: int
    stages: int
    programs: int  # a processor, some at once and some after them


def _tiling(rows: int, dtype: torch.dtype) -> _Tiling:
    """From what the kernels take of a Hopper's registers and shared memory; not yet measured."""
    half = dtype != torch.float32
    if rows <= 16:  # decoding, as fast as the keys come: three programs fit a processor
        return _Tiling(16, 64 if half else 32, warps=4, stages=3, programs=3)
    if rows <= 64 or not half:
        return _Tiling(64, 64 if half else 32, warps=4, stages=2, programs=4)
    # One fits; of several in turn, those that find only padding cost little.
    return _Tiling(128, 64, warps=8, stages=2, programs=4)


@triton.jit
def _over(
    query,
    keys,  # pointers to the first key and the first value
    values,
    stride,
    low,  # which of them to read
    high,
    token,  # [BLOCK_M], which of the step's tokens each row is
    begin,  # [BLOCK_M], the first of the step's tokens that each row sees...
    shared,  # ...besides the first so many
    past,  # keys that lie before the step's own
    most,  # [BLOCK_M], of the scores so far, their sum, and the values so weighed
    total,
    sums,
    scale,
    OWN: tl.constexpr,  # the step's own tokens are among the keys: each sees none after it
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    dim = tl.arange(0, D)
    for first in range(low, high, BLOCK_N):
        slot = first + tl.arange(0, BLOCK_N)
        there = slot < high
        at = slot[:, None] * stride + dim[None, :]
        # What lies beyond was never written: even a weight of 0 would make NaN of it.
        key = tl.load(keys + at, mask=there[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        seen = there[None, :]
        if OWN:
            own = (slot - past)[None, :]
            ahead = (own < shared) | (own >= begin[:, None])
            seen = seen & ((own < 0) | ((own <= token[:, None]) & ahead))
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        # A row that has seen nothing yet must not subtract infinities.
        zero = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - zero[:, None])
        fade = tl.exp2(most - zero)
        value = tl.load(values + at, mask=there[:, None], other=0.0)
        total = total * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None]
        sums += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        most = higher
    return most, total, sums


@triton.jit
def _split_kernel(
    queries,  # [PARTS + 1, heads, n, D]
    memory,  # [2, kv_heads, slots, D]
    tail,  # [2, kv_heads, room, D]
    starts,  # [PARTS]
    lengths,  # [PARTS]
    begins,  # [n]
    scalars,  # [4]
    out,  # [splits, kv_heads, GROUP * n, D] in float32
    lse,  # [splits, kv_heads, GROUP * n] in float32, to base 2
    scale,
    query_part,  # strides
    query_head,
    query_token,
    memory_kind,
    memory_head,
    memory_slot,
    tail_kind,
    tail_head,
    tail_slot,
    rows,  # GROUP * n
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One split of all the keys, for a tile of the rows that share a KV head.

    Row ``r`` is query head ``r % GROUP`` of token ``r // GROUP``, so that padding fills whole tiles
    at the end. The keys are all parts laid end to end, then the tail.
    """
    # Tiles that read the same keys run side by side, so that these come from memory once.
    tile, split, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(scalars).to(tl.int32)
    if tile * BLOCK_M >= count * GROUP:
        return
    shared = tl.load(scalars + 1).to(tl.int32)
    past = tl.load(scalars + 2).to(tl.int32)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token = row // GROUP
    real = token < count
    begin = tl.load(begins + token, mask=real, other=0).to(tl.int32)
    dim = tl.arange(0, D)
    query_at = (head * GROUP + row % GROUP) * query_head + token * query_token
    query_at = queries + query_at[:, None] + dim[None, :]

    whole = past + count
    for part in range(PARTS):
        whole += tl.load(lengths + part).to(tl.int32)
    share = tl.cdiv(tl.cdiv(whole, tl.num_programs(1)), BLOCK_N) * BLOCK_N
    first = split * share
    last = tl.minimum(first + share, whole)

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, D], tl.float32)
    for part in range(PARTS):
        length = tl.load(lengths + part).to(tl.int32)
        low, high = tl.maximum(first, 0), tl.minimum(last, length)
        if low < high:
            query = tl.load(query_at + part * query_part, mask=real[:, None], other=0.0)
            keys = memory + head * memory_head + tl.load(starts + part) * memory_slot
            most, total, sums = _over(
                query, keys, keys + memory_kind, memory_slot, low, high, token, begin, shared,
                past, most, total, sums, scale, False, D, BLOCK_N,
            )  # fmt: skip
        first -= length
        last -= length
    low, high = tl.maximum(first, 0), tl.minimum(last, past + count)
    if low < high:
        query = tl.load(query_at + PARTS * query_part, mask=real[:, None], other=0.0)
        keys = tail + head * tail_head
        most, total, sums = _over(
            query, keys, keys + tail_kind, tail_slot, low, high, token, begin, shared,
            past, most, total, sums, scale, True, D, BLOCK_N,
        )  # fmt: skip

    seen = total > 0.0
    total = tl.where(seen, total, 1.0)
    at = (split * tl.num_programs(2) + head) * rows + row
    tl.store(lse + at, tl.where(seen, most + tl.log2(total), float("-inf")), mask=real)
    tl.store(out + at[:, None] * D + dim[None, :], sums / total[:, None], mask=real[:, None])


@triton.jit
def _merge_kernel(
    parts,  # [splits, kv_heads, GROUP * n, D] in float32
    lse,  # [splits, kv_heads, GROUP * n] in float32, to base 2
    scalars,  # [4]
    out,  # [n, heads, D]
    rows,  # GROUP * n
    splits,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention over all splits, of one token and query head; zero for padding."""
    token, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    kv_heads = heads // GROUP
    count = tl.load(scalars).to(tl.int32)
    splits = tl.where(token < count, splits, 0)  # of padding, none
    row = (head // GROUP) * rows + token * GROUP + head % GROUP
    dim = tl.arange(0, D)
    most = float("-inf")
    total = 0.0
    sums = tl.zeros([D], tl.float32)
    for first in range(0, splits, BLOCK):
        split = first + tl.arange(0, BLOCK)
        at = split * (kv_heads * rows) + row
        there = split < splits
        weight = tl.load(lse + at, mask=there, other=float("-inf"))
        higher = tl.maximum(most, tl.max(weight, 0))
        zero = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(weight - zero)
        fade = tl.exp2(most - zero)
        some = tl.load(parts + at[:, None] * D + dim[None, :], mask=there[:, None], other=0.0)
        total = total * fade + tl.sum(weight, 0)
        sums = sums * fade + tl.sum(some * weight[:, None], 0)
        most = higher
    sums = sums / tl.where(total > 0.0, total, 1.0)
    tl.store(out + (token * heads + head) * D + dim, sums.to(out.dtype.element_ty))


def split_attention(processors: int) -> StaticAttention:
    """`static_step.attend_step` as two kernels, nothing read back.

    The keys are shared out between as many programs as keep the device busy, whose results are
    merged by log-sum-exp; each reads a key once for all queries that share it (flash-decoding:
    Dao et al., 2023).

    Args:
        processors: of the device, on which so many programs run at once or a few times as many.
    """

    def attend(
        queries: torch.Tensor,
        memory: torch.Tensor,
        tail: torch.Tensor,
        reading: Reading,
        inputs: StepInputs,
        scaling: float,
    ) -> torch.Tensor:
        heads, length, size = queries.shape[1:]
        kv_heads = memory.shape[1]
        group = heads // kv_heads
        rows = group * length
        assert all(x.stride(-1) == 1 for x in (queries, memory, tail))
        tiling = _tiling(rows, memory.dtype)
        tiles = triton.cdiv(rows, tiling.rows)
        most = triton.cdiv(memory.shape[2] + tail.shape[2], tiling.keys)
        splits = min(most, triton.cdiv(tiling.programs * processors, tiles * kv_heads))
        parts = queries.new_empty(splits, kv_heads, rows, size, dtype=torch.float32)
        lse = queries.new_empty(splits, kv_heads, rows, dtype=torch.float32)
        out = queries.new_empty(length, heads, size)
        with torch.cuda.device_of(queries):  # Triton launches on the current one
            _split_kernel[tiles, splits, kv_heads](
                queries,
                memory,
                tail,
                reading.starts,
                reading.lengths,
                inputs.begins,
                inputs.scalars,
                parts,
                lse,
                scaling * _LOG2_E,
                *queries.stride()[:3],
                *memory.stride()[:3],
                *tail.stride()[:3],
                rows,
                PARTS=len(reading.starts),
                GROUP=group,
                D=size,
                BLOCK_M=tiling.rows,
                BLOCK_N=tiling.keys,
                num_warps=tiling.warps,
                num_stages=tiling.stages,
            )
            _merge_kernel[length, heads](
                parts,
                lse,
                inputs.scalars,
                out,
                rows,
                splits,
                GROUP=group,
                D=size,
                BLOCK=min(64, triton.next_power_of_2(splits)),
            )
        return out

    return attend
