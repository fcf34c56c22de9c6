# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`KeyIndex`: keys of a few heads for every grid of a stream, searched by a question's queries.

Keys and queries are those before the rotation (`engine.attention.base.Readout`), so that a key does
not know when it was seen. A grid is as good as its best token: a thing takes a few of them, and
their mean would hide it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from stream_vlm_ros.errors import InvalidParameterError, whole_number

_SEGMENTS = 32  # that a full index consists of
_BATCH_NUMBERS = 64_000_000  # keys' numbers of a head that are searched at a time
_LAST_RESORT = 1 << 60  # no grid stands for so many


class Found(NamedTuple):
    """What a search gives for each grid that the index holds.

    Attributes:
        numbers: of the grids in the stream, rising, int64 ``[g]``.
        spans: how many grids of the stream each stands for, itself the first, int64 ``[g]``.
        scores: ``[heads, g]``, in float32, on the index's device.
    """

    numbers: np.ndarray
    spans: np.ndarray
    scores: torch.Tensor


class KeyIndex:
    """Keys of some heads of every grid so far, in a bounded number of bytes.

    Once it is full, grids are left out where they lie the densest, the oldest first, and their
    neighbour before stands for them too. So a stream of any length is held, all of it equally
    densely to a factor of about two. What lasts for fewer grids than one stands for may be missed.

    Not thread-safe.

    Args:
        heads: how many heads' keys a grid has.
        head_dim: their width.
        max_bytes: that the keys may take.
        dtype: that they are kept in.
        device: where they are kept and searched.

    Raises:
        InvalidParameterError: a count below 1.

    Attributes:
        segments: what the keys lie in, each ``[heads, slots, tokens, head_dim]``.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        max_bytes: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
    ):
        for name, value in (("heads", heads), ("head_dim", head_dim), ("max_bytes", max_bytes)):
            whole_number(name, value, least=1)
        self.heads, self.head_dim, self.max_bytes = heads, head_dim, max_bytes
        self.dtype, self.device = dtype, torch.device(device)
        self._tokens = 0  # of a slot: those of the first grid
        self.segments: list[torch.Tensor] = []
        self._owners = np.empty(0, np.int64)  # of each slot that there is; -1: free
        self._free: list[int] = []
        self._numbers, self._spans = np.empty(0, np.int64), np.empty(0, np.int64)
        self._next = 0

    @property
    def grids(self) -> int:
        """How many are held."""
        return len(self._numbers)

    @property
    def grids_seen(self) -> int:
        """How many were appended."""
        return self._next

    @property
    def nbytes(self) -> int:
        """Bytes that the keys take, with the room kept for the next ones."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def max_span(self) -> int:
        """How many grids of the stream one stands for, where the index is the thinnest."""
        return int(self._spans.max(initial=0))

    # -- what comes and goes -------------------------------------------------------------------

    def append(self, keys: torch.Tensor) -> None:
        """Take in the keys of the grids that follow, ``[heads, grids, tokens, head_dim]``.

        Raises:
            InvalidParameterError: another shape, or not even two such grids fit the bound; nothing
                was taken in.
        """
        wanted = (self.heads, self.head_dim)
        if keys.ndim != 4 or (keys.shape[0], keys.shape[3]) != wanted or 0 in keys.shape:
            raise InvalidParameterError(
                f"keys of shape {list(keys.shape)} were given to an index of {self.heads} heads "
                f"of {self.head_dim}: it takes [heads, grids, tokens, head_dim]"
            )
        slot_tokens = self._tokens or keys.shape[2]
        size = -(-keys.shape[2] // slot_tokens)  # slots of a grid
        if 2 * size > self._capacity(slot_tokens):
            raise InvalidParameterError(
                f"max_bytes is {self.max_bytes:,}, but the keys of one grid of {keys.shape[2]} "
                f"tokens take {size * self._slot_bytes(slot_tokens):,}: allow for two of them"
            )
        self._tokens = slot_tokens
        # A slot that is not filled holds tokens twice: the best of them is the same.
        there = torch.arange(size * slot_tokens) % keys.shape[2]
        cut = keys[:, :, there].unflatten(2, (size, slot_tokens))
        numbers = np.arange(self._next, self._next + keys.shape[1])
        for at, number in enumerate(numbers):  # (a chunk's: few)
            slots = self._free_slots(size)
            for piece, slot in enumerate(slots):
                segment, row = divmod(slot, self._segment_slots)
                self.segments[segment][:, row] = cut[:, at, piece]
            self._owners[slots] = number
            self._numbers = np.append(self._numbers, number)
            self._spans = np.append(self._spans, 1)
            self._next += 1

    def forget(self, first: int, stop: int) -> int:
        """Erase the grids of these numbers, ``stop`` not included; how many were held.

        One that stands for some of them and for others goes with all.
        """
        gone = (self._numbers < stop) & (self._numbers + self._spans > first)
        for slot in np.flatnonzero(np.isin(self._owners, self._numbers[gone])):
            segment, row = divmod(int(slot), self._segment_slots)
            self.segments[segment][:, row] = 0
        self._drop(np.flatnonzero(gone))
        return int(gone.sum())

    def _slot_bytes(self, tokens: int) -> int:
        return self.heads * tokens * self.head_dim * self.dtype.itemsize

    def _capacity(self, tokens: int) -> int:
        """Slots that fit the bound."""
        return self.max_bytes // self._slot_bytes(tokens)

    @property
    def _segment_slots(self) -> int:
        return -(-self._capacity(self._tokens) // _SEGMENTS)

    def _free_slots(self, count: int) -> list[int]:
        """So many slots that nobody has: there, or new, or thinned out."""
        while len(self._free) < count:
            there = len(self._owners)
            more = min(self._segment_slots, self._capacity(self._tokens) - there)
            if more:
                shape = (self.heads, more, self._tokens, self.head_dim)
                self.segments.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
                self._owners = np.append(self._owners, np.full(more, -1))
                self._free += range(there + more - 1, there - 1, -1)
            else:
                self._thin(max(count, self._segment_slots))
        return [self._free.pop() for _ in range(count)]

    def _thin(self, count: int) -> None:
        """Leave out so many grids, none of them a neighbour of another, or fewer."""
        numbers, spans = self._numbers, self._spans
        # What the one before would stand for; the first of a stretch has none before.
        sums = np.full(len(numbers), _LAST_RESORT)
        joined = numbers[:-1] + spans[:-1] == numbers[1:]
        sums[1:][joined] = (spans[:-1] + spans[1:])[joined]
        leaving: set[int] = set()
        for at in np.argsort(sums, kind="stable").tolist():  # the densest, the oldest first
            if len(leaving) == count or (leaving and sums[at] == _LAST_RESORT):
                break
            if not {at - 1, at + 1} & leaving:
                leaving.add(at)
        places = np.array(sorted(leaving))
        heirs = places[sums[places] < _LAST_RESORT]
        spans[heirs - 1] += spans[heirs]
        self._drop(places)

    def _drop(self, places: np.ndarray) -> None:
        """Free what these grids have, by their places among those held."""
        slots = np.flatnonzero(np.isin(self._owners, self._numbers[places]))
        self._owners[slots] = -1
        self._free += slots.tolist()
        self._numbers = np.delete(self._numbers, places)
        self._spans = np.delete(self._spans, places)

    # -- searching -----------------------------------------------------------------------------

    def search(self, queries: torch.Tensor) -> Found:
        """Score every grid by the queries of a question.

        A head's score of a grid is the maximum over its tokens of the products with a query, the
        mean over the queries, less the same of all grids of the stream: what all grids have in
        common says nothing, and a threshold holds for streams of any length.

        Args:
            queries: ``[heads, n, head_dim]``, for each of the index's heads the queries that look
                for its keys, not rotated.

        Raises:
            InvalidParameterError: another shape.
        """
        shape = tuple(queries.shape)
        if len(shape) != 3 or shape[1] == 0 or shape[::2] != (self.heads, self.head_dim):
            raise InvalidParameterError(
                f"queries of shape {list(shape)} were given to an index of {self.heads} heads of "
                f"{self.head_dim}: it takes [heads, queries, head_dim]"
            )
        if not self.grids:
            return Found(
                self._numbers, self._spans, torch.empty(self.heads, 0, device=self.device)
            )  # fmt: skip
        best = self._best_of_slots(queries.to(self.device, torch.float32))  # [heads, slots, n]
        used = np.flatnonzero(self._owners >= 0)
        grid_of = torch.from_numpy(np.searchsorted(self._numbers, self._owners[used]))
        grid_of = grid_of.to(self.device).view(1, -1, 1).expand(len(best), -1, best.shape[2])
        scores = best.new_full((self.heads, self.grids, best.shape[2]), -torch.inf)
        picked = best[:, torch.from_numpy(used).to(self.device)]
        scores = scores.scatter_reduce(1, grid_of, picked, "amax").mean(2)  # [heads, grids]
        weights = torch.from_numpy(self._spans).to(self.device, torch.float32)
        mean = (scores * weights).sum(1, keepdim=True) / weights.sum()
        return Found(self._numbers.copy(), self._spans.copy(), scores - mean)

    def _best_of_slots(self, queries: torch.Tensor) -> torch.Tensor:
        """The largest product of each slot's tokens with each query, ``[heads, slots, n]``."""
        step = max(1, _BATCH_NUMBERS // (self._tokens * max(queries.shape[1:])))
        found = []
        for segment in self.segments:
            for keys in segment.split(step, dim=1):
                products = torch.bmm(keys.flatten(1, 2).float(), queries.transpose(1, 2))
                found.append(products.unflatten(1, (-1, self._tokens)).amax(2))
        return torch.cat(found, dim=1)
