# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What became of every frame that reached the node."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum


class Drop(Enum):
    """Why a frame did not get into the memory. The value is the field of ``CacheStatus``."""

    SAMPLING = "dropped_sampling"
    INACTIVE = "dropped_inactive"
    PAUSED = "dropped_paused"
    INVALID_IMAGE = "dropped_invalid_image"
    INVALID_STAMP = "dropped_invalid_stamp"
    TIME_JUMP = "dropped_time_jump"
    OVERFLOW = "dropped_overflow"
    RESET = "dropped_reset"
    ERROR = "dropped_error"

    @property
    def cause(self) -> str:
        """Its name in reports."""
        return self.value.removeprefix("dropped_")


# Causes of drops that somebody asked for; frames that were dropped for another are lost.
ON_PURPOSE = frozenset(
    drop.cause for drop in (Drop.SAMPLING, Drop.INACTIVE, Drop.PAUSED, Drop.RESET)
)


@dataclass
class FrameCounters:
    """Counts frames from their arrival to their end; safe to use from several threads.

    A frame is *pending* from its arrival until it is ingested or dropped, so at every moment
    ``received == ingested + pending + sum(dropped.values())``.
    """

    received: int = 0
    ingested: int = 0
    dropped: dict[Drop, int] = field(default_factory=lambda: dict.fromkeys(Drop, 0))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def pending(self) -> int:
        """Frames on their way: received, and neither ingested nor dropped."""
        return self.received - self.ingested - sum(self.dropped.values())

    def receive(self) -> None:
        """One frame arrived."""
        with self._lock:
            self.received += 1

    def ingest(self, frames: int) -> None:
        """``frames`` pending frames are in the memory now."""
        with self._lock:
            self.ingested += frames
            self._check()

    def drop(self, cause: Drop, frames: int = 1) -> None:
        """``frames`` pending frames came to their end for ``cause``."""
        with self._lock:
            self.dropped[cause] += frames
            self._check()

    def snapshot(self) -> dict[str, int]:
        """All counts of one moment, by the names of the fields of ``CacheStatus``."""
        with self._lock:
            counts = {
                "frames_received": self.received,
                "frames_ingested": self.ingested,
                "frames_pending": self.pending,
            }
            return counts | {cause.value: count for cause, count in self.dropped.items()}

    def _check(self) -> None:
        if self.pending < 0:
            raise AssertionError(f"more frames are counted out than in: {self}")
