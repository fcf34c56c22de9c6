# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is saved of a memory but its keys and values, and whether what was saved can be loaded.

A file may say anything: whatever is read is held against itself, and against the engine's rules,
before anything of the present memory changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from stream_vlm_ros.engine.cache.eviction import (
    Candidate,
    EvictorState,
    HeldAlone,
    KVCacheEvictor,
)
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.mrope import Grid, Run, Vec, VisionRun
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.cache.state import MemoryState, StreamState
from stream_vlm_ros.engine.saving.plain import PlainError

_MAX_GRID = 10**7  # tokens of a grid, which may be there in part
_MAX_POSITION = 2**40


@dataclass(frozen=True)
class Positions:
    """A `PositionLedger`."""

    sink: tuple[Run, ...]
    kept: tuple[VisionRun, ...]
    window: tuple[Run, ...]
    sink_length: int | None
    evicted: int
    end: Vec
    segment: int
    grids_seen: int


@dataclass(frozen=True)
class Bookkeeping:
    """A `MemoryState`, but for what follows from it and from the engine's settings.

    Attributes:
        window_start: running number of the window's first token.
        owner, place: of `Slots`. Keys and values are saved in the order of their slots, the window
            last.
    """

    positions: Positions
    window_start: int
    owner: np.ndarray
    place: np.ndarray
    evictor: EvictorState
    stream: StreamState


def bookkeeping_of(state: MemoryState) -> Bookkeeping:
    ledger, slots = state.ledger, state.slots
    return Bookkeeping(
        Positions(
            sink=tuple(ledger.runs(["sink"])),
            kept=_kept_runs(ledger),
            window=tuple(ledger.runs(["window"])),
            sink_length=ledger.sink_length,
            evicted=ledger.evicted,
            end=ledger.next_position,
            segment=ledger.segment,
            grids_seen=ledger.grids_seen,
        ),
        slots.window.start,
        slots.owner,
        slots.place,
        state.evictor,
        state.stream,
    )


def expect(holds: bool, what: str) -> None:
    """Raise PlainError that names what is not as it should be, unless it holds."""
    if not holds:
        raise PlainError(what)


def _rising(numbers: Iterable[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def _kept_runs(ledger: PositionLedger) -> tuple[VisionRun, ...]:
    return tuple(run for run in ledger.runs(["kept"]) if isinstance(run, VisionRun))


def _grids(runs: Iterable[Run]) -> list[Grid]:
    return [grid for run in runs if isinstance(run, VisionRun) for grid in run.grids]


def moved(book: Bookkeeping, seconds: float) -> Bookkeeping:
    """With all stamps so many seconds later."""

    def grid(one: Grid) -> Grid:
        first, last = one.stamps
        return dataclasses.replace(one, stamps=(first + seconds, last + seconds))

    def vision(run: VisionRun) -> VisionRun:
        return dataclasses.replace(run, grids=tuple(map(grid, run.grids)))

    def runs(before: tuple[Run, ...]) -> tuple[Run, ...]:
        return tuple(vision(run) if isinstance(run, VisionRun) else run for run in before)

    def candidates(before: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        return tuple(one._replace(seconds=one.seconds + seconds) for one in before)

    def stamp(one: float | None) -> float | None:
        return None if one is None else one + seconds

    positions, evictor, stream = book.positions, book.evictor, book.stream
    return dataclasses.replace(
        book,
        positions=dataclasses.replace(
            positions,
            sink=runs(positions.sink),
            kept=tuple(map(vision, positions.kept)),
            window=runs(positions.window),
        ),
        evictor=dataclasses.replace(
            evictor,
            sink_end=evictor.sink_end + seconds,
            sampled=candidates(evictor.sampled),
            important=candidates(evictor.important),
        ),
        stream=dataclasses.replace(
            stream, first_stamp=stamp(stream.first_stamp), last_stamp=stamp(stream.last_stamp)
        ),
    )


def _check_run(run: Run) -> None:
    """PlainError where a run contradicts itself."""
    grids = _grids([run])
    ticks = [grid.tick for grid in grids]
    expect(max(map(abs, [*run.origin, *run.shift, *ticks])) < _MAX_POSITION, "a position")
    if not isinstance(run, VisionRun):
        expect(run.count > 0, "a run without tokens")
        return
    expect(bool(grids) and _rising(grid.number for grid in grids), "the order of grids")
    expect(ticks == sorted(ticks), "the order of grids")
    for grid in grids:
        size = grid.height * grid.width
        there = range(size) if grid.places is None else grid.places
        first, last = grid.stamps
        expect(min(grid.height, grid.width) > 0 and size <= _MAX_GRID, "a grid's size")
        expect(len(there) > 0 and there[0] >= 0 and there[-1] < size, "a grid's places")
        expect(grid.places is None or _rising(grid.places), "a grid's places")
        expect(first <= last and grid.number >= 0, "a grid's stamps or number")
    expect(0 <= run.cut < grids[0].count and 0 <= run.cut_end < grids[-1].count, "a run's cut")
    expect(run.count > 0 and abs(run.step_after) < _MAX_POSITION, "a run's cut")


def understood(
    book: Bookkeeping, now: PositionLedger, rules: KVCacheEvictor
) -> tuple[PositionLedger, KVCacheEvictor]:
    """Positions and rules of a saved memory in the place of these; PlainError: they are none."""
    ledger = _ledger(book.positions, now)
    _check_stream(book.stream, ledger)
    return ledger, _rules(book.evictor, ledger, rules)


def _ledger(saved: Positions, now: PositionLedger) -> PositionLedger:
    runs = (*saved.sink, *saved.kept, *saved.window)
    for run in runs:
        _check_run(run)
    grids = _grids(runs)
    expect(bool(grids), "it holds no frame")
    # (One grid that the sink was cut through is in the window, too.)
    expect(all(a.number <= b.number for a, b in pairwise(grids)), "the order of grids")
    expect(all(a.stamps <= b.stamps for a, b in pairwise(grids)), "the stamps of grids")
    expect(grids[-1].number < saved.grids_seen < _MAX_POSITION, "the number of its grids")
    whole = all(len(run.grids) == 1 and not run.cut and not run.cut_end for run in saved.kept)
    expect(whole and _rising(run.grids[0].number for run in saved.kept), "the grids kept for long")
    sealed = saved.sink_length
    expect(sum(run.count for run in saved.sink) == (sealed or 0), "the length of its sink")
    expect(sealed is not None or not (saved.kept or saved.evicted), "what it forgot")
    expect(0 <= saved.evicted < _MAX_POSITION, "what it forgot")
    expect(max(map(abs, (*saved.end, saved.segment))) < _MAX_POSITION, "what it forgot")
    ledger = PositionLedger.of_runs(
        now.policy,
        saved.sink,
        saved.kept,
        saved.window,
        sink_length=sealed,
        evicted=saved.evicted,
        end=saved.end,
        segment=saved.segment,
        grids_seen=saved.grids_seen,
    )
    return now.replaced_by(ledger)


def _rules(state: EvictorState, ledger: PositionLedger, now: KVCacheEvictor) -> KVCacheEvictor:
    """The engine's rules over a saved state; PlainError where that is none of theirs."""
    counts = (
        state.later_tokens,
        state.first_chunk,
        state.first_vision,
        state.first_grid,
        state.evictions,
        state.tokens_evicted,
    )
    expect(state.chunks > 0 and min(counts) >= 0, "the counts of its chunks")
    expect(max(counts) < _MAX_POSITION, "the counts of its chunks")
    rules = now.over(HeldAlone(state))
    config, sealed = rules.config, ledger.sink_length
    if config is None:
        expect(state.sink_size == 0 and sealed is None, "its sink")
    else:
        expect(state.sink_size == (config.sink_size or state.first_chunk), "its sink")
        expect(0 < state.sink_size <= config.max_cache_tokens, "its sink")
        expect(sealed in (None, state.sink_size), "its sink")
        expect(sealed is not None or ledger.length < state.sink_size, "its sink")
        expect(ledger.length <= config.max_cache_tokens, "its length, beyond the cap")
    tokens = {run.grids[0].number: run.count for run in _kept_runs(ledger)}
    offered = (*state.sampled, *state.important)
    expect(sorted(one.number for one in offered) == sorted(tokens), "the grids kept for long")
    expect(all(one.tokens == tokens[one.number] for one in offered), "the sizes of kept grids")
    for level, size in (
        (state.sampled, rules.sampled_size),
        (state.important, rules.important_size),
    ):
        expect(_rising(one.number for one in level), "the order of kept grids")
        expect(sum(one.tokens for one in level) <= size, "its kept grids, beyond their share")
    described = [one.descriptor for one in state.important], state.descriptors.values()
    shapes = {descriptor.shape for some in described for descriptor in some}
    expect(len(shapes) <= 1, "the descriptions of its frames")
    return rules


def _check_stream(stream: StreamState, ledger: PositionLedger) -> None:
    first, last = stream.first_stamp, stream.last_stamp
    expect(min(stream.chunks, stream.frames) > 0 and stream.exchanges >= 0, "its counts")
    expect(max(stream.chunks, stream.frames, stream.exchanges) < _MAX_POSITION, "its counts")
    line, newest_tick = stream.timeline, _grids(ledger.runs())[-1].tick
    expect(line.newest is not None and newest_tick <= line.newest < _MAX_POSITION, "its pauses")
    expect(0 <= (line.step or 0) < _MAX_POSITION, "its pauses")
    expect(min(line.closed, line.pauses) >= 0, "its pauses")
    expect(max(line.closed, line.pauses) < _MAX_POSITION, "its pauses")
    newest = max(grid.stamps[1] for grid in _grids(ledger.runs()))
    expect(first is not None and last is not None and first <= newest <= last, "its stamps")
    if stream.known is not None:
        features, grids = stream.known
        expect(features.ndim == 3 and grids.shape == features.shape[:2], "what it compares with")
        expect(features.is_floating_point() and grids.dtype == torch.int64, "what it compares with")


def slots_of(book: Bookkeeping, ledger: PositionLedger, rules: KVCacheEvictor, now: Slots) -> Slots:
    """Where the tokens go: into the slots that they had, where the buffer is as large."""
    sealed = ledger.sink_length
    sink, room = sealed or 0, 0 if sealed is None else rules.room_for_grids
    length = ledger.window_length
    kept = [
        (run.grids[0].number, place) for run in _kept_runs(ledger) for place in range(run.count)
    ]
    for one in (book.owner, book.place):
        expect(one.dtype == np.int64 and one.shape == (len(kept),), "its kept grids")
    placed = sorted(zip(book.owner.tolist(), book.place.tolist(), strict=True))
    expect(placed == kept and len(kept) <= room, "the places of kept grids")
    start = book.window_start
    expect(sink <= start < _MAX_POSITION, "the number of its first token")
    expect(start == sink or rules.config is not None, "the number of its first token")
    needed = sink + room + length
    capacity = max(now.capacity, needed) if rules.config is None else now.capacity
    expect(needed <= capacity, "its length, beyond the cap")
    return Slots(capacity, sink, room, range(start, start + length), book.owner, book.place)
