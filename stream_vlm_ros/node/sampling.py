# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames in time and in chunks: arithmetic on stamps alone.

Which stamps are believed is decided by ``engine.inputs.stamp_check``, which frames are taken for a
rate by ``sources.sampling``, so that the node and a replay of one recording take the same ones.
All stamps are integers in nanoseconds of the source's own clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000_000


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
        """Whether the open chunk has waited ``max_delay_ns`` (0: it may wait forever).

        A clock that went backwards since the chunk was opened counts as overdue.
        """
        waited = now_ns - self.opened_ns
        return bool(self.frames) and max_delay_ns > 0 and not 0 <= waited < max_delay_ns

    def flush(self) -> list[TimedFrame]:
        """The frames of the open chunk, which is empty afterwards."""
        frames, self.frames = self.frames, []
        return frames
