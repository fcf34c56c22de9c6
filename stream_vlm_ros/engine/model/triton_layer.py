# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Triton kernels of a decode step: a layer's products of one token, with what lies around them.

A step of one token is bound by loading the weights, 36 us a layer of the 3B shape on an H200, and
each kernel costs some us at its begin and end in which none is loaded. So there are few: norm,
product and bias are one, as are norm, product and gate, and product and residual sum. And each is
launched before the one ahead of it has ended (programmatic dependent launch, from Hopper on): it
loads its weights at once, and only then waits for what the other computed.

Imported only where there is a GPU (and by its tests, which run it in Triton's interpreter).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from stream_vlm_ros.engine.attention.triton_decode import (
    gdc_launch_dependents,
    gdc_wait,
    launching,
)

from .base import LayerFunctions


class Strip(NamedTuple):
    """What one program of a product works on, and how Triton is to build it.

    Attributes:
        rows: of the weights; of a gated product so many of gate and of up.
        columns: at once; as many as the weights have, and more: all of them.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 1


@triton.jit
def _prefetch(start, size, THREADS: tl.constexpr):
    """Bring bytes to the L2 cache, a piece by each thread. Nothing waits for them.

    ``start`` and ``size`` are multiples of 16.
    """
    thread = tl.arange(0, THREADS)
    piece = tl.cdiv(tl.cdiv(size, THREADS), 16) * 16
    own = tl.minimum(tl.maximum(size - thread * piece, 0), piece)
    tl.inline_asm_elementwise(
        """{
        .reg .pred some;
        setp.ne.s32 some, $2, 0;
        @some cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [start.to(tl.int64) + thread * piece, own],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _dot(strip, some):
    """Sums ``[ROWS]`` of a strip of weights ``[ROWS, COLUMNS]`` times ``some [COLUMNS]``."""
    return tl.sum(strip.to(tl.float32) * some[None, :], 1)


@triton.jit
def _product_kernel(
    given,  # [columns]
    norm,  # [columns], weight of the norm
    weight,  # [rows, columns]; of a gated product [2 * rows, columns]: gate, then up
    bias,  # [rows]
    added,  # [rows]
    out,  # [rows]
    rows,
    columns,
    eps,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    PREFETCHES: tl.constexpr,
    THREADS: tl.constexpr,
):
    """``ROWS`` rows of a product. Each intermediate is rounded as the plain functions round it."""
    dtype = given.dtype.element_ty
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real = first + row < rows
    weight += first.to(tl.int64) * columns
    at = row[:, None] * columns + column[None, :]
    upper = weight + rows.to(tl.int64) * columns if GATED else weight
    if WHOLE:
        within = real[:, None] & (column < columns)[None, :]
        strip = tl.load(weight + at, mask=within, other=0.0)
        if GATED:
            other = tl.load(upper + at, mask=within, other=0.0)
    elif PREFETCHES:
        size = tl.minimum(rows - first, ROWS) * columns * (dtype.primitive_bitwidth // 8)
        _prefetch(weight, size, THREADS)
    if AHEAD:
        gdc_launch_dependents()
        gdc_wait()

    if WHOLE:
        there = column < columns
        some = tl.load(given + column, mask=there, other=0.0).to(tl.float32)
        if NORM:
            scales = tl.load(norm + column, mask=there, other=0.0).to(tl.float32)
            some *= tl.rsqrt(tl.sum(some * some, 0) / columns + eps)
            some = (scales * some.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
        sums = _dot(strip, some)
        if GATED:
            gate, up = sums.to(dtype).to(tl.float32), _dot(other, some).to(dtype).to(tl.float32)
            gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            sums = gate * up
    else:
        wide = tl.zeros([ROWS, COLUMNS], tl.float32)
        for begin in tl.range(0, columns, COLUMNS, num_stages=STAGES):
            there = begin + column < columns
            some = tl.load(given + begin + column, mask=there, other=0.0).to(tl.float32)
            within = real[:, None] & there[None, :]
            strip = tl.load(weight + begin + at, mask=within, other=0.0)
            wide += strip.to(tl.float32) * some[None, :]
        sums = tl.sum(wide, 1)
    if BIAS:
        sums += tl.load(bias + first + row, mask=real, other=0.0).to(tl.float32)
    if ADD:
        sums = sums.to(dtype).to(tl.float32)
        sums += tl.load(added + first + row, mask=real, other=0.0).to(tl.float32)
    tl.store(out + first + row, sums.to(dtype), mask=real)


def product(
    given: torch.Tensor,
    weight: torch.Tensor,
    strip: Strip,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    gated: bool = False,
    bias: torch.Tensor | None = None,
    added: torch.Tensor | None = None,
    overlapped: bool = False,
) -> torch.Tensor:
    """``weight [out, in]`` times ``given [1, in]``, with what is around it: ``[1, out]``.

    Args:
        norm: weight and epsilon of the norm that ``given`` goes through first.
        gated: ``weight [2 * out, in]`` is gate and up; given is ``silu(gate) * up``.
        bias: ``[out]``.
        added: ``[1, out]``, added to the rounded product.
        overlapped: see `triton_decode.overlaps`.
    """
    rows, columns = weight.shape
    rows //= 1 + gated
    whole = strip.columns >= columns
    assert given.shape == (1, columns) and given.stride(1) == 1 and weight.is_contiguous()
    assert whole or not (norm or gated)
    out = given.new_empty(1, rows)
    scales, eps = norm or (given, 0.0)
    with torch.cuda.device_of(given):  # Triton launches on the current one
        _product_kernel[(triton.cdiv(rows, strip.rows),)](
            given,
            scales,
            weight,
            given if bias is None else bias,
            given if added is None else added,
            out,
            rows,
            columns,
            eps,
            NORM=norm is not None,
            GATED=gated,
            BIAS=bias is not None,
            ADD=added is not None,
            ROWS=strip.rows,
            COLUMNS=strip.columns,
            WHOLE=whole,
            STAGES=strip.stages,
            AHEAD=overlapped,
            PREFETCHES=overlapped and columns * weight.itemsize % 16 == 0,
            THREADS=32 * strip.warps,
            num_warps=strip.warps,
            **launching(overlapped),
        )
    return out


class Strips(NamedTuple):
    """Of a layer's products."""

    qkv: Strip
    out: Strip
    gate_up: Strip
    down: Strip


def _strips(hidden: int) -> Strips:
    """The fastest on an H200 of some for each product of the 3B shape, in whole steps."""
    columns = triton.next_power_of_2(hidden)
    rows = min(8, max(1, 16_384 // columns))
    return Strips(
        qkv=Strip(rows, columns, warps=4),
        out=Strip(rows, columns, warps=4),
        gate_up=Strip(max(1, rows // 4), columns, warps=4),
        down=Strip(4, 1024, warps=4, stages=6),
    )


def join(plain: LayerFunctions, overlapped: bool = False) -> LayerFunctions:
    """The functions of a step of one token: four kernels a layer besides the attention's.

    What a layer gives to the next is not normed: its projection does that.

    Args:
        overlapped: see `triton_decode.overlaps`. Otherwise they are slower than the plain ones
            with `triton_decode.matvec`.
    """

    def project(
        hidden: torch.Tensor,
        norm: torch.Tensor,
        qkv: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        _: object,
    ) -> torch.Tensor:
        strip = _strips(hidden.shape[1]).qkv
        return product(hidden, qkv, strip, norm=(norm, eps), bias=bias, overlapped=overlapped)

    def finish(
        hidden: torch.Tensor,
        attended: torch.Tensor,
        out: torch.Tensor,
        post_norm: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        _: torch.Tensor,
        eps: float,
        __: object,
        ___: bool,
        added: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        strip = _strips(hidden.shape[1])
        hidden = product(attended, out, strip.out, added=hidden, overlapped=overlapped)
        norm = (post_norm, eps)
        inner = product(
            hidden, gate_up, strip.gate_up, norm=norm, gated=True, overlapped=overlapped
        )
        hidden = product(inner, down, strip.down, added=hidden, overlapped=overlapped)
        if added is not None:
            hidden = hidden + added
        return hidden, hidden

    return plain._replace(
        norm=lambda hidden, norm, eps: hidden, project=project, finish=finish, end=plain.norm
    )
