# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which slot of the buffer each token of the stream takes: integers, and no key or value.

The sink, then grids kept for long, then a ring: nothing in the window ever moves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots that a stream takes. Never changed: what changes is another one.

    Tokens behind the sink have running numbers, counted from the stream's first token without those
    that were kept; number ``i`` lies in slot ``base + (i - sink) % (capacity - base)``. The live
    ones are ``window``. Kept grids fill their room from the front, without holes and in no order:
    attention needs none.

    Attributes:
        capacity: of the buffer, in tokens.
        sink: tokens of the sink, which take the first slots.
        room: slots for kept grids, behind the sink.
        window: numbers of the tokens in the ring.
        owner, place: for each slot of kept grids that is taken, ``[kept]``: the number of the grid,
            and which of its tokens lies there.
    """

    capacity: int
    sink: int = 0
    room: int = 0
    window: range = range(0)
    owner: np.ndarray = field(default_factory=_none)
    place: np.ndarray = field(default_factory=_none)

    @property
    def kept(self) -> int:
        """Tokens of kept grids."""
        return len(self.owner)

    @property
    def base(self) -> int:
        """First slot of the ring."""
        return self.sink + self.room

    @property
    def length(self) -> int:
        return self.sink + self.kept + len(self.window)

    @property
    def own(self) -> np.ndarray:
        """The slots of kept grids that are taken: ``[kept]``."""
        return np.arange(self.sink, self.sink + self.kept)

    # -- what changes --------------------------------------------------------------------------

    def sealed(self, length: int, room: int) -> Slots:
        """The first ``length`` tokens leave the ring for good; behind them, room for kept grids."""
        assert self.window.start == 0 and not self.sink
        return replace(self, sink=length, room=room, window=self.window[length:])

    def appended(self, count: int) -> Slots:
        return replace(self, window=range(self.window.start, self.window.stop + count))

    def evicted(self, count: int) -> Slots:
        """Without the ``count`` oldest tokens of the window."""
        return replace(self, window=self.window[count:])

    def kept_oldest(self, number: int, count: int) -> Slots:
        """The window's oldest ``count`` tokens, grid ``number``, are among the kept ones."""
        assert self.kept + count <= self.room
        owner = np.append(self.owner, np.full(count, number))
        place = np.append(self.place, np.arange(count))
        return replace(self, window=self.window[count:], owner=owner, place=place)

    def order_without(self, number: int) -> np.ndarray:
        """For each slot left when a kept grid goes, which of them its token was in before.

        The last kept tokens move into the slots that become free.
        """
        gone = self.owner == number
        left = self.kept - np.count_nonzero(gone)
        order = np.arange(left)
        order[gone[:left]] = np.flatnonzero(~gone[left:]) + left
        return order

    def in_order(self, order: np.ndarray) -> Slots:
        return replace(self, owner=self.owner[order], place=self.place[order])

    # -- where things lie ----------------------------------------------------------------------

    def overwritten_by(self, count: int) -> range:
        """Running numbers of the tokens whose slots the next ``count`` tokens would take."""
        ring = self.capacity - self.base
        first = self.window.stop - ring
        return range(max(self.sink, first), max(self.sink, first + count))

    def of_newest(self, count: int) -> list[slice]:
        """Slots of the newest ``count`` tokens, in their order."""
        fits = len(self.window) <= self.capacity - self.base
        assert fits, f"{len(self.window)} tokens in a ring of {self.capacity - self.base}"
        in_sink = max(0, count - len(self.window))
        slots = [slice(self.sink - in_sink, self.sink)] if in_sink else []
        return slots + self._ring(self.window[len(self.window) - (count - in_sink) :])

    def of_window(self, count: int) -> np.ndarray:
        """Slots of the window's oldest ``count`` tokens, ``[count]``."""
        numbers = np.arange(self.window.start, self.window.start + count)
        return self.base + (numbers - self.sink) % (self.capacity - self.base)

    def kept_in_order(self) -> np.ndarray:
        """Which of the slots of kept grids come first, second, ... in time: ``[kept]``."""
        return np.lexsort((self.place, self.owner))

    def order(self) -> np.ndarray:
        """The slots of all tokens, in order of time: ``[length]``."""
        kept = self.sink + self.kept_in_order()
        return np.concatenate([np.arange(self.sink), kept, self.of_window(len(self.window))])

    def slices(self, start: int, stop: int) -> list[slice]:
        """Slots of the stream's tokens ``start`` to ``stop``, in as few slices as there can be.

        Sink and window may be cut anywhere; the kept grids only as a whole.
        """
        kept_start, kept_stop = self.sink, self.sink + self.kept
        assert not kept_start < start < kept_stop and not kept_start < stop < kept_stop
        slices = []
        if start < kept_stop:
            slices.append(slice(start, min(stop, kept_stop)))
        if stop > kept_stop:
            first = max(start, kept_stop) - kept_stop
            slices += self._ring(self.window[first : stop - kept_stop])
        joined: list[slice] = []
        for slots in sorted(slices, key=lambda slots: slots.start):
            if joined and joined[-1].stop == slots.start:
                joined[-1] = slice(joined[-1].start, slots.stop)
            else:
                joined.append(slots)
        return joined

    def _ring(self, numbers: range) -> list[slice]:
        if not numbers:
            return []
        first = self.base + (numbers.start - self.sink) % (self.capacity - self.base)
        until_end = self.capacity - first
        if len(numbers) <= until_end:
            return [slice(first, first + len(numbers))]
        rest = len(numbers) - until_end
        return [slice(first, self.capacity), slice(self.base, self.base + rest)]
