# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From stamps to positions: where a stream's grids lie on the t axis, long pauses left out.

Positions are ticks: `mrope.time_to_ticks` of the time since the stream began. A model reads steps
between neighbouring grids as far as it was trained on, and has only ``max_position_embeddings`` of
them. So a step beyond either bound is closed: the grids behind it lie as if the pause had not been.
Order is kept, and the stamps themselves stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Seconds. The small model answers as well across a step of so long as across none, and not
# across one of an hour (bench/results/pauses.json).
MAX_PAUSE = 300.0
# A step takes at most this part of the positions that are left, so that the steps of a memory full
# of frames that are far apart shrink evenly, to about what is there divided by the grids held.
# Where no step is too long in itself, one may take more.
SHARE, LARGE_SHARE = 1 / 8, 3 / 4


@dataclass(frozen=True)
class Timeline:
    """Ticks of the grids so far. Replaced as a whole, never changed.

    Attributes:
        newest: tick of the newest grid; None before the first.
        step: ticks between the newest two grids; None before there are two.
        closed: ticks that pauses would have taken and that were left out.
        pauses: how often a step was closed or shortened.
    """

    newest: int | None = None
    step: int | None = None
    closed: int = 0
    pauses: int = 0

    def extended(
        self,
        ticks: Iterable[int],
        max_step: int | None,
        room: int,
        second: int,
        opens: bool = False,
    ) -> tuple[tuple[int, ...], Timeline]:
        """The ticks at which further grids lie, and the timeline behind them.

        A closed step is as long as the step before it (one tick at least), or a second where there
        is none, and never longer than it was.

        Args:
            ticks: of each grid since the stream began, by its stamp; never falling.
            max_step: ticks of the longest step that is not closed; None: any.
            room: positions that are left for these steps and all that follow. Where none are, a
                step takes one, so that order is kept.
            second: ticks of one second.
            opens: the first of the grids begins a segment, whose positions do not depend on when.
        """
        share = LARGE_SHARE if max_step is None else SHARE
        newest, before, closed, pauses = self.newest, self.step, self.closed, self.pauses
        laid: list[int] = []
        for tick in ticks:
            at = tick - closed
            if newest is not None and (laid or not opens):
                step = at - newest
                if max_step is not None and step > max_step:
                    step = min(step, second if before is None else max(1, before))
                step = min(step, max(1, int(share * room)))
                if newest + step < at:
                    closed, pauses = closed + at - newest - step, pauses + 1
                at, before, room = newest + step, step, room - step
            newest = at
            laid.append(at)
        return tuple(laid), Timeline(newest, before, closed, pauses)
