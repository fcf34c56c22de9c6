# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where the grids kept for long lie: a row of integers each.

Once one of them goes, all behind it are laid out again; over rows that is a few calls, however many
grids there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from stream_vlm_ros.engine.cache.mrope import Grid, Vec, VisionRun

# Columns of a table of grids.
_NUMBER, _TOKENS, _SEGMENT, _TICK, _STEP, _HEIGHT, _WIDTH = range(7)
_ORIGIN, _SHIFT = slice(7, 10), slice(10, 13)  # axes (t, h, w)


SINK = -1  # among the numbers of grids


class Shifts(NamedTuple):
    """Shifts of the sink and of the grids kept for long, a row each. Not to be changed.

    Attributes:
        numbers: `SINK`, then those of the grids, rising: ``[n]``.
        tokens: of each, ``[n]``.
        by: the shift of its run, ``[n, 3]``.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    by: np.ndarray


class Place(NamedTuple):
    """How far a stream is laid out.

    Attributes:
        end: the first position behind it, over all axes.
        segment: of the run before, if that is of frames.
        at: origin of that run's last grid.
        step: ticks from that grid to the one that followed it.
    """

    end: int = 0
    segment: int | None = None
    at: Vec = Vec(0, 0, 0)
    step: int = 0


class Kept:
    """The grids kept for long, in order of time. Never changed: what changes is another one."""

    def __init__(self, runs: Sequence[VisionRun] = ()) -> None:
        """Of runs of one whole grid each."""
        self._given = tuple(runs)  # with the shifts and the steps that they came with
        rows = [_row(run) for run in runs]
        self._table = np.array(rows, np.int64).reshape(len(rows), _SHIFT.stop)

    def _like(self, given: tuple[VisionRun, ...], table: np.ndarray) -> Kept:
        twin = object.__new__(Kept)
        twin._given, twin._table = given, table
        return twin

    def __len__(self) -> int:
        return len(self._given)

    # -- reading -----------------------------------------------------------------------------

    @cached_property
    def runs(self) -> tuple[VisionRun, ...]:
        """A run for each grid."""
        steps, shifts = self._table[:, _STEP].tolist(), self._table[:, _SHIFT].tolist()
        return tuple(
            replace(run, shift=Vec(*shift), step_after=step)
            for run, shift, step in zip(self._given, shifts, steps, strict=True)
        )

    @property
    def grids(self) -> list[Grid]:
        return [run.grids[0] for run in self._given]

    @property
    def newest(self) -> VisionRun:
        """The run of the last grid."""
        *_, step = self._table[-1, : _STEP + 1].tolist()
        return replace(self._given[-1], shift=self.shift, step_after=step)

    @property
    def shift(self) -> Vec:
        """Of the last grid."""
        return Vec(*self._table[-1, _SHIFT].tolist())

    @property
    def tokens(self) -> int:
        return int(self._table[:, _TOKENS].sum())

    def shifts(self, sink_tokens: int, sink_shift: Vec) -> Shifts:
        numbers, tokens, by = (self._table[:, at] for at in (_NUMBER, _TOKENS, _SHIFT))
        return Shifts(
            np.concatenate([[SINK], numbers]),
            np.concatenate([[sink_tokens], tokens]),
            np.concatenate([[sink_shift], by]),
        )

    # -- changing ----------------------------------------------------------------------------

    def followed_by(self, run: VisionRun) -> Kept:
        """With a run of one whole grid behind all others."""
        return self._like((*self._given, run), np.concatenate([self._table, [_row(run)]]))

    def without(self, number: int) -> tuple[Kept, Grid]:
        """Without the grid of that number; and that grid."""
        at = int(self._table[:, _NUMBER].searchsorted(number))
        grid = self._given[at].grids[0]
        assert grid.number == number
        table = np.concatenate([self._table[:at], self._table[at + 1 :]])
        return self._like(self._given[:at] + self._given[at + 1 :], table), grid

    def stepping(self, step: int) -> Kept:
        """With so many ticks from the last grid to the one that follows it now."""
        table = self._table.copy()
        table[-1, _STEP] = step
        return self._like(self._given, table)

    def laid_out(self, before: Place) -> tuple[Kept, Place]:
        """One after the other by the trained rule, behind what is laid out so far."""
        if not len(self):
            return self, before
        table = self._table
        segments, size = table[:, _SEGMENT], table[:, _HEIGHT : _WIDTH + 1]
        goes_on = before.segment is not None and int(segments[0]) == before.segment
        same = segments[1:] == segments[:-1]
        steps = np.empty(len(table), np.int64)
        steps[0] = before.step if goes_on else 0
        np.multiply(table[:-1, _STEP], same, out=steps[1:])
        ticks = steps.cumsum()
        places = np.empty((len(table), 3), np.int64)
        if same.all():  # one segment: the usual case
            at = before.at if goes_on else Vec(before.end, before.end, before.end)
            places[:], end = at, before.end
            places[:, 0] += ticks
        else:
            firsts = np.concatenate([[0], np.flatnonzero(~same) + 1])
            counts = np.diff(firsts, append=len(table))
            since = ticks[firsts]
            since[0] = 0  # (it may go on from the grid before)
            ticks -= since.repeat(counts)
            reach = np.maximum(size.max(axis=1), ticks + 1)
            reach = np.maximum.reduceat(reach, firsts)
            begin = before.end
            if goes_on:
                head = slice(0, counts[0])
                t, h, w = before.at
                rows, columns = size[head].max(axis=0).tolist()
                begin = max(begin, t + int(ticks[head].max()) + 1, h + rows, w + columns)
                reach[0] = 0
            ends = begin + reach.cumsum()
            places[:] = (ends - reach).repeat(counts)[:, None]
            if goes_on:
                places[head] = before.at
            places[:, 0] += ticks
            end = int(ends[-1])
        reaches = places[:, 0].max() + 1, *(places[:, 1:] + size).max(axis=0)
        end = max(end, *map(int, reaches))
        now = table.copy()
        now[:, _SHIFT] = table[:, _ORIGIN] - places
        now[:, _SHIFT.start] += table[:, _TICK]
        at = Vec(*places[-1].tolist())
        after = Place(end, int(segments[-1]), at, int(table[-1, _STEP]))
        return self._like(self._given, now), after


def _row(run: VisionRun) -> tuple[int, ...]:
    (grid,) = run.grids
    size = grid.count, run.segment, grid.tick, run.step_after, grid.height, grid.width
    return grid.number, *size, *run.origin, *run.shift
