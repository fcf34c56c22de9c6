# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The ledger of a stream: where each of its tokens lies, and what eviction does to that.

Bookkeeping in plain integers; `mrope` has the rule, `buffer` moves the keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import torch

from stream_vlm_ros.engine.cache.kept import SINK, Kept, Place, Shifts
from stream_vlm_ros.engine.cache.mrope import (
    POSITION_POLICIES,
    ZERO,
    Grid,
    Run,
    Span,
    TextRun,
    TextSpan,
    Vec,
    VisionRun,
    VisionSpan,
    concatenate,
    everywhere,
    run_positions,
)
from stream_vlm_ros.errors import InvalidParameterError

# In the stream's order; grids kept for long are of one level or another by the evictor's choice.
LEVELS = ("sink", "kept", "window")


class LedgerMark(NamedTuple):
    """Tells two states of a stream's positions apart: a few integers."""

    length: int
    evicted: int
    epoch: int
    rewinds: int
    sink_length: int | None
    end: Vec
    segment: int
    grids_seen: int


class Stretch(NamedTuple):
    """Neighbouring grids in one level of the memory, and the time they span in seconds.

    ``frames`` of different stamps: one repeated to fill its grid counts once.
    """

    level: str  # "sink", "kept" or "window"
    oldest: float
    newest: float
    first_grid: int
    grids: int
    frames: int
    tokens: int


class PositionLedger:
    """Where each token of the stream lies: appended at the end, forgotten behind the sink.

    In order of time the stream is sink, single grids kept for long, window. What its attributes
    hold is never changed, so that a `draft` shares it all, and is changed while this one stands.

    Args:
        policy: ``contiguous`` (after eviction the kept tokens are laid out again one after the
            other by the trained rule) or ``keep_gaps`` (positions stay as first given).
    """

    def __init__(self, policy: str = "contiguous"):
        if policy not in POSITION_POLICIES:
            raise InvalidParameterError(
                f"position policy '{policy}' is unknown: use one of {', '.join(POSITION_POLICIES)}"
            )
        self.policy = policy
        self._epoch = 0
        self._sink: tuple[Run, ...] = ()
        self._kept = Kept()
        self._window: tuple[Run, ...] = ()
        self._sink_length: int | None = None
        self.length = 0
        self.evicted = 0
        self._end = ZERO  # the next text token's position, in the frame of the newest run
        self._segment = -1
        self._grids_seen = 0
        self._rewinds = 0
        self._rewound: tuple[tuple[int, int], ...] = ()  # (number, length), lengths rising

    @classmethod
    def of_runs(
        cls,
        policy: str,
        sink: tuple[Run, ...],
        kept: tuple[VisionRun, ...],
        window: tuple[Run, ...],
        *,
        sink_length: int | None,
        evicted: int,
        end: Vec,
        segment: int,
        grids_seen: int,
    ) -> PositionLedger:
        """A ledger of these runs, by level, with what the properties of these names said of them.

        ``end`` is `next_position`. Whether they fit together is for the caller to check.
        """
        ledger = cls(policy)
        ledger._sink, ledger._kept, ledger._window = sink, Kept(kept), window
        ledger._sink_length, ledger.evicted = sink_length, evicted
        ledger.length = sum(run.count for run in ledger.runs())
        ledger._end, ledger._segment, ledger._grids_seen = end, segment, grids_seen
        return ledger

    def draft(self) -> PositionLedger:
        """One to be changed, at no cost: this one stays as it is."""
        return copy.copy(self)

    # -- reading -----------------------------------------------------------------------------

    @property
    def next_position(self) -> Vec:
        """Where a text token appended now is rotated."""
        return self._end

    @property
    def extent(self) -> int:
        """Positions that what is in memory spans, as it is laid out now, over all axes."""
        return max(self._end.minus(self.frame))

    @property
    def frame(self) -> Vec:
        """Shift of the newest run: new tokens are rotated in its frame."""
        if self._window:
            return self._window[-1].shift
        return self._kept.shift if len(self._kept) else self._sink_shift

    @property
    def sink_length(self) -> int | None:
        """Tokens in the sink, or None as long as nothing seals it."""
        return self._sink_length

    @property
    def kept_length(self) -> int:
        """Tokens of the grids kept for long."""
        return self._kept.tokens

    @property
    def window_length(self) -> int:
        """Tokens behind the sink and the grids kept for long."""
        return self.length - (self._sink_length or 0) - self.kept_length

    def parts(self, levels: Iterable[str] = LEVELS) -> list[tuple[int, int, Vec]]:
        """The stream as ``(start, stop, offset)``: adjacent tokens that are seen alike.

        Of these `LEVELS`, which end with the window. A query rotated in the frame of the newest run
        must be rotated further by ``offset`` to see the keys in ``[start, stop)``.
        """
        frame = self.frame
        parts: list[tuple[int, int, Vec]] = []
        runs = list(self.runs(levels))
        start = self.length - sum(run.count for run in runs)
        for run in runs:
            stop = start + run.count
            offset = run.shift.minus(frame)
            if parts and parts[-1][2] == offset:
                parts[-1] = (parts[-1][0], stop, offset)
            else:
                parts.append((start, stop, offset))
            start = stop
        return parts

    @property
    def _sink_shift(self) -> Vec:
        """Shift of the sink. (It never has more than one: nothing in it goes.)"""
        return self._sink[0].shift if self._sink else ZERO

    def long_lived_shifts(self) -> Shifts:
        """Shifts of the sink and of the grids kept for long."""
        return self._kept.shifts(self._sink_length or 0, self._sink_shift)

    def kept_offsets(self) -> list[tuple[int, Vec]]:
        """``(grid number, offset)`` of every grid kept for long; offsets as in `parts`."""
        numbers, _, shifts = self.long_lived_shifts()
        offsets = (shifts - self.frame).tolist()
        pairs = zip(numbers.tolist(), offsets, strict=True)
        return [(number, Vec(*offset)) for number, offset in pairs if number != SINK]

    def positions(self) -> torch.Tensor:
        """Where every key of the stream was rotated, ``[3, length]``: for tests and for looking."""
        return concatenate([run_positions(run) for run in self.runs()])

    def runs(self, levels: Iterable[str] = LEVELS) -> Iterator[Run]:
        """The tokens of these of the `LEVELS` as runs, in the stream's order: not to be changed."""
        if "sink" in levels:
            yield from self._sink
        if "kept" in levels:
            yield from self._kept.runs
        if "window" in levels:
            yield from self._window

    def stretches(self) -> list[Stretch]:
        """What the memory holds: unbroken stretches of grids, level by level, oldest first."""
        stretches: list[Stretch] = []
        for level, grids, tokens in self._neighbours():
            first, last = grids[0], grids[-1]
            frames = sum(1 if early == late else 2 for early, late in (g.stamps for g in grids))
            before = stretches[-1] if stretches else None
            if (
                before is not None
                and before.level == level != "kept"  # (two levels keep grids)
                and before.first_grid + before.grids == first.number
            ):
                stretches[-1] = before._replace(
                    newest=last.stamps[1],
                    grids=before.grids + len(grids),
                    frames=before.frames + frames,
                    tokens=before.tokens + tokens,
                )
            else:
                stretches.append(
                    Stretch(
                        level,
                        first.stamps[0],
                        last.stamps[1],
                        first.number,
                        len(grids),
                        frames,
                        tokens,
                    )
                )
        return stretches

    def _neighbours(self) -> Iterator[tuple[str, Sequence[Grid], int]]:
        """Level, grids that follow one another, and their tokens."""
        for level, runs in (("sink", self._sink), ("window", self._window)):
            for run in runs:
                if isinstance(run, VisionRun):
                    yield level, run.grids, run.count
            if level == "sink":
                for grid in self._kept.grids:
                    yield "kept", (grid,), grid.count

    @property
    def segment(self) -> int:
        """Number of the newest vision segment; -1 before the first."""
        return self._segment

    @property
    def grids_seen(self) -> int:
        """Grids of the whole stream: the number of the next one."""
        return self._grids_seen

    def time_spans(self) -> list[tuple[float, float]]:
        """Stamps of the oldest and the newest frame of every unbroken stretch in memory.

        Seconds in the source's time, oldest stretch first.
        """
        spans: list[tuple[float, float]] = []
        next_grid = -1
        for stretch in self.stretches():
            # (A grid that a sink was cut through begins the window too.)
            if spans and stretch.first_grid <= next_grid:
                spans[-1] = (spans[-1][0], stretch.newest)
            else:
                spans.append((stretch.oldest, stretch.newest))
            next_grid = stretch.first_grid + stretch.grids
        return spans

    @property
    def grids(self) -> int:
        """Temporal grids in memory, whole or in part."""
        visions = [run for run in (*self._sink, *self._window) if isinstance(run, VisionRun)]
        return len(self._kept) + sum(len(run.grids) - run.continues for run in visions)

    def oldest_window_grid(self, leaving: int = 0) -> int:
        """Number of the oldest grid that the window holds whole; that of the next one if none.

        ``leaving`` of its oldest tokens count as gone.
        """
        for run in self._window:
            if not isinstance(run, VisionRun):
                leaving -= run.count
                continue
            cut = run.cut
            for grid in run.grids:
                if leaving <= 0 and not cut:
                    return grid.number
                leaving -= grid.count - cut
                cut = 0
        return self._grids_seen

    @property
    def oldest_whole_grid(self) -> Grid | None:
        """The grid that eviction meets next, if it is there from its first token."""
        run = self._window[0] if self._window else None
        whole = isinstance(run, VisionRun) and not run.cut
        return run.grids[0] if whole else None  # type: ignore[union-attr]

    @property
    def oldest_piece(self) -> int:
        """Tokens up to the next border in the window: the rest of a grid, or of a text."""
        run = self._window[0]
        return run.grids[0].count - run.cut if isinstance(run, VisionRun) else run.count

    # -- what comes next ---------------------------------------------------------------------

    def preview(self, spans: Iterable[Span]) -> torch.Tensor:
        """Positions ``[3, n]`` at which tokens appended now would be rotated."""
        then = self.draft()
        return concatenate([run_positions(then._append(span)) for span in spans])

    # -- changing ----------------------------------------------------------------------------

    def append(self, spans: Iterable[Span]) -> None:
        for span in spans:
            self._append(span)

    def _append(self, span: Span) -> Run:
        """Lay ``span`` behind all others; the run of its tokens alone."""
        newest, frame, end = self._newest_run(), self.frame, self._end
        run: Run
        if isinstance(span, TextSpan):
            run = TextRun(end, span.count, frame)
            self._end = end.plus(everywhere(span.count))
        else:
            goes_on = newest if isinstance(newest, VisionRun) and not span.opens else None
            self._segment += goes_on is None
            origin = goes_on.origin if goes_on else Vec(end.t - span.ticks[0], end.h, end.w)
            run = VisionRun(origin, self._segment, self._grids(span), frame)
            # Compared as laid out again (origin less shift): only there do the axes share a zero.
            reaches = max(end.t - frame.t, run.end_of(origin.minus(frame)))
            self._end = everywhere(reaches).plus(frame)
            self._grids_seen += len(run.grids)
            if goes_on:
                step = run.grids[0].tick - goes_on.grids[-1].tick
                if self._window:
                    self._window = (*self._window[:-1], goes_on.followed_by(run.grids, step))
                    self.length += run.count
                    return run
                if len(self._kept):
                    self._kept = self._kept.stepping(step)
                else:
                    self._sink = (*self._sink[:-1], replace(goes_on, step_after=step))
        if run.count:
            self._window = (*self._window, run)
            self.length += run.count
        return run

    def _grids(self, span: VisionSpan) -> tuple[Grid, ...]:
        places = span.places or [None] * len(span.ticks)
        return tuple(
            Grid(tick, span.height, span.width, stamps, number, there)
            for number, tick, stamps, there in zip(
                count(self._grids_seen), span.ticks, span.stamps, places, strict=False
            )
        )

    def seal_sink(self, length: int) -> None:
        """From now on the first ``length`` tokens are the sink and stay."""
        assert self._sink_length is None and length <= self.length
        self._sink_length = length
        runs = list(self._window)
        sink: list[Run] = []
        while length:
            if runs[0].count > length:
                head, runs[0] = runs[0].split(length)
            else:
                head = runs.pop(0)
            sink.append(head)
            length -= head.count
        self._sink, self._window = tuple(sink), tuple(runs)

    def evict(self, count: int) -> list[Grid]:
        """Forget the ``count`` oldest tokens of the window; the grids of which nothing is left.

        `reindex` when all is forgotten.
        """
        assert self._sink_length is not None and count <= self.window_length
        self.length -= count
        self.evicted += count
        gone: list[Grid] = []
        runs = list(self._window)
        while count:
            run = runs[0]
            size, taken = run.count, min(count, run.count)
            if isinstance(run, VisionRun):
                grids = run.grids
                if taken < size:
                    runs[0], grids = run.without_front(taken)
                if run.continues and grids:  # of the first a part is in the sink
                    before = self._sink[-1]
                    if len(run.grids) > 1 and isinstance(before, VisionRun):
                        step = run.grids[1].tick - run.grids[0].tick
                        self._sink = (*self._sink[:-1], replace(before, step_after=step))
                    grids = grids[1:]
                gone += grids
            elif taken < size:
                runs[0] = run.split(taken)[1]
            if taken == size:
                runs.pop(0)
            count -= taken
        self._window = tuple(runs)
        return gone

    def keep_oldest(self) -> None:
        """Take the window's oldest grid, a whole one, out of the window to be kept for long."""
        run, *others = self._window
        assert isinstance(run, VisionRun) and not run.cut
        kept, rest = run, tuple(others)
        if len(run.grids) > 1:
            kept, left = run.split(run.grids[0].count)
            rest = (left, *rest)
        self._kept = self._kept.followed_by(replace(kept, continues=False))
        self._window = rest

    def drop_kept(self, number: int) -> Grid:
        """Forget the grid of that number, kept for long until now."""
        self._kept, grid = self._kept.without(number)
        self.length -= grid.count
        self.evicted += grid.count
        return grid

    def reindex(self) -> None:
        """Something was forgotten or moved: no earlier state holds, and what is left closes up."""
        self._epoch += 1
        self._rewound = ()
        if self.policy == "contiguous":
            self._lay_out_again()

    def mark(self) -> LedgerMark:
        return LedgerMark(
            self.length,
            self.evicted,
            self._epoch,
            self._rewinds,
            self._sink_length,
            self._end,
            self._segment,
            self._grids_seen,
        )

    def holds(self, earlier: PositionLedger) -> bool:
        """Whether everything that was there is still there."""
        # Whatever was appended again after going back further is not what was there.
        since = (length for number, length in self._rewound if number >= earlier._rewinds)
        return earlier._epoch == self._epoch and earlier.length <= min(since, default=self.length)

    def going_back(self, earlier: PositionLedger) -> PositionLedger:
        """An earlier state that `holds`, to be current again."""
        assert self.holds(earlier)
        back = earlier.draft()
        kept = tuple(one for one in self._rewound if one[1] < earlier.length)
        back._rewound = (*kept, (self._rewinds, earlier.length))
        back._rewinds = self._rewinds + 1
        return back

    def replaced_by(self, other: PositionLedger) -> PositionLedger:
        """``other`` in the place of this one, of which no earlier state holds any longer."""
        new = other.draft()
        new._epoch = self._epoch + 1
        return new

    # -- inside ------------------------------------------------------------------------------

    def _newest_run(self) -> Run | None:
        if self._window:
            return self._window[-1]
        if len(self._kept):
            return self._kept.newest
        return self._sink[-1] if self._sink else None

    def _lay_out_again(self) -> None:
        """Set every run's shift: where its keys are less where the trained rule would put them."""
        self._sink, place = _laid_out(self._sink, Place())
        self._kept, place = self._kept.laid_out(place)
        self._window, place = _laid_out(self._window, place)
        self._end = everywhere(place.end).plus(self.frame)


def _laid_out(runs: Sequence[Run], before: Place) -> tuple[tuple[Run, ...], Place]:
    """One after the other by the trained rule, behind what is laid out so far."""
    end, segment, (t, h, w), step = before
    shift: tuple[int, int, int]
    laid_out: list[Run] = []
    for run in runs:
        if isinstance(run, TextRun):
            origin, end = run.laid_out_at(end)
            shift, segment = run.origin.minus(origin), None
        else:
            first, last = run.grids[0].tick, run.grids[-1].tick
            if run.segment == segment:
                t += 0 if run.continues else step
            else:
                t = h = w = end
            t -= first
            was = run.origin
            shift = was.t - t, was.h - h, was.w - w  # plain: of most runs it is as it was
            end = max(end, run.end_of((t, h, w)))
            t += last
            segment, step = run.segment, run.step_after
        laid_out.append(run if run.shift == shift else run.shifted(Vec(*shift)))
    return tuple(laid_out), Place(end, segment, Vec(t, h, w), step)
