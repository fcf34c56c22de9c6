# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`KeySlots`: where the keys of an index lie, a few tokens a slot, and the best product of each.

Whose keys a slot holds is known by a ticket, which nobody gets twice. So who still refers to what
was overwritten meanwhile finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

SEGMENTS = 32  # that a full index consists of, or up to twice as many
FREE = -1  # ticket of a slot that holds nothing
_BLOCK_BYTES = 1 << 21  # keys that a CPU converts at a time: what its cache holds
_EVEN = 8  # rows that matrix units like


class KeySlots:
    """Slots of ``tokens`` keys each of some heads, made by the segment as they are needed.

    Args:
        heads, head_dim: of the keys.
        tokens: of a slot.
        capacity: slots that there may be, at least 1; a little less is made use of.
        dtype, device: of the keys.
        segment_slots: of a segment; 0: as many as a 32nd of the capacity.
        make: makes the keys of the segment of a number, where it is not plain memory.

    Attributes:
        segments: what the keys lie in, each ``[heads, slots, tokens, head_dim]``.
        owner: for each slot the ticket of who wrote it last, int64 ``[slots]``.
        first: the first slot of the grid that it is a part of, int64 ``[slots]``.
        stamps: from when to when the grid's frames are, float64 ``[slots, 2]``.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        tokens: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        segment_slots: int = 0,
        make: Callable[[int], torch.Tensor] | None = None,
    ):
        self.heads, self.head_dim, self.tokens = heads, head_dim, tokens
        self.dtype, self.device = dtype, device
        self.segment_slots = segment_slots or max(1, capacity // SEGMENTS)
        self._make = make or (lambda number: self.zeros())
        self.capacity = capacity // self.segment_slots * self.segment_slots
        self.segments: list[torch.Tensor] = []
        self.owner = np.empty(0, np.int64)
        self.first = np.empty(0, np.int64)
        self.stamps = np.empty((0, 2))
        self._free: list[int] = []  # the lowest last

    def __len__(self) -> int:
        return len(self.owner)

    # -- who has which -------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that there are and that the newest state does not need."""
        return len(self._free)

    def grow(self) -> bool:
        """Another segment of free slots; False if all are there."""
        there = len(self)
        if there == self.capacity:
            return False
        self.segments.append(self._make(len(self.segments)))
        self.owner = np.append(self.owner, np.full(self.segment_slots, FREE))
        self.first = np.append(self.first, np.zeros(self.segment_slots, np.int64))
        self.stamps = np.append(self.stamps, np.zeros((self.segment_slots, 2)), axis=0)
        self._free = [*range(len(self) - 1, there - 1, -1), *self._free]
        return True

    def zeros(self) -> torch.Tensor:
        """The keys of a segment in plain memory of the device."""
        shape = (self.heads, self.segment_slots, self.tokens, self.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def take(self, count: int, ticket: int, stamps: tuple[float, float]) -> list[int]:
        """So many free slots for a grid; who else referred to them has lost them."""
        slots = [self._free.pop() for _ in range(count)]
        for slot in slots:
            owner = self.owner.item(slot)
            if owner != FREE and self.owner.item(first := self.first.item(slot)) == owner:
                self.owner[first] = FREE  # and so all its parts are gone
            self.owner[slot] = ticket
        self.first[slots], self.stamps[slots] = slots[0], stamps
        return slots

    def shrink(self, segments: int) -> None:
        """Do without the segments beyond so many, in which there is nothing any more."""
        self.capacity = segments * self.segment_slots
        del self.segments[segments:]
        self.owner, self.first = self.owner[: self.capacity], self.first[: self.capacity]
        self.stamps = self.stamps[: self.capacity]
        self._free = [slot for slot in self._free if slot < self.capacity]

    def parts_of(self, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All slots of these grids, rising, and the place of each one's grid in ``firsts``."""
        place = np.full(len(self), -1)
        place[firsts] = np.arange(len(firsts))
        of = place[self.first]
        slots = np.flatnonzero((of >= 0) & (self.owner == self.owner[self.first]))
        return slots, of[slots]

    def give_back(self, firsts: np.ndarray) -> None:
        """The newest state does not need these grids any more; others find them until they are
        overwritten."""
        slots, _ = self.parts_of(firsts)
        self._free = sorted({*self._free, *slots.tolist()}, reverse=True)

    def give_back_all_but(self, firsts: np.ndarray) -> None:
        """The newest state needs these grids alone."""
        needed = np.zeros(len(self), bool)
        needed[self.parts_of(firsts)[0]] = True
        self._free = np.flatnonzero(~needed)[::-1].tolist()

    def owned(self, firsts: np.ndarray, tickets: np.ndarray) -> np.ndarray:
        """Which of these grids, by their first slots, are still there."""
        there = firsts < len(self)
        there[there] = self.owner[firsts[there]] == tickets[there]
        return there

    # -- keys ----------------------------------------------------------------------------------

    @property
    def slot_bytes(self) -> int:
        return self.heads * self.tokens * self.head_dim * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    def write(self, slots: Sequence[int], pages: torch.Tensor) -> None:
        """Keys ``[heads, slots, tokens, head_dim]`` into these slots."""
        for segment, row, at, count in self.runs(slots):
            self.segments[segment][:, row : row + count].copy_(pages[:, at : at + count])

    def disown(self, slots: np.ndarray) -> None:
        """Whoever refers to these slots has lost them."""
        self.owner[slots] = FREE

    def erase(self, slots: np.ndarray) -> None:
        """Nothing of these slots' keys stays."""
        for segment, row, _, count in self.runs(slots.tolist()):
            self.segments[segment][:, row : row + count] = 0

    def runs(self, slots: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
        """Slots that lie one behind the other: segment, row, place among ``slots``, how many."""
        at = 0
        while at < len(slots):
            segment, row = divmod(slots[at], self.segment_slots)
            most = min(len(slots) - at, self.segment_slots - row)
            count = 1
            while count < most and slots[at + count] == slots[at] + count:
                count += 1
            yield segment, row, at, count
            at += count

    def best(self, queries: torch.Tensor, first_head: int) -> torch.Tensor:
        """The largest product of each slot's tokens with each query.

        Args:
            queries: ``[some heads, n, head_dim]``, of the heads from ``first_head`` on.

        Returns:
            ``[some heads, n, slots]`` in float32.
        """
        count, n, _ = queries.shape
        heads = slice(first_head, first_head + count)
        if self.device.type == "cpu":
            return self._best_on_cpu(queries.float(), heads)
        queries = torch.nn.functional.pad(queries.to(self.dtype), (0, 0, 0, -n % _EVEN))
        found = [_best_tokens(queries, segment[heads]) for segment in self.segments]
        return torch.cat(found, dim=2)[:, :n].float()

    def _best_on_cpu(self, queries: torch.Tensor, heads: slice) -> torch.Tensor:
        """Keys converted by the block into one place: fast on any CPU, and no copy of them all.

        (Allocating memory for each block would cost more than what is done there.)
        """
        count, n, width = queries.shape
        step = max(1, _BLOCK_BYTES // (4 * count * self.tokens * width))
        step = min(step, self.segment_slots)
        block = torch.empty(count * step * self.tokens * width)
        products = torch.empty(count * n * step * self.tokens)
        best = torch.empty(count, n, len(self))
        at = 0
        for segment in self.segments:
            for keys in segment[heads].split(step, dim=1):
                keys = keys.flatten(1, 2)  # [heads, tokens, head_dim]
                if keys.dtype != torch.float32:
                    keys = block[: keys.numel()].view(keys.shape).copy_(keys)
                shape = (count, n, keys.shape[1])
                found = products[: math.prod(shape)].view(shape)
                torch.bmm(queries, keys.transpose(1, 2), out=found)
                found = found.unflatten(2, (-1, self.tokens))
                torch.amax(found, 3, out=best[:, :, at : at + found.shape[2]])
                at += found.shape[2]
        return best


def _best_tokens(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of ``[heads, slots, tokens, head_dim]``, for each query: ``[heads, n, slots]``."""
    products = torch.bmm(queries, keys.flatten(1, 2).transpose(1, 2))  # [heads, n, slots * tokens]
    return products.unflatten(2, keys.shape[1:3]).amax(3)
