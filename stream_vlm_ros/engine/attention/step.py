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

import numpy as np
import torch

from stream_vlm_ros.engine.cache.buffer import slot_in
from stream_vlm_ros.engine.cache.mrope import rotate
from stream_vlm_ros.engine.copies import to_device

from .base import KVPart, LayerAttention, Readout

# Sink, kept grids, and the ring in two slices, each seen at a distance of its own: four occur, with
# every policy and layout. (Even: two go into an int64, see `StepInputs`.)
MAX_PARTS = 6


class StepMemory:
    """What the steps read and write: a memory, which parts of it, and a tail for their own tokens.

    Args:
        stream: ``[layers, 2, kv_heads, slots, head_dim]``; where several requests share a step,
            the memories of all of them lie in it.
        tail: ``[layers, 2, kv_heads, requests * room + 1, head_dim]``, the requests' own one after
            the other; padding is written to the last slot.
        requests: that share a step.
        longest: slots of the largest of their memories; None: all of the stream's.

    Attributes:
        starts, lengths: ``[requests * MAX_PARTS]`` int32, slots of the memory (``starts`` is one
            longer); a part that is not there has length 0.
        offsets: cos and sin, ``[requests, 2, MAX_PARTS, head_dim]``, by which a query is rotated
            further to see each part.
    """

    def __init__(
        self,
        stream: torch.Tensor,
        tail: torch.Tensor,
        requests: int = 1,
        longest: int | None = None,
    ):
        self.stream, self.tail, self.requests = stream, tail, requests
        self.longest = stream.shape[3] if longest is None else longest
        size, device = stream.shape[-1], stream.device
        count = requests * MAX_PARTS
        self._slices = torch.zeros(2 * count + 1, dtype=torch.int32, device=device)
        self.starts, self.lengths = self._slices.split([count + 1, count])
        self.offsets = torch.empty(requests, 2, MAX_PARTS, size, device=device)
        self.offsets[:, 0], self.offsets[:, 1] = 1.0, 0.0
        self._unturned = (torch.ones(size, device=device), torch.zeros(size, device=device))
        self._rotates = False

    @property
    def room(self) -> int:
        """Tokens of one request that the tail holds."""
        return (self.tail.shape[3] - 1) // self.requests

    def load(self, *requests: Sequence[KVPart]) -> None:
        """Read these parts from now on, of each request ``MAX_PARTS`` of them at most.

        Requests that are not named read nothing.
        """
        starts, lengths = np.zeros((2, self.requests, MAX_PARTS), np.int32)
        self._rotates |= any(part.rope_offset is not None for parts in requests for part in parts)
        for request, parts in enumerate(requests):
            for number, part in enumerate(parts):
                starts[request, number] = slot_in(part.memory, self.stream) + part.slots.start
                lengths[request, number] = part.length
            if self._rotates:  # or did: what is left of that is overwritten
                turns = [part.rope_offset or self._unturned for part in parts]
                turns += [self._unturned] * (MAX_PARTS - len(parts))
                waves = [turn[which] for which in (0, 1) for turn in turns]
                # In one go: the host is what a question waits for here.
                torch.cat(waves, out=self.offsets[request].view(-1))
        given = np.concatenate([starts.ravel(), [0], lengths.ravel()]).astype(np.int32)
        self._slices.copy_(torch.from_numpy(given), non_blocking=True)  # as in `StepInputs.load`


class StepInputs:
    """What one step is given, in one tensor on the device, so that one copy brings it there.

    Args:
        size: tokens of each of the memory's requests, of which the last may be padding.

    Attributes:
        tokens: of all requests, their tokens laid end to end: ``n``.
        ids: ``[n]``.
        positions: ``[3, n]``.
        slots: ``[n]``, where in the tail each token's key and value go.
        begins: ``[n]``, see `load`.
        scalars: ``[requests, 4]``: how many tokens are real, the others being padding; how many
            are shared; how many are in the tail before; whose logits are wanted.
        last: the last of these.
        parts_begin: ``[requests * MAX_PARTS + 1]`` int32: where each part's queries begin, if every
            request's are there once for each.
        parts_real: ``[requests * MAX_PARTS]`` int32: how many of them are real.
    """

    def __init__(self, size: int, memory: StepMemory):
        requests, device = memory.requests, memory.stream.device
        self.size, self.tokens, self._room = size, requests * size, memory.room
        self._padding_slot = memory.tail.shape[3] - 1
        n = self.tokens
        pairs = requests * MAX_PARTS // 2  # of int32, so that they come with the same copy
        lengths = [n, 3 * n, n, n, 4 * requests, pairs]
        self._all = torch.zeros(sum(lengths), dtype=torch.long, device=device)
        self.ids, positions, self.slots, self.begins, scalars, real = self._all.split(lengths)
        self.positions, self.scalars = positions.view(3, n), scalars.view(requests, 4)
        self.last, self.parts_real = scalars[3:4], real.view(torch.int32)
        self.slots.fill_(self._padding_slot)
        self.parts_begin = size * torch.arange(
            requests * MAX_PARTS + 1, dtype=torch.int32, device=device
        )
        self._host = torch.zeros(len(self._all), dtype=torch.long)
        rows, scalars, real = self._host.split([6 * n, *lengths[4:]])
        self._rows = rows.view(6, requests, size).numpy()  # ids, positions, slots and begins
        self._scalars = scalars.view(requests, 4).numpy()
        self._real = real.view(torch.int32).view(requests, MAX_PARTS).numpy()

    def load(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        past: int,
        shared: int,
        begins: Sequence[int] = (),
        first: int = 0,
    ) -> None:
        """Give the step ``ids``, at ``positions [3, len(ids)]``, behind ``past`` others, which lie
        in the tail from slot ``first`` on.

        Each token sees what is in the memory and in the tail; the first ``shared`` of ``ids``, and
        those from its entry in ``begins`` on, up to itself. Asked for are the logits of the last
        shared one.
        """
        assert len(self._scalars) == 1, "of one request"
        count = len(ids)
        given = self._rows[:, 0]
        given[0, :count] = ids
        given[1:4, :count] = positions
        given[4, :count] = range(first + past, first + past + count)
        given[4, count:] = self._padding_slot
        given[5, :count] = begins or 0
        self._scalars[:] = count, shared, past, max(shared - 1, 0)
        self._real[:] = count
        # Not pinned: it is copied aside at once, though nothing waits for the device.
        self._all.copy_(self._host, non_blocking=True)

    def load_chunks(self, positions: Sequence[torch.Tensor]) -> None:
        """Give the step a chunk of each request, at these ``positions [3, tokens]``.

        Requests beyond those are padding.
        """
        given, scalars, real = self._rows, self._scalars, self._real
        given[4], scalars[:], real[:] = self._padding_slot, 0, 0
        for request, at in enumerate(positions):
            count, first = at.shape[1], request * self._room
            given[1:4, request, :count] = at
            given[4, request, :count] = range(first, first + count)
            scalars[request, :2] = real[request] = count
        self._all.copy_(to_device(self._host, self._all.device), non_blocking=True)

    def load_tokens(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        firsts: Sequence[int],
        past: Sequence[int],
    ) -> None:
        """Give a step of one token a request the next one of each, at ``positions [3, requests]``.

        Requests beyond those are padding.

        Args:
            firsts: where in the tail the tokens of each begin.
            past: how many each has there before this one.
        """
        count, scalars, real = len(ids), self._scalars, self._real
        given = self._rows[:, :, 0]
        given[4], scalars[:], real[:] = self._padding_slot, 0, 0
        given[0, :count], given[1:4, :count] = ids, positions
        given[4, :count] = np.add(firsts, past)
        scalars[:count, :2], scalars[:count, 2], real[:count] = 1, past, 1
        self._all.copy_(self._host, non_blocking=True)  # as in `load`


# queries [heads, n, head_dim] of all requests, one layer's stream and tail, what is read, what the
# step is given, scaling -> [n, heads, head_dim]
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
    heads, _, size = queries.shape
    kv_heads = stream.shape[1]
    out = queries.new_zeros(inputs.tokens, heads, size, dtype=torch.float32)
    for request, (count, shared, past, _) in enumerate(inputs.scalars.tolist()):
        own, parts = request * inputs.size, slice(request * MAX_PARTS, (request + 1) * MAX_PARTS)
        # [kv_heads, group, n, head_dim]
        query = queries[:, own : own + count].unflatten(0, (kv_heads, -1))
        seen = [
            (rotate(query, cos, sin), stream[:, :, start : start + length])
            for cos, sin, start, length in zip(
                *memory.offsets[request],
                memory.starts[parts].tolist(),
                memory.lengths[parts].tolist(),
                strict=True,
            )
            if length
        ]
        first = int(inputs.slots[own]) - past
        seen.append((query, tail[:, :, first : first + past + count]))
        scores = [
            query.float() @ keys.float()[:, None].transpose(-1, -2) * scaling
            for query, (keys, _) in seen
        ]
        token, key = torch.arange(count)[:, None], torch.arange(-past, count)
        begins = inputs.begins[own : own + count, None].cpu()
        allowed = (key <= token) & ((key < shared) | (key >= begins)) | (key < 0)
        scores[-1] = scores[-1].masked_fill(~allowed.to(stream.device), -torch.inf)
        weights = torch.cat(scores, dim=-1).softmax(-1)
        values = torch.cat([values for _, (_, values) in seen], dim=1).float()
        out[own : own + count] = (weights @ values[:, None]).flatten(0, 1).transpose(0, 1)
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
