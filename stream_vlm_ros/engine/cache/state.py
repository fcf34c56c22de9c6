# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a memory is, apart from its keys and values: plain data, and the draft of what comes next.

A `MemoryState` is never changed. An operation makes a `Draft` of the one that is current, changes
that, and in the end the manager makes it current by one assignment. So an exception anywhere leaves
the old one whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.eviction import (
    Appended,
    Described,
    EvictorState,
    KVCacheEvictor,
)
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.mrope import Grid, Span
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.inputs.timeline import Timeline
from stream_vlm_ros.engine.inputs.token_reduction import Known


@dataclass(frozen=True)
class StreamState:
    """Where the stream stands, besides its tokens. Replaced as a whole, never changed.

    Attributes:
        chunks: chunks appended.
        frames: frames appended (without the repeated last of an odd chunk).
        first_stamp: source time of the first frame in seconds, None before it.
        last_stamp: source time of the newest frame.
        open_segment: a vision segment stands open: more frames continue it.
        exchanges: question-answer pairs kept in the stream.
        timeline: where the grids so far lie on the t axis, and the pauses that were closed.
        known: what tokens that say nothing new are compared with, where such are left out.
    """

    chunks: int = 0
    frames: int = 0
    first_stamp: float | None = None
    last_stamp: float | None = None
    open_segment: bool = False
    exchanges: int = 0
    timeline: Timeline = field(default_factory=Timeline)
    known: Known | None = field(default=None, compare=False, repr=False)


class Forgotten(NamedTuple):
    """A temporal grid of which nothing is in memory any more.

    Attributes:
        number: among all grids of the stream. After going back to a snapshot, or `clear`, numbers
            are given again.
        stamps: the source's time of its first and its last frame, in seconds.
        tokens: as many as it had in memory.
        why: ``window`` (it left the window, and no level kept it), ``level`` (others were kept
            instead), ``taken back`` (a snapshot or a clone was restored), ``another was loaded`` or
            ``cleared``.
    """

    number: int
    stamps: tuple[float, float]
    tokens: int
    why: str

    @classmethod
    def of(cls, grid: Grid, why: str) -> Forgotten:
        return cls(grid.number, grid.stamps, grid.count, why)


class Change(NamedTuple):
    """What a companion is told of a change that is about to become current.

    Attributes:
        appended: what comes to the stream; its first grid has the number ``first_grid``.
        first_grid: see there.
        forgotten: grids that go.
        read: queries and keys that were read while the tokens were computed, None if none were.
    """

    appended: Sequence[Span]
    first_grid: int
    forgotten: Sequence[Forgotten]
    read: Readout | None


class Companion(Protocol):
    """Keeps something of its own in step with the memory: an index, a tier.

    What it holds is a value that is never changed. It is part of the memory's state: it becomes
    current with it, by the same assignment, and snapshots, clones and `clear` take it along.
    """

    def empty(self) -> Any:
        """Of a memory without a token."""

    def draft(self, held: Any, change: Change) -> Any:
        """What it holds after a change, ``held`` before it. What it raises undoes the change.

        Called within an operation of the memory: it must call no further one.
        """


@dataclass(frozen=True, eq=False)
class MemoryState:
    """What a memory is, apart from its keys and values.

    Attributes:
        slots: where each token lies in the buffer.
        ledger: where each token lies in the model's positions.
        evictor: what is known of the chunks, and which grids are kept.
        waiting: appends that nothing was evicted for yet.
        stream: where the stream stands.
        companions: what each `Companion` holds, by its name.
    """

    slots: Slots
    ledger: PositionLedger
    evictor: EvictorState
    waiting: tuple[Appended, ...] = ()
    stream: StreamState = StreamState()
    companions: Mapping[str, Any] = field(default_factory=dict)


class Draft:
    """What a memory will be: arithmetic alone, and nothing of it is current.

    Attributes:
        slots ... companions: as in `MemoryState`.
        rules: the evictor over this draft.
        forgotten: grids that go.
        log_lines: to be logged once it is current.
        sources: for each slot of kept grids, in which slot its token lies now: ``[kept]``.
    """

    def __init__(self, state: MemoryState, rules: KVCacheEvictor):
        self._before = state
        self.slots, self.ledger = state.slots, state.ledger.draft()
        self.evictor, self.waiting = state.evictor, state.waiting
        self.stream, self.companions = state.stream, state.companions
        self.rules = rules.over(self)
        self.forgotten: list[Forgotten] = []
        self.log_lines: list[str] = []
        self.sources = state.slots.own

    def state(self) -> MemoryState:
        return MemoryState(
            self.slots, self.ledger, self.evictor, self.waiting, self.stream, self.companions
        )

    def append(self, spans: Sequence[Span], chunk: bool, frames: Described | None) -> None:
        count = sum(span.count for span in spans)
        if chunk:
            self.rules.record_chunk(count, frames)
        self.waiting = (*self.waiting, self.rules.appended(count))
        self.ledger.append(spans)
        self.slots = self.slots.appended(count)

    def evict(self) -> int:
        """Forget what is due for each append that waits, in their order; return what was lost."""
        before, forgot = self.ledger.evicted, False
        later = sum(one.tokens for one in self.waiting)
        for one in self.waiting:
            later -= one.tokens
            due = self.rules.due(self.ledger.length - later, one, self.slots.kept)
            if due:
                # Both at once would need a chunk larger than the window: refused by check_room.
                assert self.ledger.sink_length is not None
                self._forget(due)
                forgot = True
        self.waiting = ()
        if forgot:
            self.ledger.reindex()
        return self.ledger.evicted - before

    def _forget(self, due: int) -> None:
        """Make the window ``due`` tokens shorter and keep what deserves it."""
        ledger, rules = self.ledger, self.rules
        before = ledger.evicted
        while due > 0:
            grid = ledger.oldest_whole_grid
            if rules.keeps_grids and grid is not None:
                gone = rules.leaves_window(grid.number, grid.count, grid.stamps[0])
                for number in gone - {grid.number}:
                    self._drop_kept(number)
                if grid.number not in gone:
                    self._keep_oldest(grid)
                    due -= grid.count
                    continue
            step = min(due, ledger.oldest_piece) if rules.keeps_grids else due
            self.forgotten += (Forgotten.of(one, "window") for one in ledger.evict(step))
            self.slots = self.slots.evicted(step)
            due -= step
        if lost := ledger.evicted - before:
            rules.record_eviction(lost)
            self.log_lines.append(f"eviction {rules.total_evictions}: {lost} tokens forgotten")

    def _keep_oldest(self, grid: Grid) -> None:
        self.ledger.keep_oldest()
        self.sources = np.append(self.sources, self.slots.of_window(grid.count))
        self.slots = self.slots.kept_oldest(grid.number, grid.count)

    def _drop_kept(self, number: int) -> None:
        self.forgotten.append(Forgotten.of(self.ledger.drop_kept(number), "level"))
        order = self.slots.order_without(number)
        self.slots, self.sources = self.slots.in_order(order), self.sources[order]

    def seal(self) -> int:
        """Make the first tokens the sink once there are enough; how many, 0 if it is not now."""
        sink = self.rules.effective_sink_size
        if self.ledger.sink_length is not None or not 0 < sink <= self.ledger.length:
            return 0
        self.ledger.seal_sink(sink)
        self.slots = self.slots.sealed(sink, self.rules.room_for_grids)
        window = self.rules.effective_window_size
        self.log_lines.append(f"sink found: the first {sink} tokens stay; window {window}")
        return sink

    def moved(self) -> tuple[np.ndarray, np.ndarray, dict[int, bool]]:
        """Tokens of kept grids that are to lie elsewhere: from, to, and of which grids.

        True: all tokens of the grid are among them.
        """
        moves = np.flatnonzero(self.sources != self.slots.own)
        owner = self.slots.owner
        moving, counts = np.unique(owner[moves], return_counts=True)
        grids = {
            number: count == np.count_nonzero(owner == number)
            for number, count in zip(moving.tolist(), counts.tolist(), strict=True)
        }
        return self.sources[moves], moves + self.slots.sink, grids

    def update_companions(
        self, companions: Mapping[str, Companion], spans: Sequence[Span], read: Readout | None
    ) -> None:
        """Let each companion say what it will hold."""
        change = Change(spans, self._before.ledger.grids_seen, tuple(self.forgotten), read)
        self.companions = {
            name: one.draft(
                self.companions[name] if name in self.companions else one.empty(), change
            )
            for name, one in companions.items()
        }


def emptied(
    state: MemoryState, evictor: EvictorState, companions: Mapping[str, Any]
) -> MemoryState:
    """The same memory without a token; no earlier state of it can come back."""
    ledger = state.ledger.replaced_by(PositionLedger(state.ledger.policy))
    return MemoryState(Slots(state.slots.capacity), ledger, evictor, companions=companions)


def grids_of(state: MemoryState) -> dict[int, Grid]:
    """The grids in memory, whole or in part, by number."""
    runs = state.ledger.runs()
    return {grid.number: grid for run in runs for grid in getattr(run, "grids", ())}
