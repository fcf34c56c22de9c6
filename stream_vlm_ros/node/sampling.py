"""Frames in time and in chunks: arithmetic on stamps alone.

Which frames are taken for a rate is decided by ``stream_vlm_ros.sources.sampling``, so that the
node and a replay of the same recording take the same ones. All stamps are integers in
nanoseconds of the source's own clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SECOND = 1_000_000_000


class Timing(Enum):
    """What a stamp says about its frame."""

    IN_ORDER = "in order"
    LATE = "late"  # older than the newest, within the tolerance: a frame that was overtaken
    JUMP = "jump"  # the source's time starts anew: a looped bag, a restart, a very long gap


@dataclass
class StampCheck:
    """Tells frames in order from late ones and from jumps of the source's time.

    A stamp at most ``tolerance_ns`` behind the newest (or equal to it) is late; further behind it
    is a jump; more than ``max_gap_ns`` ahead is a jump too, since no memory spans such a gap.
    """

    tolerance_ns: int
    max_gap_ns: int
    newest_ns: int | None = None

    def classify(self, stamp_ns: int) -> Timing:
        """What ``stamp_ns`` is, seen from the newest stamp so far. Changes nothing."""
        if self.newest_ns is None:
            return Timing.IN_ORDER
        ahead = stamp_ns - self.newest_ns
        if ahead > self.max_gap_ns or ahead < -self.tolerance_ns:
            return Timing.JUMP
        return Timing.IN_ORDER if ahead > 0 else Timing.LATE

    def advance(self, stamp_ns: int) -> None:
        """``stamp_ns`` is the newest from now on."""
        self.newest_ns = stamp_ns

    def clear(self) -> None:
        """Forget the past: any next stamp is in order."""
        self.newest_ns = None


@dataclass(frozen=True)
class TimedFrame:
    """A picture with the source's header, as it travels to the engine."""

    stamp_ns: int  # by which it is sampled and placed in time
    image: Any  # uint8 [height, width, 3] RGB
    header: Any  # std_msgs/Header as it came


@dataclass
class Chunker:
    """Gathers frames of one ``kind`` (their size) into chunks of ``chunk_frames``.

    A frame of another kind closes the open chunk early: one chunk is one tensor.
    """

    chunk_frames: int
    frames: list[TimedFrame] = field(default_factory=list)
    kind: Hashable = None
    opened_ns: int = 0

    def add(self, frame: TimedFrame, kind: Hashable, now_ns: int) -> list[list[TimedFrame]]:
        """Take a frame in; the chunks it completes, none to two of them."""
        done = []
        if self.frames and kind != self.kind:
            done.append(self.flush())
        if not self.frames:
            self.kind, self.opened_ns = kind, now_ns
        self.frames.append(frame)
        if len(self.frames) >= self.chunk_frames:
            done.append(self.flush())
        return done

    def is_overdue(self, now_ns: int, max_delay_ns: int) -> bool:
        """Whether the open chunk has waited ``max_delay_ns`` (0: it may wait for ever).

        A clock that went backwards since the chunk was opened counts as overdue.
        """
        waited = now_ns - self.opened_ns
        return bool(self.frames) and max_delay_ns > 0 and not 0 <= waited < max_delay_ns

    def flush(self) -> list[TimedFrame]:
        """The frames of the open chunk, which is empty afterwards."""
        frames, self.frames = self.frames, []
        return frames
