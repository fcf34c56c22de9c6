# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Triton kernels of a question: rotations, attention over memory and tail, products of one row.

All lengths are read on the device.

Imported only where there is a GPU (and by their tests, which run them in Triton's interpreter).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # Triton before 3.4
    gdc_launch_dependents = gdc_wait = None

from .step import MAX_PARTS, AttendStep, StepInputs, StepMemory

_CHUNK_ROWS = 2048  # more are a chunk's
_LARGE = 227 << 10  # bytes of shared memory: queries, and three blocks of keys and values
_LOG2_E = 1.4426950408889634
_PARTS = tl.constexpr(MAX_PARTS)
_LANES = tl.constexpr(triton.next_power_of_2(MAX_PARTS))


def overlaps(device: torch.device) -> bool:
    """Whether kernels can be launched on it before the one ahead of them has ended.

    (Programmatic dependent launch.) Such a kernel waits for the other itself, by ``gdc_wait``,
    before it reads what that wrote, writes anything or ends.
    """
    if gdc_wait is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


def launching(overlapped: bool) -> dict[str, bool]:
    """A launch's options."""
    return {"launch_pdl": True} if overlapped else {}  # an older Triton knows none


class _Tiling(NamedTuple):
    """What one program works on, and how Triton is to build it."""

    rows: int
    keys: int
    warps: int
    stages: int
    programs: int  # a processor


def _tiling(rows: int, dtype: torch.dtype, shared: int = 0) -> _Tiling:
    """The fastest on an H200, by the sweep of ``bench/question_steps.py``.

    Args:
        shared: bytes of shared memory that a program may take.
    """
    half = dtype != torch.float32
    if rows <= 16:  # decoding, as fast as the keys come
        return _Tiling(16, 64 if half else 32, warps=4, stages=3, programs=2)
    if rows <= 64 or not half:
        return _Tiling(64, 64 if half else 32, warps=4, stages=3 if half else 2, programs=2)
    if rows <= _CHUNK_ROWS or shared < _LARGE:
        return _Tiling(128, 64, warps=8, stages=3, programs=1)
    return _Tiling(128, 128, warps=8, stages=3, programs=2 if rows <= 4096 else 4)  # of a chunk


@triton.jit
def _shares(
    scalars,  # [4]
    lengths,  # [MAX_PARTS]
    programs,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """How the work is shared out: real tokens, tiles of rows, parts, keys, splits of them."""
    part = tl.arange(0, _LANES)
    length = tl.load(lengths + part, mask=part < _PARTS, other=0).to(tl.int32)
    parts = tl.max(tl.where(length > 0, part + 1, 0), 0)
    count = tl.load(scalars).to(tl.int32)
    whole = tl.sum(length, 0) + tl.load(scalars + 2).to(tl.int32) + count
    tiles = tl.cdiv(count * GROUP, BLOCK_M)
    splits = tl.minimum(programs // tl.maximum(tiles * KV_HEADS, 1), tl.cdiv(whole, BLOCK_N))
    return count, tiles, parts, whole, splits


@triton.jit
def _rotated(query_at, offset, real, D: tl.constexpr):
    """Queries ``[BLOCK_M, D]`` rotated by an offset's cos and sin, see `mrope.rotate`."""
    dim = tl.arange(0, D)
    other = (dim + D // 2) % D
    query = tl.load(query_at[:, None] + dim[None, :], mask=real[:, None], other=0.0)
    swapped = tl.load(query_at[:, None] + other[None, :], mask=real[:, None], other=0.0)
    cos, sin = tl.load(offset + dim), tl.load(offset + _PARTS * D + dim)
    sin = tl.where(dim < D // 2, -sin, sin)
    rotated = query.to(tl.float32) * cos[None, :] + swapped.to(tl.float32) * sin[None, :]
    return rotated.to(query.dtype)


@triton.jit
def _masked(query, keys, values, stride, first, high, seen, most, total, sums, scale,
            D: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """One block of keys, of which each row sees what is ``seen [BLOCK_M or 1, BLOCK_N]``."""
    slot, dim = first + tl.arange(0, BLOCK_N), tl.arange(0, D)
    there = slot < high
    at = slot[:, None] * stride + dim[None, :]
    # What lies beyond was never written: even a weight of 0 would make NaN of it.
    key = tl.load(keys + at, mask=there[:, None], other=0.0)
    value = tl.load(values + at, mask=there[:, None], other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(seen & there[None, :], scores, float("-inf"))
    higher = tl.maximum(most, tl.max(scores, 1))
    # A row that has seen nothing yet must not subtract infinities.
    zero = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - zero[:, None])
    fade = tl.exp2(most - zero)
    total = total * fade + tl.sum(weights, 1)
    sums = sums * fade[:, None]
    sums += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return higher, total, sums


@triton.jit
def _split_kernel(
    queries,  # [heads, requests * size, D]
    memory,  # [2, kv_heads, slots, D]
    tail,  # [2, kv_heads, slots, D]
    starts,  # [requests, MAX_PARTS]
    lengths,  # [requests, MAX_PARTS]
    offsets,  # [requests, 2, MAX_PARTS, D] in float32
    begins,  # [requests * size]
    slots,  # [requests * size]
    scalars,  # [requests, 4]
    out,  # [requests, programs, BLOCK_M, D] in float32
    lse,  # [requests, programs, BLOCK_M] in float32, to base 2
    scale,
    size,
    query_head,  # strides
    query_token,
    memory_kind,
    memory_head,
    memory_slot,
    tail_kind,
    tail_head,
    tail_slot,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """One split of all the keys of a request, for a tile of the rows that share a KV head.

    Row ``r`` is query head ``r % GROUP`` of token ``r // GROUP``, so that padding fills whole tiles
    at the end, for which no program is spent. The keys are all parts laid end to end, then the
    tail.
    """
    program, request = tl.program_id(0), tl.program_id(1)
    starts, lengths = starts + request * _PARTS, lengths + request * _PARTS
    offsets, scalars = offsets + request * 2 * _PARTS * D, scalars + request * 4
    count, tiles, parts, whole, splits = _shares(
        scalars, lengths, tl.num_programs(0), KV_HEADS, GROUP, BLOCK_M, BLOCK_N
    )
    # Tiles that read the same keys run side by side, so that these come from memory once.
    there = program < tiles * KV_HEADS * splits
    tiles, splits = tl.maximum(tiles, 1), tl.maximum(splits, 1)
    tile, head, split = program % tiles, program // tiles % KV_HEADS, program // tiles // KV_HEADS
    blocks = tl.cdiv(whole, BLOCK_N)
    first = split * blocks // splits * BLOCK_N
    last = tl.minimum((split + 1) * blocks // splits * BLOCK_N, whole)
    if AHEAD:
        gdc_launch_dependents()
        gdc_wait()
    if not there:
        return
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token = row // GROUP
    real = token < count
    dim = tl.arange(0, D)
    mine = request * size + token
    query_at = queries + (head * GROUP + row % GROUP) * query_head + mine * query_token

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, D], tl.float32)
    everything = tl.full([1, BLOCK_N], True, tl.int1)
    for part in range(parts):
        length = tl.load(lengths + part).to(tl.int32)
        low, high = tl.maximum(first, 0), tl.minimum(last, length)
        if low < high:
            query = _rotated(query_at, offsets + part * D, real, D)
            keys = memory + head * memory_head + tl.load(starts + part).to(tl.int64) * memory_slot
            values = keys + memory_kind
            rest = high - (high - low) % BLOCK_N
            for block in range(low, rest, BLOCK_N):  # without masks, so that loads run ahead
                slot = block + tl.arange(0, BLOCK_N)
                at = slot[:, None] * memory_slot + dim[None, :]
                key = tl.load(keys + at)
                scores = tl.dot(query, tl.trans(key), input_precision="ieee")
                higher = tl.maximum(most, tl.max(scores, 1) * scale)
                weights = tl.exp2(scores * scale - higher[:, None])
                fade = tl.exp2(most - higher)
                total = total * fade + tl.sum(weights, 1)
                sums = sums * fade[:, None]
                value = tl.load(values + at)
                sums = tl.dot(weights.to(value.dtype), value, sums, input_precision="ieee")
                most = higher
            if rest < high:
                most, total, sums = _masked(
                    query, keys, values, memory_slot, rest, high, everything, most, total, sums,
                    scale, D, BLOCK_N,
                )  # fmt: skip
        first -= length
        last -= length

    past = tl.load(scalars + 2).to(tl.int32)
    low, high = tl.maximum(first, 0), tl.minimum(last, past + count)
    if low < high:
        shared = tl.load(scalars + 1).to(tl.int32)
        begin = tl.load(begins + mine, mask=real, other=0).to(tl.int32)
        query = tl.load(query_at[:, None] + dim[None, :], mask=real[:, None], other=0.0)
        keys = tail + head * tail_head + (tl.load(slots + request * size) - past) * tail_slot
        for block in range(low, high, BLOCK_N):
            # The step's own tokens: each sees none after it, and only its own text.
            own = (block + tl.arange(0, BLOCK_N) - past)[None, :]
            seen = (own <= token[:, None]) & ((own < shared) | (own >= begin[:, None]))
            most, total, sums = _masked(
                query, keys, keys + tail_kind, tail_slot, block, high, seen | (own < 0), most,
                total, sums, scale, D, BLOCK_N,
            )  # fmt: skip

    seen = total > 0.0
    total = tl.where(seen, total, 1.0)
    at = (request * tl.num_programs(0) + program) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(lse + at, tl.where(seen, most + tl.log2(total), float("-inf")), mask=real)
    tl.store(out + at[:, None] * D + dim[None, :], sums / total[:, None], mask=real[:, None])


@triton.jit
def _merge_kernel(
    parts,  # [requests, programs, BLOCK_M, D] in float32
    lse,  # [requests, programs, BLOCK_M] in float32, to base 2
    lengths,  # [requests, MAX_PARTS]
    scalars,  # [requests, 4]
    out,  # [requests * size, heads, D]
    programs,
    size,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Attention over all splits, of one token and query head, a piece of its width; zero for
    padding."""
    request, token, head = tl.program_id(0) // size, tl.program_id(0) % size, tl.program_id(1)
    lengths, scalars = lengths + request * _PARTS, scalars + request * 4
    parts, lse = parts + request * programs * BLOCK_M * D, lse + request * programs * BLOCK_M
    count, tiles, _, _, splits = _shares(
        scalars, lengths, programs, KV_HEADS, GROUP, BLOCK_M, BLOCK_N
    )
    splits = tl.where(token < count, splits, 0)  # of padding, none
    row = token * GROUP + head % GROUP
    place = head // GROUP * tiles + row // BLOCK_M  # of the first split
    dim = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    if AHEAD:
        gdc_launch_dependents()
        gdc_wait()
    most = float("-inf")
    total = 0.0
    sums = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        at = (split * (tiles * KV_HEADS) + place) * BLOCK_M + row % BLOCK_M
        there = split < splits
        weight = tl.load(lse + at, mask=there, other=float("-inf"))
        some = tl.load(parts + at[:, None] * D + dim[None, :], mask=there[:, None], other=0.0)
        higher = tl.maximum(most, tl.max(weight, 0))
        zero = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(weight - zero)
        fade = tl.exp2(most - zero)
        total = total * fade + tl.sum(weight, 0)
        sums = sums * fade + tl.sum(some * weight[:, None], 0)
        most = higher
    sums = sums / tl.where(total > 0.0, total, 1.0)
    at = tl.program_id(0) * tl.num_programs(1) + head
    tl.store(out + at * D + dim, sums.to(out.dtype.element_ty))


def split_attention(processors: int, shared: int = 0, overlapped: bool = False) -> AttendStep:
    """`step.attend_step` as two kernels, nothing read back.

    The keys are shared out between as many programs as keep the device busy, whose results are
    merged by log-sum-exp; each reads a key once for all queries that share it (flash-decoding:
    Dao et al., 2023). How many splits there are is computed on the device, from how many tokens
    are real: padding takes no program.

    Args:
        processors: of the device, on which so many programs run at once or a few times as many.
        shared: bytes of shared memory that a program may take.
        overlapped: see `overlaps`.
    """

    def attend(
        queries: torch.Tensor,
        stream: torch.Tensor,
        tail: torch.Tensor,
        memory: StepMemory,
        inputs: StepInputs,
        scaling: float,
    ) -> torch.Tensor:
        heads, tokens, size = queries.shape
        length, kv_heads = inputs.size, stream.shape[1]
        group = heads // kv_heads
        rows = group * length
        assert all(x.stride(-1) == 1 for x in (queries, stream, tail))
        tiling = _tiling(rows, stream.dtype, shared)
        tiles = triton.cdiv(rows, tiling.rows)
        # Of few rows all requests go at once; of many each by itself keeps the device busy.
        requests = memory.requests if tiles == 1 else 1
        programs = max(tiling.programs * processors // requests, tiles * kv_heads)
        parts = queries.new_empty(requests, programs, tiling.rows, size, dtype=torch.float32)
        lse = queries.new_empty(requests, programs, tiling.rows, dtype=torch.float32)
        out = queries.new_empty(tokens, heads, size)
        shape = dict(
            KV_HEADS=kv_heads,
            GROUP=group,
            D=size,
            BLOCK_M=tiling.rows,
            BLOCK_N=tiling.keys,
            AHEAD=overlapped,
        )
        launch = launching(overlapped)
        pieces, splits, warps = 1, 32, 4
        if tiles == 1:  # few rows have many splits: all are read at once, a piece of the width each
            pieces, splits = min(8, size // 16), min(256, triton.next_power_of_2(programs))
        elif rows > _CHUNK_ROWS:  # many have few
            splits, warps = 8, 1
        with torch.cuda.device_of(queries):  # Triton launches on the current one
            for request in range(0, memory.requests, requests):
                own, at = request * length, request * MAX_PARTS
                lengths, scalars = memory.lengths[at:], inputs.scalars[request]
                _split_kernel[programs, requests](
                    queries[:, own:],
                    stream,
                    tail,
                    memory.starts[at:],
                    lengths,
                    memory.offsets[request],
                    inputs.begins[own:],
                    inputs.slots[own:],
                    scalars,
                    parts,
                    lse,
                    scaling * _LOG2_E,
                    length,
                    *queries.stride()[:2],
                    *stream.stride()[:3],
                    *tail.stride()[:3],
                    **shape,
                    num_warps=tiling.warps,
                    num_stages=tiling.stages,
                    **launch,
                )
                _merge_kernel[requests * length, heads, pieces](
                    parts,
                    lse,
                    lengths,
                    scalars,
                    out[own:],
                    programs,
                    length,
                    **shape,
                    BLOCK_S=splits,
                    BLOCK_D=size // pieces,
                    num_warps=warps,
                    **launch,
                )
        return out

    return attend


@triton.jit
def _place_kernel(
    qkv,  # [n, heads + 2 * kv_heads, D]
    cos,  # [n, D]
    sin,
    slots,  # [n]
    tail,  # [2, kv_heads, room, D]
    queries,  # [heads, n, D]
    qkv_token,  # strides
    tail_kind,
    tail_head,
    tail_slot,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    AHEAD: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    dim = tl.arange(0, D)
    if AHEAD:
        gdc_launch_dependents()
        gdc_wait()
    at = qkv + token * qkv_token + head * D
    x = tl.load(at + dim)
    swapped = tl.load(at + (dim + D // 2) % D).to(tl.float32)
    sines = tl.load(sin + token * D + dim).to(tl.float32)
    sines = tl.where(dim < D // 2, -sines, sines)
    rotated = x.to(tl.float32) * tl.load(cos + token * D + dim).to(tl.float32) + swapped * sines
    if head < HEADS:
        there = queries + (head * tl.num_programs(0) + token) * D
        tl.store(there + dim, rotated.to(x.dtype))
    else:
        slot = tl.load(slots + token)
        key = head - HEADS
        if key < KV_HEADS:
            tl.store(tail + key * tail_head + slot * tail_slot + dim, rotated.to(x.dtype))
        else:
            value = tail + tail_kind + (key - KV_HEADS) * tail_head
            tl.store(value + slot * tail_slot + dim, x)


def place(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    tail: torch.Tensor,
    overlapped: bool = False,
) -> torch.Tensor:
    """`step.place_step` as one kernel; ``overlapped``: see `overlaps`."""
    (length, width), (_, kv_heads, _, size) = qkv.shape, tail.shape
    heads = width // size - 2 * kv_heads
    assert cos.is_contiguous() and sin.is_contiguous()
    assert qkv.stride(1) == tail.stride(3) == slots.stride(0) == 1
    queries = qkv.new_empty(heads, length, size)
    with torch.cuda.device_of(qkv):
        _place_kernel[length, heads + 2 * kv_heads](
            qkv,
            cos,
            sin,
            slots,
            tail,
            queries,
            qkv.stride(0),
            *tail.stride()[:3],
            HEADS=heads,
            KV_HEADS=kv_heads,
            D=size,
            AHEAD=overlapped,
            num_warps=1,
            **launching(overlapped),
        )
    return queries


class _Strip(NamedTuple):
    """What one program of a product takes of the weights at once."""

    rows: int
    columns: int
    warps: int
    stages: int  # 1: the loads of a strip are all in flight, but the next one's wait for them


def _strip(rows: int, columns: int) -> _Strip:
    """The fastest of five on an H200 for each product of the 3B shape: bench/question_steps.py.

    1.9 to 4.4 TB/s, where torch's own products come to 1.3 to 4.3.
    """
    return _Strip(8, min(512, triton.next_power_of_2(columns)), warps=4, stages=4)


@triton.jit
def _matvec_kernel(
    given,  # [columns]
    weight,  # [rows, columns]
    bias,  # [rows]
    out,  # [rows]
    rows,
    columns,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    weight += first.to(tl.int64) * columns
    row = tl.arange(0, ROWS)
    real = first + row < rows
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in tl.range(0, columns, COLUMNS, num_stages=STAGES):
        column = begin + tl.arange(0, COLUMNS)
        there = column < columns
        some = tl.load(given + column, mask=there, other=0.0).to(tl.float32)
        strip = tl.load(
            weight + row[:, None] * columns + column[None, :],
            mask=real[:, None] & there[None, :],
            other=0.0,
        )
        sums += strip.to(tl.float32) * some[None, :]
    result = tl.sum(sums, 1)
    if BIAS:
        result += tl.load(bias + first + row, mask=real, other=0.0).to(tl.float32)
    tl.store(out + first + row, result.to(out.dtype.element_ty), mask=real)


@torch.library.custom_op("stream_vlm::matvec", mutates_args=())
def matvec(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`torch.nn.functional.linear` of one row, ``[1, in]`` to ``[1, out]``.

    It is bound by loading the weights, which is all that this kernel optimises.
    """
    (rows, columns), strip = weight.shape, _strip(*weight.shape)
    assert given.shape == (1, columns) and given.stride(1) == 1 and weight.is_contiguous()
    out = given.new_empty(1, rows)
    with torch.cuda.device_of(given):
        _matvec_kernel[(triton.cdiv(rows, strip.rows),)](
            given,
            weight,
            weight if bias is None else bias,
            out,
            rows,
            columns,
            BIAS=bias is not None,
            ROWS=strip.rows,
            COLUMNS=strip.columns,
            STAGES=strip.stages,
            num_warps=strip.warps,
        )
    return out


@matvec.register_fake
def _(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return given.new_empty(1, len(weight))
