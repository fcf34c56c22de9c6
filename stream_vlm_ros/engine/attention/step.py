# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The attention of a captured step: over a memory of any length, by tensors of fixed shape.

Everything that differs from call to call (the tokens, their positions, how long the memory is and
where it lies) is read from tensors on the device, and nothing is read back. So a CUDA graph
captured once serves a memory of any length. Here is what a step is given, and what its kernels
(`triton_decode`) compute, in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stream_vlm_ros.engine.cache.mrope import rotate

from .base import KVPart, LayerAttention, Readout

# Sink, kept grids, and the ring in two slices, each seen at a distance of its own: four occur, with
# every policy and layout.
MAX_PARTS = 6


class StepMemory:
    """What the steps read and write: a memory, which parts of it, and the question's tail.

    Args:
        stream: ``[layers, 2, kv_heads, slots, head_dim]``.
        tail: ``[layers, 2, kv_heads, room + 1, head_dim]``; padding is written to the last slot.

    Attributes:
        starts, lengths: ``[MAX_PARTS]``, slots of the memory; a part that is not there has
            length 0.
        offsets: cos and sin, ``[2, MAX_PARTS, head_dim]``, by which a query is rotated further to
            see each part.
    """

    def __init__(self, stream: torch.Tensor, tail: torch.Tensor):
        self.stream, self.tail = stream, tail
        size, device = stream.shape[-1], stream.device
        self.slices = torch.zeros(2, MAX_PARTS, dtype=torch.long, device=device)
        self.starts, self.lengths = self.slices
        self.offsets = torch.empty(2, MAX_PARTS, size, device=device)
        self.offsets[0], self.offsets[1] = 1.0, 0.0
        self._rotates = False

    @property
    def room(self) -> int:
        """Tokens that the tail holds."""
        return self.tail.shape[3] - 1

    def load(self, parts: Sequence[KVPart]) -> None:
        """Read these parts from now on; ``MAX_PARTS`` of them at most."""
        absent = [0] * (MAX_PARTS - len(parts))
        starts = [part.slots.start for part in parts]
        lengths = [part.length for part in parts]
        # As in `StepInputs.load`.
        self.slices.copy_(torch.tensor([starts + absent, lengths + absent]), non_blocking=True)
        if self._rotates:
            self.offsets[0], self.offsets[1] = 1.0, 0.0
        self._rotates = any(part.rope_offset is not None for part in parts)
        for number, part in enumerate(parts):
            if part.rope_offset is not None:
                self.offsets[0, number], self.offsets[1, number] = part.rope_offset


class StepInputs:
    """What one step is given, in one tensor on the device, so that one copy brings it there.

    Attributes:
        ids: ``[n]``.
        positions: ``[3, n]``.
        slots: ``[n]``, where in the tail each token's key and value go.
        begins: ``[n]``, see `load`.
        scalars: ``[4]``: how many tokens are real, the others being padding; how many are shared;
            how many are in the tail before; whose logits are wanted.
        last: the last of these.
    """

    def __init__(self, size: int, memory: StepMemory):
        self.size, self._padding_slot = size, memory.room
        self._all = torch.zeros(6 * size + 4, dtype=torch.long, device=memory.stream.device)
        self.ids, positions, self.slots, self.begins, self.scalars = self._all.split(
            [size, 3 * size, size, size, 4]
        )
        self.positions = positions.view(3, size)
        self.last = self.scalars[3:]
        self.slots.fill_(self._padding_slot)
        self._host = torch.zeros(len(self._all), dtype=torch.long)
        self._given = self._host.numpy()

    def load(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        past: int,
        shared: int,
        begins: Sequence[int] = (),
    ) -> None:
        """Give the step ``ids``, at ``positions [3, len(ids)]``, behind ``past`` others.

        Each token sees what is in the memory and in the tail; the first ``shared`` of ``ids``, and
        those from its entry in ``begins`` on, up to itself. Asked for are the logits of the last
        shared one.
        """
        count = len(ids)
        given, scalars = self._given[:-4].reshape(6, self.size), self._given[-4:]
        given[0, :count] = ids
        given[1:4, :count] = positions
        given[4, :count] = range(past, past + count)
        given[4, count:] = self._padding_slot
        given[5, :count] = begins or 0
        scalars[:] = count, shared, past, max(shared - 1, 0)
        # Not pinned: it is copied aside at once, though nothing waits for the device.
        self._all.copy_(self._host, non_blocking=True)


# queries [heads, n, head_dim], one layer's stream and tail, what is read, what the step is given,
# scaling -> [n, heads, head_dim]
AttendStep = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, StepMemory, StepInputs, float], torch.Tensor
]


def attend_step(
    queries: torch.Tensor,
    stream: torch.Tensor,
    tail: torch.Tensor,
    memory: StepMemory,
    inputs: StepInputs,
    scaling: float,
) -> torch.Tensor:
    """What `triton_decode` computes, in plain torch, reading the lengths back.

    Args:
        queries: ``[heads, n, head_dim]``, as the tail is seen.
        stream, tail: one layer's, ``[2, kv_heads, slots, head_dim]``.

    Returns:
        ``[n, heads, head_dim]``; zero for padding.
    """
    count, shared, past, _ = inputs.scalars.tolist()
    heads, _, size = queries.shape
    kv_heads = stream.shape[1]
    queries = queries[:, :count].unflatten(0, (kv_heads, -1))  # [kv_heads, group, n, head_dim]
    seen = [
        (rotate(queries, cos, sin), stream[:, :, start : start + length])
        for cos, sin, start, length in zip(
            *memory.offsets, memory.starts.tolist(), memory.lengths.tolist(), strict=True
        )
        if length
    ]
    seen.append((queries, tail[:, :, : past + count]))
    scores = [
        query.float() @ keys.float()[:, None].transpose(-1, -2) * scaling
        for query, (keys, _) in seen
    ]
    token, key = torch.arange(count)[:, None], torch.arange(-past, count)
    allowed = (key <= token) & ((key < shared) | (key >= inputs.begins[:count, None].cpu()))
    allowed |= key < 0
    scores[-1] = scores[-1].masked_fill(~allowed.to(stream.device), -torch.inf)
    weights = torch.cat(scores, dim=-1).softmax(-1)
    values = torch.cat([values for _, (_, values) in seen], dim=1).float()
    out = queries.new_zeros(inputs.size, heads, size)
    out[:count] = (weights @ values[:, None]).flatten(0, 1).transpose(0, 1)
    return out.to(stream.dtype)


# see `place_step`
PlaceStep = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


def place_step(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    tail: torch.Tensor,
) -> torch.Tensor:
    """Rotate queries and keys, and write keys and values to the tail.

    Args:
        qkv: ``[n, (heads + 2 * kv_heads) * head_dim]``: queries, keys, values.
        cos, sin: ``[n, head_dim]``.
        slots: ``[n]``.
        tail: one layer's, ``[2, kv_heads, slots, head_dim]``.

    Returns:
        Queries ``[heads, n, head_dim]``.
    """
    _, kv_heads, _, size = tail.shape
    rows = qkv.unflatten(-1, (-1, size)).transpose(0, 1)
    query, key, value = rows.split([len(rows) - 2 * kv_heads, kv_heads, kv_heads])
    tail.index_copy_(2, slots, torch.stack([rotate(key, cos, sin), value]))
    return rotate(query, cos, sin)


class StepAttention(LayerAttention):
    """The attention of a step's tokens: reads and writes where `StepMemory` says.

    Args:
        attend: see `attend_step`.
        place: see `place_step`.
        scaling: of the scores.
        readout: what is to be read before it is rotated.
    """

    def __init__(
        self,
        memory: StepMemory,
        inputs: StepInputs,
        attend: AttendStep,
        place: PlaceStep,
        scaling: float,
        readout: Readout | None = None,
    ):
        self._memory, self._inputs, self._readout = memory, inputs, readout
        self._attend, self._place, self._scaling = attend, place, scaling

    def __call__(
        self, layer: int, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        memory, inputs = self._memory, self._inputs
        tail = memory.tail[layer]
        if self._readout is not None:
            self._readout.take(layer, qkv, tail.shape[1], tail.shape[3])
        queries = self._place(qkv, cos, sin, inputs.slots, tail)
        stream = memory.stream[layer]
        attended = self._attend(queries, stream, tail, memory, inputs, self._scaling)
        return attended.flatten(1)
