# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A Triton kernel that merges attention over parts of the memory.

Imported only where there is a GPU (and by its test, which runs it in Triton's interpreter).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .base import AttnState, Merger


@triton.jit
def _merge_kernel(
    outs,  # tuples of pointers: outputs, their log-sum-exp [heads, tokens]...
    lses,
    kv_strides,  # ...and of strides of the outputs
    group_strides,
    token_strides,
    count,  # of the entries that are parts
    merged,  # [tokens, heads, D]
    merged_lse,  # [heads, tokens]
    tokens,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One query head of some tokens."""
    head = tl.program_id(1)
    kv, group = head // GROUP, head % GROUP
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = token < tokens
    dim = tl.arange(0, D)
    lse_at = head * tokens + token
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    for part in tl.static_range(len(outs)):
        if part < count:
            lse = tl.load(lses[part] + lse_at, mask=there, other=0.0)
            most = tl.maximum(most, lse)
    total = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK, D], tl.float32)
    for part in tl.static_range(len(outs)):
        if part < count:
            lse = tl.load(lses[part] + lse_at, mask=there, other=0.0)
            weight = tl.exp(lse - most)
            at = kv * kv_strides[part] + group * group_strides[part]
            at = outs[part] + at + token[:, None] * token_strides[part] + dim[None, :]
            some = tl.load(at, mask=there[:, None], other=0.0)
            total += weight
            sums += some.to(tl.float32) * weight[:, None]
    sums = sums / total[:, None]
    at = merged + (token[:, None] * tl.num_programs(1) + head) * D + dim[None, :]
    tl.store(at, sums.to(merged.dtype.element_ty), mask=there[:, None])
    tl.store(merged_lse + lse_at, most + tl.log(total), mask=there)


_BLOCK = 32  # tokens a program


def merge_into(parts: Sequence[AttnState], merged: torch.Tensor, merged_lse: torch.Tensor) -> None:
    """Attention over the union of parts; see `base.Merger`.

    Args:
        parts: outputs ``[kv_heads, h / kv_heads, n, d]`` of any strides but the last, and their
            log-sum-exp, contiguous.
        merged: of the same shape, with ``[n, kv_heads, h / kv_heads, d]`` in memory.
        merged_lse: like one of those.
    """
    kv_heads, groups, tokens, size = merged.shape
    # As many at each call, so that Triton builds it once.
    given = [*parts, *[parts[0]] * (Merger.MAX_PARTS - len(parts))]
    strides = (tuple(out.stride(axis) for out, _ in given) for axis in range(3))
    with torch.cuda.device_of(merged):  # Triton launches on the current one
        _merge_kernel[triton.cdiv(tokens, _BLOCK), kv_heads * groups](
            tuple(out for out, _ in given),
            tuple(lse for _, lse in given),
            *strides,
            len(parts),
            merged,
            merged_lse,
            tokens,
            GROUP=groups,
            D=size,
            BLOCK=_BLOCK,
        )
