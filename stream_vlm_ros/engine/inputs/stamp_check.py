# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which stamps are believed: one wrong stamp costs one frame, whatever keeps or counts the frames.

The node's intake, the memory of kept frames and the readers of bags all ask this one rule. It is
bookkeeping over whole nanoseconds; frames only pass through it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, pairwise
from typing import Generic, TypeVar

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidTimestampError

FRAMES_TO_BELIEVE = 3  # that agree on a pause or a jump
MAX_WAITING = 4  # so many wait for a third one to agree: one wrong stamp may come among them
ODD_STEP = 2  # a step of so many times the longest of the last RECENT_STEPS is no usual one
RECENT_STEPS = 4
FIRST_STEP_NS = 5 * SECOND  # the longest usual step while none is known
# A stamp is below this one: builtin_interfaces/Time ends at the largest int32 of seconds, which
# broken clocks write.
END_OF_TIME_NS = (2**31 - 1) * SECOND

Frame = TypeVar("Frame")


def check_stamp(stamp_ns: int) -> int:
    """``stamp_ns`` itself; InvalidTimestampError for one that no message can hold."""
    if not 0 <= stamp_ns < END_OF_TIME_NS:
        raise InvalidTimestampError(
            f"a stamp of {stamp_ns / SECOND:.3f} s lies outside what a message can hold "
            f"(0 to {END_OF_TIME_NS // SECOND:,} s)"
        )
    return stamp_ns


def join_stamp(seconds: int, nanoseconds: int) -> int:
    """The two fields of a message's stamp in nanoseconds; whether any message can hold them is
    for `check_stamp`. InvalidTimestampError for nanoseconds that make a second or more."""
    if not 0 <= nanoseconds < SECOND:
        raise InvalidTimestampError(f"a stamp has {nanoseconds} nanoseconds, a second or more")
    return seconds * SECOND + nanoseconds


class Timing(Enum):
    """What a stamp says about its frame."""

    IN_ORDER = "in order"
    LATE = "late"  # older than the newest, within the tolerance: a frame that was overtaken
    PAUSE = "pause"  # ahead by far more than the frames before it: a pause, or a wrong stamp
    JUMP = "jump"  # the source's time starts again, or goes on after a very long pause


@dataclass(frozen=True)
class Decision(Generic[Frame]):
    """What a stamp decided, of its own frame and of those that waited before it.

    Attributes:
        admitted: frames to be taken, in their order.
        refused: frames to be dropped, each with the reason in words.
        jump_ns: by how much time jumped before the first of ``admitted``; None: it did not.
        outvoted: the frames before the jump were themselves too few to be believed: their stamps
            were wrong.
    """

    admitted: tuple[Frame, ...] = ()
    refused: tuple[tuple[Frame, str], ...] = ()
    jump_ns: int | None = None
    outvoted: bool = False


@dataclass(frozen=True)
class _Waiting(Generic[Frame]):
    stamp_ns: int
    frame: Frame


class StampCheck(Generic[Frame]):
    """Tells frames in order from late ones, pauses and jumps; believes the last two if they last.

    Seen from the newest stamp, a frame is

    - late, if it is at most ``tolerance_ns`` behind or equal: refused;
    - in order, if its step ahead is a usual one, less than ``ODD_STEP`` times the longest of
      the last: admitted, and those that wait are refused, since the source goes on without them;
    - after a pause, if it is up to ``max_gap_ns`` ahead: it waits;
    - after a jump, if it is further ahead or behind: it waits. What becomes of a memory then is for
      who keeps it.

    Those that wait are admitted together, and time goes on from there, when three of them follow
    one another: each at most ``max_gap_ns`` after the one before, the second step a usual one after
    the first, all of them ahead of the newest or all behind it. Others that wait are refused
    then. So a wrong stamp costs its own frame, also right after a pause. Only one that is taken for
    the next frame, at a usual step, makes a longer or shorter one usual: a second wrong stamp
    within ``RECENT_STEPS`` frames of it can cost more than one. At most ``MAX_WAITING`` wait;
    then three whose steps are not alike suffice, or else the first of them is refused.

    Args:
        tolerance_ns, max_gap_ns: may be changed at any time.
        newest_ns: newest stamp so far; None: the first frame is believed, whatever its stamp.
        believe_backwards: False: time that jumps back is refused for as long as it is behind. May
            be changed at any time. What is itself not yet believed, the first two frames, never
            stands against such a jump.
        doubt_pauses: False: a pause is in order.
        confirm_first: the first frames wait, too, until three of them follow one another; for
            sources that are read to their end, and then `finish`.
    """

    def __init__(
        self,
        tolerance_ns: int,
        max_gap_ns: int,
        newest_ns: int | None = None,
        *,
        believe_backwards: bool = True,
        doubt_pauses: bool = True,
        confirm_first: bool = False,
    ) -> None:
        self.tolerance_ns, self.max_gap_ns = tolerance_ns, max_gap_ns
        self.believe_backwards, self.doubt_pauses = believe_backwards, doubt_pauses
        self.confirm_first = confirm_first
        self._waiting: list[_Waiting[Frame]] = []
        self._steps: deque[int] = deque(maxlen=RECENT_STEPS)
        self.resume(newest_ns)

    def resume(self, newest_ns: int | None) -> None:
        """Go on from a stamp that is believed; None: from nothing. Nothing may be waiting."""
        assert not self._waiting
        self.newest_ns: int | None = newest_ns
        self._agreed = 0 if newest_ns is None else FRAMES_TO_BELIEVE
        self._steps.clear()

    @property
    def waiting(self) -> int:
        """Frames that wait for a pause or a jump to be believed."""
        return len(self._waiting)

    @property
    def usual_step_ns(self) -> int:
        """The longest of the last steps from frame to frame."""
        return max(self._steps, default=FIRST_STEP_NS)

    def classify(self, stamp_ns: int) -> Timing:
        """What ``stamp_ns`` is, seen from the newest stamp so far. Changes nothing."""
        if self.newest_ns is None:
            return Timing.IN_ORDER
        ahead = stamp_ns - self.newest_ns
        if ahead > self.max_gap_ns or ahead < -self.tolerance_ns:
            return Timing.JUMP
        if ahead <= 0:
            return Timing.LATE
        odd = self.doubt_pauses and ahead >= ODD_STEP * self.usual_step_ns
        return Timing.PAUSE if odd else Timing.IN_ORDER

    def offer(self, stamp_ns: int, frame: Frame) -> Decision[Frame]:
        """Decide about a frame; to be asked once for each, as they come."""
        timing = self.classify(stamp_ns)
        if timing is Timing.IN_ORDER and not (self.newest_ns is None and self.confirm_first):
            return self._admit([_Waiting(stamp_ns, frame)], self._give_up())
        repeated = any(stamp_ns == other.stamp_ns for other in self._waiting)
        if repeated or (timing is Timing.LATE and not self._may_be_no_late_one(stamp_ns)):
            return Decision(refused=((frame, self._why_not(stamp_ns)),))
        self._waiting.append(_Waiting(stamp_ns, frame))
        refused: tuple[tuple[Frame, str], ...] = ()
        if not self._may_go_back():
            refused = self._refuse([w for w in self._waiting if not self._is_ahead(w)])
        row = self._row_that_ends_here()
        if row:
            return self._believe(row, refused)
        if len(self._waiting) > MAX_WAITING:
            refused = (*refused, *self._refuse(self._waiting[:1]))
        return Decision(refused=refused)

    def release(self) -> Decision[Frame]:
        """No frame may follow for long: those that wait after a pause are admitted.

        Those that wait after a jump go on waiting, if none wait after a pause.
        """
        if self.newest_ns is None:
            row = self._longest_row(self._waiting)
        else:
            last_ns = self.newest_ns + self.max_gap_ns
            near = [w for w in self._waiting if self.newest_ns < w.stamp_ns <= last_ns]
            row = self._longest_row(near)
        return self._believe(row, ()) if row else Decision()

    def finish(self) -> Decision[Frame]:
        """No frame follows: `release`, and others that wait are refused."""
        decision = self.release()
        return Decision(decision.admitted, (*decision.refused, *self._give_up()))

    def clear(self) -> tuple[Frame, ...]:
        """Forget the past: any next stamp is the first. The frames that waited."""
        frames = tuple(waiting.frame for waiting in self._waiting)
        self._waiting.clear()
        self.resume(None)
        return frames

    # -- those that wait ---------------------------------------------------------------------

    def _follows(self, first: _Waiting[Frame], second: _Waiting[Frame]) -> bool:
        """Whether ``second`` goes on from ``first``."""
        return 0 < second.stamp_ns - first.stamp_ns <= self.max_gap_ns and (
            self._is_ahead(first) == self._is_ahead(second)
        )

    def _is_ahead(self, waiting: _Waiting[Frame]) -> bool:
        return self.newest_ns is None or waiting.stamp_ns > self.newest_ns

    def _may_be_no_late_one(self, stamp_ns: int) -> bool:
        """Whether a late stamp may be in order all the same: it goes on from those that wait, as in
        a short loop, or the newest stamp is not yet believed."""
        if self._agreed < FRAMES_TO_BELIEVE and stamp_ns != self.newest_ns:
            return True
        return self._may_go_back() and any(
            0 < stamp_ns - w.stamp_ns <= self.max_gap_ns and not self._is_ahead(w)
            for w in self._waiting
        )

    def _may_go_back(self) -> bool:
        return self.believe_backwards or self._agreed < FRAMES_TO_BELIEVE

    def _row_that_ends_here(self) -> list[_Waiting[Frame]]:
        """Those to be believed now that the last of them has come; none if it is too early."""
        if len(self._waiting) < FRAMES_TO_BELIEVE:
            return []
        *before, last = self._waiting
        alike = any(
            self._follows(first, second)
            and self._follows(second, last)
            and last.stamp_ns - second.stamp_ns < ODD_STEP * (second.stamp_ns - first.stamp_ns)
            for first, second in combinations(before, 2)
        )
        if not alike and len(self._waiting) <= MAX_WAITING:
            return []
        row = self._longest_row(before, last)
        return row if len(row) >= FRAMES_TO_BELIEVE else []

    def _longest_row(
        self, waiting: list[_Waiting[Frame]], last: _Waiting[Frame] | None = None
    ) -> list[_Waiting[Frame]]:
        """The most of ``waiting`` that follow one another, before ``last`` if one is given."""
        ends = [] if last is None else [last]
        rows = (
            [*row, *ends]
            for count in range(len(waiting), -1, -1)
            for row in combinations(waiting, count)
        )
        return next(row for row in rows if all(self._follows(a, b) for a, b in pairwise(row)))

    def _believe(
        self, row: list[_Waiting[Frame]], refused: tuple[tuple[Frame, str], ...]
    ) -> Decision[Frame]:
        self._waiting = [w for w in self._waiting if not any(w is r for r in row)]
        return self._admit(row, (*refused, *self._give_up()))

    def _admit(
        self, row: list[_Waiting[Frame]], refused: tuple[tuple[Frame, str], ...]
    ) -> Decision[Frame]:
        """Time goes on with these."""
        first_ns, newest_ns = row[0].stamp_ns, row[-1].stamp_ns
        step_ns = None if self.newest_ns is None else first_ns - self.newest_ns
        jump_ns = step_ns if step_ns is None or not 0 < step_ns <= self.max_gap_ns else None
        outvoted = jump_ns is not None and self._agreed < FRAMES_TO_BELIEVE
        self._agreed = len(row) + (self._agreed if jump_ns is None else 0)
        if len(row) > 1:  # the step to the first of them was no usual one
            self._steps.clear()
            self._steps.extend(b.stamp_ns - a.stamp_ns for a, b in pairwise(row))
        elif step_ns is not None:
            self._steps.append(step_ns)
        self.newest_ns = newest_ns
        frames = tuple(waiting.frame for waiting in row)
        return Decision(frames, refused, jump_ns, outvoted)

    def _give_up(self) -> tuple[tuple[Frame, str], ...]:
        """Refuse those that wait."""
        return self._refuse(self._waiting)

    def _refuse(self, waiting: list[_Waiting[Frame]]) -> tuple[tuple[Frame, str], ...]:
        if not waiting:
            return ()
        refused = tuple((w.frame, self._why_not(w.stamp_ns)) for w in waiting)
        self._waiting = [w for w in self._waiting if not any(w is r for r in waiting)]
        return refused

    def _why_not(self, stamp_ns: int) -> str:
        if self.newest_ns is None:
            return f"a first frame has the stamp {stamp_ns / SECOND:.3f} s, far from the next ones"
        ahead = (stamp_ns - self.newest_ns) / SECOND
        if ahead <= 0:
            return f"a frame is {-ahead:.3f} s older than the newest one"
        return f"a frame is {ahead:.3f} s ahead of the one before it, and none follow it there"
