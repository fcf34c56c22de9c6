# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A trial: would joined kernels speed up steps of up to 64 tokens, as they did those of one?

    python bench/rows_trial.py --out FILE                 # a minute or two on one H200
    TRITON_INTERPRET=1 python bench/rows_trial.py --toy   # whether they compute it, anywhere

A question of 48 tokens, five choices and the next tokens of eight answers read each weight once,
as a single token does, and take longer by half. The engine's kernels are held beside these, layer
after layer without attention, recorded: products in tensor cores whose weights are on their way
before the kernel ahead has ended, sums over several programs that the norm behind them adds up.
The engine has none of it yet: whether it is to is what this is for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from stream_vlm_ros.engine.attention.triton_decode import (
    gdc_launch_dependents,
    gdc_wait,
    launching,
    overlaps,
)
from stream_vlm_ros.engine.graph_runner import step_functions
from stream_vlm_ros.engine.model.qwen2_5_vl import PLAIN

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from gpu_rig import synchronize, timed

ROWS = (16, 48, 64)
EPS = 1e-6


class Tile(NamedTuple):
    """What one program of a product works on.

    Attributes:
        outputs: columns of the product; of a gated one so many of gate and of up.
        depth: of the sum, at once.
        parts: programs that share a sum.
    """

    outputs: int
    depth: int
    parts: int
    warps: int
    stages: int


@triton.jit
def _prefetch_rows(start, stride, size, ROWS: tl.constexpr):
    """Bring ``size`` bytes of each of ``ROWS`` rows to the L2 cache; multiples of 16."""
    row = tl.arange(0, ROWS).to(tl.int64)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [start.to(tl.int64) + row * stride, tl.zeros([ROWS], tl.int32) + size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _product(
    given,  # [tokens, depth]
    weight,  # [outputs, depth]; gated [2 * outputs, depth]: gate, then up
    bias,  # [outputs]
    out,  # [tokens, outputs], or sums [parts, tokens, outputs] in float32
    tokens,
    outputs,
    depth,
    each,  # of the depth, a part's
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    SUMS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    PREFETCHES: tl.constexpr,
):
    dtype = given.dtype.element_ty
    first, part = tl.program_id(0) * N, tl.program_id(1)
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    begin = part * each
    end = tl.minimum(begin + each, depth)
    weight += first.to(tl.int64) * depth
    upper = weight + outputs.to(tl.int64) * depth
    if PREFETCHES:
        size = (end - begin) * (dtype.primitive_bitwidth // 8)
        stride = depth * (dtype.primitive_bitwidth // 8)
        _prefetch_rows(weight + begin, stride, size, N)
        if GATED:
            _prefetch_rows(upper + begin, stride, size, N)
    if AHEAD:
        gdc_launch_dependents()
        gdc_wait()
    real, there = m < tokens, first + n < outputs
    sums = tl.zeros([M, N], tl.float32)
    others = tl.zeros([M, N], tl.float32)
    for at in tl.range(begin, end, K, num_stages=STAGES):
        within = at + k < end
        some = tl.load(
            given + m[:, None] * depth + (at + k)[None, :],
            mask=real[:, None] & within[None, :],
            other=0.0,
        )
        places = n[None, :] * depth + (at + k)[:, None]
        mask = there[None, :] & within[:, None]
        sums = tl.dot(some, tl.load(weight + places, mask=mask, other=0.0), sums)
        if GATED:
            others = tl.dot(some, tl.load(upper + places, mask=mask, other=0.0), others)
    if BIAS:
        sums += tl.load(bias + first + n, mask=there, other=0.0).to(tl.float32)[None, :]
    if GATED:
        gate = sums.to(dtype).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        sums = gate * others.to(dtype).to(tl.float32)
    at = (part * tokens + m)[:, None] * outputs + (first + n)[None, :]
    kept = real[:, None] & there[None, :]
    tl.store(out + at, sums if SUMS else sums.to(dtype), mask=kept)


@triton.jit
def _settle(
    sums,  # [parts, tokens, columns] float32
    added,  # [tokens, columns]
    norm,  # [columns]
    out,  # [tokens, columns]: the sums, rounded, and what is added
    normed,  # [tokens, columns]
    tokens,
    columns,
    eps,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    dtype = added.dtype.element_ty
    token, column = tl.program_id(0), tl.arange(0, COLUMNS)
    there = column < columns
    scales = tl.load(norm + column, mask=there, other=0.0).to(tl.float32)
    if AHEAD:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros([COLUMNS], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(sums + (part * tokens + token) * columns + column, mask=there, other=0.0)
    at = token * columns + column
    total = total.to(dtype).to(tl.float32)
    total = (total + tl.load(added + at, mask=there, other=0.0).to(tl.float32)).to(dtype)
    tl.store(out + at, total, mask=there)
    some = total.to(tl.float32)
    some *= tl.rsqrt(tl.sum(some * some, 0) / columns + eps)
    tl.store(normed + at, (scales * some.to(dtype).to(tl.float32)).to(dtype), mask=there)


def product(
    given: torch.Tensor,
    weight: torch.Tensor,
    tile: Tile,
    ahead: bool,
    bias: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """``[tokens, outputs]``; with several parts their sums ``[parts, tokens, outputs]``."""
    (tokens, depth), outputs = given.shape, len(weight) // (1 + gated)
    each = triton.cdiv(triton.cdiv(depth, tile.parts), tile.depth) * tile.depth
    parts = triton.cdiv(depth, each)
    assert parts == 1 or not (gated or bias is not None)
    settled = tile.parts == 1
    shape = (tokens, outputs) if settled else (parts, tokens, outputs)
    out = given.new_empty(shape, dtype=given.dtype if settled else torch.float32)
    _product[(triton.cdiv(outputs, tile.outputs), parts)](
        given, weight, given if bias is None else bias, out, tokens, outputs, depth, each,
        GATED=gated, BIAS=bias is not None, SUMS=not settled,
        M=max(16, triton.next_power_of_2(tokens)), N=tile.outputs, K=tile.depth,
        STAGES=tile.stages, AHEAD=ahead,
        PREFETCHES=ahead and outputs % tile.outputs == 0 and depth % 8 == 0,
        num_warps=tile.warps, **launching(ahead),
    )  # fmt: skip
    return out


def settle(
    sums: torch.Tensor, added: torch.Tensor, norm: torch.Tensor, ahead: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums with what is added ``[tokens, columns]``, and that normed."""
    parts, tokens, columns = sums.shape if sums.dim() == 3 else (1, *sums.shape)
    out, normed = torch.empty_like(added), torch.empty_like(added)
    _settle[(tokens,)](
        sums, added, norm, out, normed, tokens, columns, EPS, PARTS=parts,
        COLUMNS=triton.next_power_of_2(columns), AHEAD=ahead, num_warps=4, **launching(ahead),
    )  # fmt: skip
    return out, normed


class Tiles(NamedTuple):
    qkv: Tile
    out: Tile
    gate_up: Tile
    down: Tile


class Layer(NamedTuple):
    """A decoder layer's weights."""

    norm: torch.Tensor
    qkv: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def random(cls, hidden: int, inner: int, rows: int, device: Any, dtype: Any) -> Layer:
        def drawn(*shape: int) -> torch.Tensor:
            return (torch.randn(shape, device=device) / shape[-1] ** 0.5).to(dtype)

        norms = [1 + drawn(hidden) for _ in range(2)]
        return cls(
            norms[0], drawn(rows, hidden), drawn(rows), drawn(hidden, hidden), norms[1],
            drawn(2 * inner, hidden), drawn(hidden, inner),
        )  # fmt: skip


def ours(layers: list[Layer], hidden: torch.Tensor, tiles: Tiles, ahead: bool) -> torch.Tensor:
    normed = PLAIN.norm(hidden, layers[0].norm, EPS)
    for layer, following in zip(layers, [*layers[1:], layers[0]], strict=True):
        qkv = product(normed, layer.qkv, tiles.qkv, ahead, layer.bias)
        attended = qkv[:, : hidden.shape[1]].contiguous()
        sums = product(attended, layer.out, tiles.out, ahead)
        hidden, normed = settle(sums, hidden, layer.post_norm, ahead)
        inner = product(normed, layer.gate_up, tiles.gate_up, ahead, gated=True)
        sums = product(inner, layer.down, tiles.down, ahead)
        hidden, normed = settle(sums, hidden, following.norm, ahead)
    return normed


def theirs(layers: list[Layer], hidden: torch.Tensor, functions: Any) -> torch.Tensor:
    linear = functions.linear
    normed = functions.norm(hidden, layers[0].norm, EPS)
    for layer, following in zip(layers, [*layers[1:], layers[0]], strict=True):
        qkv = functions.project(normed, layer.norm, layer.qkv, layer.bias, EPS, linear)
        attended = qkv[:, : hidden.shape[1]].contiguous()
        hidden, normed = functions.finish(
            hidden, attended, layer.out, layer.post_norm, layer.gate_up, layer.down,
            following.norm, EPS, linear, False, None,
        )  # fmt: skip
    return normed


def recorded_us(run: Callable[[], Any], times: int, layers: int) -> float:
    """Microseconds a layer."""
    with torch.inference_mode():
        for _ in range(2):
            run()
        synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    graph.replay()
    return 1e3 * statistics.median(timed(graph.replay)[0] for _ in range(times)) / layers


CHOICES = {
    "qkv": [Tile(32, 64, 1, 4, 4), Tile(16, 128, 1, 4, 3), Tile(32, 128, 1, 4, 4)],
    "out": [Tile(64, 64, 4, 4, 4), Tile(32, 64, 4, 4, 4), Tile(64, 64, 8, 4, 3)],
    "gate_up": [Tile(32, 64, 1, 4, 4), Tile(64, 64, 1, 4, 3), Tile(64, 128, 1, 8, 3)],
    "down": [Tile(64, 64, 4, 4, 4), Tile(64, 64, 8, 4, 4), Tile(32, 128, 4, 4, 3)],
}


def agrees(layers: list[Layer], hidden: torch.Tensor, tiles: Tiles, ahead: bool) -> float:
    """How far apart they are, relative to the size of the whole, each held against float64."""
    exact = [Layer(*(weight.double() for weight in layer)) for layer in layers]
    with torch.inference_mode():
        expected = theirs(exact, hidden.double(), PLAIN)
        found = ours(layers, hidden, tiles, ahead).double()
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="whether they agree, and nothing else")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    usual = Tiles(*(choices[0] for choices in CHOICES.values()))
    if options.toy:
        shrunk = Tiles(*(tile._replace(outputs=16, depth=32) for tile in usual))
        for tokens, hidden in ((16, 64), (5, 96), (48, 100)):
            layers = [Layer.random(hidden, 144, hidden + 32, "cpu", torch.float32) for _ in "ab"]
            off = agrees(layers, torch.randn(tokens, hidden), shrunk, False)
            print(f"{tokens} tokens of {hidden}: {off:.2g} apart")
            assert off < 1e-5
        return
    device, dtype = torch.device("cuda"), torch.bfloat16
    ahead = overlaps(device)
    layers = [
        Layer.random(2048, 11_008, 2560, device, dtype) for _ in range(options.layers)
    ]  # as of 3B
    begin, report = time.monotonic(), {"layers": options.layers, "rows": []}

    class Model:  # what `step_functions` wants of one
        functions = PLAIN

    compiled = step_functions(Model, True)  # type: ignore[arg-type]
    for tokens in ROWS:
        hidden = torch.randn(tokens, 2048, device=device, dtype=dtype)
        row: dict[str, Any] = {"tokens": tokens, "apart": agrees(layers[:2], hidden, usual, ahead)}
        row["plain_us"] = recorded_us(
            lambda hidden=hidden: theirs(layers, hidden, compiled), options.times, options.layers
        )
        best = usual
        for name, tile in ((key, one) for key, tiles in CHOICES.items() for one in tiles):
            if time.monotonic() - begin > options.seconds:
                break
            tiles = best._replace(**{name: tile})
            try:
                us = recorded_us(
                    lambda tiles=tiles, hidden=hidden: ours(layers, hidden, tiles, ahead),
                    options.times,
                    options.layers,
                )
            except Exception as fault:  # more shared memory than there is
                print(f"  {name} {tuple(tile)}: {type(fault).__name__}", flush=True)
                continue
            print(f"  {tokens} tokens, {name} {tuple(tile)}: {us:.1f} us", flush=True)
            if us < row.get("ours_us", float("inf")):
                row["ours_us"], best = us, tiles
        row["tiles"] = best._asdict()
        row["not_overlapped_us"] = recorded_us(
            lambda best=best, hidden=hidden: ours(layers, hidden, best, False),
            options.times,
            options.layers,
        )
        report["rows"].append(row)
        print(json.dumps(row), flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
