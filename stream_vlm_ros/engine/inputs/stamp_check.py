# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which stamps are believed: one wrong stamp costs one frame, whatever keeps or counts the frames.

The node's intake, the memory of kept frames and the readers of bags all ask this one rule. It is
bookkeeping over whole nanoseconds; frames only pass through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from stream_vlm_ros.errors import InvalidTimestampError

SECOND = 1_000_000_000
FRAMES_TO_BELIEVE = 3  # in a row, that agree on a jump
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
    JUMP = "jump"  # the source's time starts again: a looped bag, a restart, a very long gap


@dataclass(frozen=True)
class Decision(Generic[Frame]):
    """What a stamp decided, of its own frame and of those that waited before it.

    Attributes:
        admitted: frames to be taken, in their order.
        refused: frames to be dropped, each with the reason in words.
        jump_ns: by how much time jumped before the first of ``admitted``; None: it did not.
    """

    admitted: tuple[Frame, ...] = ()
    refused: tuple[tuple[Frame, str], ...] = ()
    jump_ns: int | None = None


class StampCheck(Generic[Frame]):
    """Tells frames in order from late ones and from jumps, and believes a jump only when it lasts.

    A stamp at most ``tolerance_ns`` behind the newest (or equal to it) is late; further behind it
    is a jump; more than ``max_gap_ns`` ahead is a jump too, since no memory spans such a gap. A
    late frame is refused. A frame after a jump waits; once ``FRAMES_TO_BELIEVE`` in a row agree,
    each after the one before by at most ``max_gap_ns``, they are admitted together and time goes on
    from there. Whatever does not agree with those that wait refuses them. So at most two frames
    wait at any time.

    Args:
        tolerance_ns, max_gap_ns: may be changed at any time.
        newest_ns: newest stamp so far; None: the first frame is believed, whatever its stamp.
        believe_backwards: False: time that jumps back is refused for as long as it is behind. May
            be changed at any time. What is itself not yet believed, the first two frames, never
            stands against such a jump.
        confirm_first: the first frame waits until another agrees with it, the first of three that
            does not agree with the others is refused; for sources that are read to their end, and
            then `finish`.
    """

    def __init__(
        self,
        tolerance_ns: int,
        max_gap_ns: int,
        newest_ns: int | None = None,
        *,
        believe_backwards: bool = True,
        confirm_first: bool = False,
    ) -> None:
        self.tolerance_ns, self.max_gap_ns = tolerance_ns, max_gap_ns
        self.believe_backwards, self.confirm_first = believe_backwards, confirm_first
        self._waiting: list[tuple[int, Frame]] = []
        self.resume(newest_ns)

    def resume(self, newest_ns: int | None) -> None:
        """Go on from a stamp that is believed; None: from nothing. Nothing may be waiting."""
        assert not self._waiting
        self.newest_ns: int | None = newest_ns
        self._agreed = 0 if newest_ns is None else FRAMES_TO_BELIEVE

    @property
    def waiting(self) -> int:
        """Frames that wait for a jump to be believed."""
        return len(self._waiting)

    def classify(self, stamp_ns: int) -> Timing:
        """What ``stamp_ns`` is, seen from the newest stamp so far. Changes nothing."""
        if self.newest_ns is None:
            return Timing.IN_ORDER
        return self._seen_from(self.newest_ns, stamp_ns)

    def offer(self, stamp_ns: int, frame: Frame) -> Decision[Frame]:
        """Decide about a frame; to be asked once for each, as they come."""
        if self.newest_ns is None and self.confirm_first:
            return self._offer_first(stamp_ns, frame)
        timing = self.classify(stamp_ns)
        if timing is Timing.IN_ORDER:
            given_up = self._give_up()
            self.newest_ns = stamp_ns
            self._agreed = min(self._agreed + 1, FRAMES_TO_BELIEVE)
            return Decision((frame,), given_up)
        refused: tuple[tuple[Frame, str], ...] = ()
        if self._waiting:
            last_ns = self._waiting[-1][0]
            follows = self._seen_from(last_ns, stamp_ns)
            # A short loop: its end is late, seen from the newest, and goes on from those waiting.
            if timing is Timing.LATE and not self.believe_backwards:
                follows = Timing.JUMP
            if follows is Timing.LATE:
                return Decision(refused=((frame, _late(last_ns - stamp_ns)),))
            if follows is Timing.JUMP:
                refused = self._give_up()
        if not self._waiting and timing is Timing.LATE:
            assert self.newest_ns is not None
            return Decision(refused=(*refused, (frame, _late(self.newest_ns - stamp_ns))))
        self._waiting.append((stamp_ns, frame))
        if not self._may_be_believed():
            return Decision(refused=(*refused, *self._give_up()))
        if len(self._waiting) < FRAMES_TO_BELIEVE:
            return Decision(refused=refused)
        return self._believe(refused)

    def finish(self) -> Decision[Frame]:
        """No frame follows: those that wait are refused, but for the first of the source."""
        if self.newest_ns is None and self._waiting:
            (self.newest_ns, frame), *_ = self._waiting
            del self._waiting[0]
            return Decision((frame,), self._give_up())
        return Decision(refused=self._give_up())

    def clear(self) -> tuple[Frame, ...]:
        """Forget the past: any next stamp is the first. The frames that waited."""
        frames = tuple(frame for _, frame in self._waiting)
        self._waiting.clear()
        self.resume(None)
        return frames

    def _seen_from(self, newest_ns: int, stamp_ns: int) -> Timing:
        ahead = stamp_ns - newest_ns
        if ahead > self.max_gap_ns or ahead < -self.tolerance_ns:
            return Timing.JUMP
        return Timing.IN_ORDER if ahead > 0 else Timing.LATE

    def _offer_first(self, stamp_ns: int, frame: Frame) -> Decision[Frame]:
        """The first two frames of which one follows the other begin the source."""
        for first_ns, first in self._waiting:
            if self._seen_from(first_ns, stamp_ns) is Timing.IN_ORDER:
                self._waiting.remove((first_ns, first))
                self.newest_ns = stamp_ns
                self._agreed = FRAMES_TO_BELIEVE
                return Decision((first, frame), self._give_up())
        if self._waiting and self._seen_from(self._waiting[-1][0], stamp_ns) is Timing.LATE:
            return Decision(refused=((frame, _late(self._waiting[-1][0] - stamp_ns)),))
        self._waiting.append((stamp_ns, frame))
        if len(self._waiting) < FRAMES_TO_BELIEVE:
            return Decision()
        first_ns, first = self._waiting.pop(0)
        return Decision(refused=((first, self._no_jump(first_ns)),))

    def _may_be_believed(self) -> bool:
        """Whether the jump to those that wait could ever be believed."""
        assert self.newest_ns is not None
        ahead = self._waiting[0][0] > self.newest_ns
        return ahead or self.believe_backwards or self._agreed < FRAMES_TO_BELIEVE

    def _believe(self, refused: tuple[tuple[Frame, str], ...]) -> Decision[Frame]:
        assert self.newest_ns is not None
        jump_ns = self._waiting[0][0] - self.newest_ns
        admitted = tuple(frame for _, frame in self._waiting)
        self.newest_ns = self._waiting[-1][0]
        self._agreed = len(self._waiting)
        self._waiting.clear()
        return Decision(admitted, refused, jump_ns)

    def _give_up(self) -> tuple[tuple[Frame, str], ...]:
        """Refuse those that wait."""
        refused = tuple((frame, self._no_jump(stamp_ns)) for stamp_ns, frame in self._waiting)
        self._waiting.clear()
        return refused

    def _no_jump(self, stamp_ns: int) -> str:
        if self.newest_ns is None:
            return f"a first frame has the stamp {stamp_ns / SECOND:.3f} s, far from the next ones"
        ahead = (stamp_ns - self.newest_ns) / SECOND
        if ahead < 0:
            return f"a frame is {-ahead:.3f} s older than the newest one"
        return f"a frame is {ahead:.3f} s ahead of the one before it, and none follow it there"


def _late(behind_ns: int) -> str:
    return f"a frame is {behind_ns / SECOND:.3f} s older than the newest one"
