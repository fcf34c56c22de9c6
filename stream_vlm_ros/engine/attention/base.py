# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What attention over a memory in parts is made of: a part of the KV, a state, their merging.

Softmax attention over a set of keys can be computed part by part: each gives an output and its
log-sum-exp, and these merge exactly (FlashAttention, and vLLM's function of that name). What is
already in the memory needs no causal mask and may lie in any order, so each part is one plain call
of the fastest kernel there is, no mask is ever built, and nothing is copied together first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from .verified import Verified, relative_difference

AttnState = tuple[
    torch.Tensor, torch.Tensor
]  # attention over a part [..., d], its log-sum-exp [...]
RopeOffset = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [head_dim] each, in float32


class KVPart(NamedTuple):
    """Cached tokens that a request reads, all of them seen alike.

    Of the stream, of the request that this one branched from, or of anything else: a part does not
    care whose memory it is.

    Attributes:
        memory: where they lie, ``[layers, 2, kv_heads, slots, head_dim]``: keys, then values.
        slots: which of its slots they take.
        rope_offset: by how much a query is rotated further to see this part; None: not at all.
    """

    memory: torch.Tensor
    slots: slice
    rope_offset: RopeOffset | None

    @property
    def length(self) -> int:
        return self.slots.stop - self.slots.start

    def layers(self) -> tuple[torch.Tensor, ...]:
        """Keys and values of each layer, ``[2, kv_heads, tokens, head_dim]``."""
        return self.memory.narrow(3, self.slots.start, self.length).unbind()


class LayerAttention(ABC):
    """The attention of one pass over the language model, which its layers call in turn.

    Between a layer's projection and its output: rotates queries and keys, stores keys and values,
    and attends to them and to what the pass may see of the memory.
    """

    @abstractmethod
    def __call__(
        self, layer: int, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the pass's tokens in one layer.

        Args:
            qkv: ``[n, (heads + 2 * kv_heads) * head_dim]``: queries, keys and values, not rotated.
            cos, sin: ``[n, head_dim]``, the tokens' rotation.

        Returns:
            ``[n, heads * head_dim]``.
        """


class BatchAttention(LayerAttention):
    """Several requests in one pass, each over a memory of its own, their tokens laid end to end.

    Args:
        requests: for each its attention and how many tokens it has in the pass.
    """

    def __init__(self, requests: Sequence[tuple[LayerAttention, int]]):
        self._requests = [attention for attention, _ in requests]
        self._tokens = [tokens for _, tokens in requests]

    def __call__(
        self, layer: int, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        given = zip(*(x.split(self._tokens) for x in (qkv, cos, sin)), strict=True)
        return torch.cat(
            [attend(layer, *own) for attend, own in zip(self._requests, given, strict=True)]
        )


def by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """(layer, head) pairs as `Readout` takes them: the heads of each layer, in the order given."""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found


class Readout:
    """Queries and keys of chosen layers and heads as projected, not rotated, read in passing.

    To be found again by what was asked, keys must not know where they stood. Costs a copy of what
    is read.

    Args:
        queries: the query heads to read of each layer.
        keys: the KV heads to read of each layer.
    """

    def __init__(
        self,
        queries: Mapping[int, Sequence[int]] | None = None,
        keys: Mapping[int, Sequence[int]] | None = None,
    ):
        self.heads = (
            {layer: tuple(heads) for layer, heads in (queries or {}).items()},
            {layer: tuple(heads) for layer, heads in (keys or {}).items()},
        )
        self.clear()

    def clear(self) -> None:
        """Forget what was read."""
        self._queries: dict[int, list[torch.Tensor]] = {}
        self._keys: dict[int, list[torch.Tensor]] = {}

    def like(self) -> Readout:
        """One of the same heads that has read nothing."""
        return Readout(*self.heads)

    def extend(self, other: Readout, tokens: int, first: int = 0) -> None:
        """Copy what another of the same heads has read, of ``tokens`` from ``first`` on."""
        for mine, theirs in ((self._queries, other._queries), (self._keys, other._keys)):
            for layer, read in theirs.items():
                mine.setdefault(layer, []).append(
                    _end_to_end(read)[:, first : first + tokens].clone()
                )

    def take(self, layer: int, qkv: torch.Tensor, kv_heads: int, head_dim: int) -> None:
        """Read ``qkv`` as `LayerAttention` is given it."""
        rows = qkv.view(len(qkv), -1, head_dim).transpose(0, 1)  # [heads + 2 * kv_heads, n, d]
        queries, keys = self.heads
        first = len(rows) - 2 * kv_heads
        if heads := queries.get(layer):
            read = torch.stack([rows[head] for head in heads])
            self._queries.setdefault(layer, []).append(read)
        if heads := keys.get(layer):
            read = torch.stack([rows[first + head] for head in heads])
            self._keys.setdefault(layer, []).append(read)

    def queries(self, layer: int) -> torch.Tensor:
        """``[heads, n, head_dim]`` of all tokens so far."""
        return _end_to_end(self._queries[layer])

    def keys(self, layer: int) -> torch.Tensor:
        """``[kv_heads, n, head_dim]`` of all tokens so far."""
        return _end_to_end(self._keys[layer])


def _end_to_end(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


# Of parts [kv_heads, h / kv_heads, n, d] with their log-sum-exp, into an output and a log-sum-exp.
MergeKernel = Callable[[Sequence[AttnState], torch.Tensor, torch.Tensor], None]


def merge_attn_states(parts: Sequence[AttnState]) -> torch.Tensor:
    """Attention over the union of disjoint sets of keys, from the attention over each.

    ``softmax`` over a union weighs each part's output by ``exp(lse_part - lse_union)``.

    Args:
        parts: outputs ``[..., d]`` and their log-sum-exp ``[...]``.
    """
    first = parts[0][0]
    if len(parts) == 1:
        return first
    return MERGER.merge(parts) if first.is_cuda else merge_by_tensors(parts)


def merge_by_tensors(parts: Sequence[AttnState]) -> torch.Tensor:
    """`merge_attn_states` by tensor operations, on any device."""
    first = parts[0][0]
    weights = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(-1)
    out = first * weights[0]  # in float32, as the weights are
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        out.addcmul_(part, weight)
    return out.to(first.dtype)


def _triton_kernel() -> MergeKernel:
    from .triton_merge import merge_into

    return merge_into


class Merger:
    """`merge_attn_states` for a chunk on a GPU as one kernel, which reads each part once.

    A chunk sees its memory in up to a dozen parts, each as large as its queries: tensor operations
    read and write sums in float32 for every one.

    Args:
        load: gives the kernel, or raises.
    """

    MAX_PARTS = 8  # of one call

    def __init__(self, load: Callable[[], MergeKernel] = _triton_kernel):
        self._load = load
        self._kernel: MergeKernel | None = None
        self.verified: Verified[torch.Tensor] = Verified(
            "parts of the memory are merged without a kernel of their own, which takes longer"
        )

    def merge(self, parts: Sequence[AttnState]) -> torch.Tensor:
        """The output over all parts.

        Args:
            parts: outputs ``[b, kv_heads, h / kv_heads, n, d]`` and their log-sum-exp.
        """
        first = parts[0][0]
        size = first.shape[-1]
        whole_size = size & (size - 1) == 0  # Triton's blocks are powers of two
        regular = all(out.stride(-1) == 1 and lse.is_contiguous() for out, lse in parts)
        if len(first) != 1 or not regular or not whole_size:
            return merge_by_tensors(parts)
        return self.verified.run(
            (first.device, first.dtype, f"heads of {size}"),
            lambda: self._by_kernel(parts),
            lambda: merge_by_tensors(parts),
            _differ,
        )

    def _by_kernel(self, parts: Sequence[AttnState]) -> torch.Tensor:
        if self._kernel is None:
            self._kernel = self._load()
        waiting = list(parts)
        while True:
            now, waiting = waiting[: self.MAX_PARTS], waiting[self.MAX_PARTS :]
            first, lse = now[0]
            _, kv_heads, groups, length, size = first.shape
            out = first.new_empty(length, kv_heads, groups, size).permute(1, 2, 0, 3)
            merged_lse = torch.empty_like(lse[0])
            self._kernel([(out[0], lse[0]) for out, lse in now], out, merged_lse)
            if not waiting:
                return out.unsqueeze(0)
            waiting.insert(0, (out.unsqueeze(0), merged_lse.unsqueeze(0)))


def _differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    # Both round once to the format.
    return relative_difference(found, expected, 4 * torch.finfo(found.dtype).eps)


MERGER = Merger()
