# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""FlashAttention 3 where it is installed (``fa3-fwd``) and runs (Hopper): of chunks and of steps.

It takes sequences of any lengths, laid end to end, and reads where each begins and how long it is
from tensors on the device. So one call serves all parts of a memory, of all requests of a step, and
a CUDA graph that recorded it serves memories of any length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch

from .base import AttnState, KVPart
from .cudnn import Kernel, kind_of
from .step import MAX_PARTS, AttendStep, StepInputs, StepMemory, attend_step
from .verified import Verified, relative_difference

# Tokens of a request, and scores a head (a step's tokens times the memory's), from which on it pays
# in a captured step: it is five kernels, and `triton_decode` two. (From 700,000 scores on it is up
# to a tenth faster over a full memory, but memories are shorter than they may be.) A decode step of
# eight answers has one token of each, and stays with Triton.
MIN_TOKENS = 16
MIN_SCORES = 1_100_000

_TILE = 128  # rows of queries that a program takes, at a head size of 128
_FEW_SPLITS = 8


class Varlen(Protocol):
    """Attention of sequences that lie end to end: queries of each to keys of each."""

    def __call__(
        self,
        queries: torch.Tensor,
        queries_begin: torch.Tensor,
        queries_count: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        keys_begin: torch.Tensor,
        keys_count: torch.Tensor,
        max_queries: int,
        max_keys: int,
        scaling: float,
    ) -> AttnState:
        """Output ``[n, heads, d]`` and log-sum-exp ``[heads, n]``; of padding, anything.

        Args:
            queries: ``[n, heads, d]``.
            queries_begin, queries_count: where each sequence's begin, one entry more than there
                are, and how many it has; those behind them are padding.
            keys, values: ``[slots, kv_heads, d]``.
            keys_begin, keys_count: the same of those.
            max_queries, max_keys: of one sequence.
        """


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether the package is there."""
    try:
        import fa3_fwd_interface  # noqa: F401
    except Exception:  # built for another torch or CUDA, it raises anything
        return False
    return True


def runs_on(device: torch.device) -> bool:
    """Whether it is installed, and the device is of the kind it is written for."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    return installed()


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool
) -> AttnState:
    """Attention of ``query [b, h, n, d]``: output like it, and the log-sum-exp ``[b, h, n]``."""
    from fa3_fwd_interface import flash_attn_func

    given = (x.transpose(1, 2) for x in (query, key, value))
    out, lse = flash_attn_func(
        *given, softmax_scale=scaling, causal=causal, num_splits=0, return_attn_probs=True
    )[:2]
    return out.transpose(1, 2), lse


def varlen(
    queries: torch.Tensor,
    queries_begin: torch.Tensor,
    queries_count: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    keys_begin: torch.Tensor,
    keys_count: torch.Tensor,
    max_queries: int,
    max_keys: int,
    scaling: float,
) -> AttnState:
    """See `Varlen`."""
    from fa3_fwd_interface import flash_attn_varlen_func

    heads, kv_heads, requests = queries.shape[1], keys.shape[1], len(queries_count) // MAX_PARTS
    processors = torch.cuda.get_device_properties(queries.device).multi_processor_count
    out, lse = flash_attn_varlen_func(
        queries,
        keys,
        values,
        queries_begin,
        keys_begin,
        max_seqlen_q=max_queries,
        max_seqlen_k=max_keys,
        seqused_q=queries_count,  # padding takes no time
        seqused_k=keys_count,
        softmax_scale=scaling,
        num_splits=most_splits(heads, kv_heads, max_queries, requests, processors),
        pack_gqa=True,
        return_attn_probs=True,
    )[:2]
    return out, lse


def most_splits(heads: int, kv_heads: int, size: int, requests: int, processors: int) -> int:
    """The most splits of the keys that FlashAttention 3 is given; 0: it chooses.

    How many it makes it works out on the device, from the real queries. But its own bound counts
    padding, too: for a step that is half padding it can be half of what keeps the device busy.

    Args:
        size: of a request's queries, of which half may be padding.
        processors: of the device.
    """
    if requests > 1:  # which keep it busy together; and each split takes memory for all of them
        return 0
    fewest_rows = (size // 2 + 1) * (heads // kv_heads)
    most = processors // (kv_heads * -(-fewest_rows // _TILE))
    # Where splits are few, one more can make a second round of programs necessary.
    return most if most >= _FEW_SPLITS else 0


def pays(memory: StepMemory, inputs: StepInputs) -> bool:
    """Whether it is the faster one for such a step."""
    return inputs.size >= MIN_TOKENS and inputs.tokens * memory.longest >= MIN_SCORES


def step_attention(
    other: AttendStep,
    by: Varlen = varlen,
    takes: Callable[[StepMemory, StepInputs], bool] = pays,
) -> AttendStep:
    """`step.attend_step`: the memory by ``by``, a step's own tokens and all merged by a kernel.

    Args:
        other: for steps that it does not take.
    """
    from .triton_own import attend_own_and_merge, turn

    def attend(
        queries: torch.Tensor,
        stream: torch.Tensor,
        tail: torch.Tensor,
        memory: StepMemory,
        inputs: StepInputs,
        scaling: float,
    ) -> torch.Tensor:
        if not takes(memory, inputs):
            return other(queries, stream, tail, memory, inputs, scaling)
        turned = turn(queries, memory, inputs)  # [requests * MAX_PARTS * size, heads, head_dim]
        keys, values = stream.transpose(1, 2)
        past = by(
            queries=turned,
            queries_begin=inputs.parts_begin,
            queries_count=inputs.parts_real,
            keys=keys,
            values=values,
            keys_begin=memory.starts,
            keys_count=memory.lengths,
            max_queries=inputs.size,
            max_keys=memory.longest,
            scaling=scaling,
        )
        return attend_own_and_merge(queries, tail, memory, inputs, scaling, past)

    return attend


def fastest_step_attention(
    other: AttendStep, device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]
) -> AttendStep:
    """`step_attention` where it runs and has proved itself on noise; else ``other``.

    Args:
        heads: query heads, KV heads, and their size.
    """
    if dtype not in (torch.float16, torch.bfloat16) or not runs_on(device):
        return other
    kind = (device, dtype, heads)
    attend, always = step_attention(other), step_attention(other, takes=lambda *_: True)
    STEPS.run(
        kind,
        lambda: _on_noise(always, device, dtype, heads),
        lambda: _on_noise(attend_step, device, dtype, heads),
        _differ,
    )
    return other if kind in STEPS.refused else attend


def _on_noise(
    attend: AttendStep, device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]
) -> torch.Tensor:
    """Two requests of a step over parts of a memory of noise."""
    query_heads, kv_heads, size = heads
    noise = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise, device=device).to(dtype)

    stream, tail = draw(1, 2, kv_heads, 600, size), draw(1, 2, kv_heads, 65, size)
    angles = draw(size // 2).float().repeat(2)
    turned = (angles.cos(), angles.sin())
    memory = StepMemory(stream, tail, requests=2, longest=400)
    memory.load(
        [KVPart(stream, slice(0, 100), turned), KVPart(stream, slice(130, 299), None)],
        [KVPart(stream, slice(300, 600), turned)],
    )
    inputs = StepInputs(32, memory)
    inputs.load_chunks([torch.zeros(3, 32), torch.zeros(3, 20)])
    queries = draw(64, query_heads, size).transpose(0, 1)
    return attend(queries, stream[0], tail[0], memory, inputs, size**-0.5)


def _differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    # Each rounds its weights to the format, and the outputs of the parts.
    return relative_difference(found, expected, 8 * torch.finfo(found.dtype).eps)


class Flash3Prefill:
    """Attention of the many queries of a chunk, as long as it works.

    Args:
        kernel: see `dense`.
        fast_on: the devices where it runs.
        min_rows: queries a head from which on it pays.
    """

    def __init__(
        self,
        kernel: Kernel = dense,
        fast_on: Callable[[torch.device], bool] = runs_on,
        min_rows: int = 512,
    ):
        self._kernel, self._fast_on, self.min_rows = kernel, fast_on, min_rows
        self.verified: Verified[AttnState] = Verified(
            "FlashAttention 3 does not attend to chunks, which take longer"
        )

    def takes(self, query: torch.Tensor, causal: bool = False) -> bool:
        """Whether to give `attend` queries ``[b, h, n, d]``."""
        if query.shape[2] < self.min_rows or not self._fast_on(query.device):
            return False
        return kind_of(query, causal) not in self.verified.refused

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        other: Kernel,
        causal: bool = False,
    ) -> AttnState:
        """Attention that `takes` allowed, by ``other`` where this kernel fails."""
        given = (query, key, value, scaling, causal)
        return self.verified.run(
            kind_of(query, causal),
            lambda: self._kernel(*given),
            lambda: other(*given),
            _differ_states,
        )


def _differ_states(found: AttnState, expected: AttnState) -> str | None:
    why = _differ(found[0], expected[0])
    return _far(found[1], expected[1]) if why == "" else why


def _far(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Log-sum-exps that are further apart than products of 16 bits, summed in 32, can be."""
    off = float((found - expected).abs().max())
    return "" if off <= 0.02 else f"its log-sum-exp is {off:.3g} off"


STEPS: Verified[torch.Tensor] = Verified(
    "FlashAttention 3 does not attend to captured steps, which take longer"
)
FLASH3_PREFILL = Flash3Prefill()
