# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""All that was seen on one line, and where it is now."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stream_vlm_ros.session.memory_summary import MemorySummary

from .clock import marks, of_day

FINEST = 2_000  # parts of the line that are told apart
MS = 10**6
# What a time may be in, and what that is for people; a later one lies over an earlier.
KINDS = {
    "forgotten": "forgotten",
    "history": "history",
    "window": "window",
    "sampled": "sampled",
    "important": "important",
    "sink": "first frames",
}
EXPLAINED = {
    "sink": "the first frames, which always stay",
    "sampled": "kept evenly over the past",
    "important": "least like the others",
    "window": "the recent past, whole",
    "history": "kept behind the memory, fetched when a question needs it",
    "forgotten": "nothing of it is kept",
}


@dataclass(frozen=True)
class Band:
    """A stretch of time and where it is now, by the name in `KINDS`."""

    kind: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class TimeLine:
    """From the first time of which anything is known to the newest.

    Attributes:
        bands: as they are painted, a later one over an earlier.
    """

    start_ns: int
    end_ns: int
    bands: tuple[Band, ...]

    @classmethod
    def of(cls, memory: MemorySummary) -> TimeLine | None:
        """The line of a memory; None while it has seen nothing."""
        held = _joined(
            [Band(level.name, *span) for level in memory.levels for span in level.spans_ns],
            memory.spans_ns,
        )
        kept = [
            Band("history", tier.oldest_ns, tier.newest_ns)
            for tier in memory.tiers
            if tier.oldest_ns is not None and tier.newest_ns is not None
        ]
        if not held and not kept:
            return None
        start_ns = min(band.start_ns for band in held + kept)
        end_ns = max(band.end_ns for band in held + kept)
        bands = [Band("forgotten", start_ns, end_ns)]
        for kind in KINDS:
            bands += _merged([b for b in held + kept if b.kind == kind], end_ns - start_ns)
        return cls(start_ns, end_ns, tuple(bands))

    def kind_at(self, stamp_ns: int) -> str:
        """Where that time is now; "" for one that is not on the line."""
        for band in reversed(self.bands):
            if band.start_ns <= stamp_ns <= band.end_ns:
                return band.kind
        return ""

    @cached_property
    def props(self) -> dict[str, Any]:
        """As the page draws it: times in milliseconds since ``origin``."""
        return {
            "origin": str(self.start_ns),  # too long for a number of JavaScript's
            "length": self.ms(self.end_ns),
            "bands": [[b.kind, self.ms(b.start_ns), self.ms(b.end_ns)] for b in self.bands],
            "marks": [[self.ms(at), text] for at, text in marks(self.start_ns, self.end_ns)],
            "day": of_day(self.start_ns),
        }

    def ms(self, stamp_ns: int) -> int:
        """Milliseconds since the start, of a time within the line or of its nearer end."""
        return (max(self.start_ns, min(self.end_ns, stamp_ns)) - self.start_ns) // MS

    def spans(self, spans_ns: Iterable[tuple[int, int]]) -> list[list[int]]:
        """In milliseconds since the start, those that touch the line."""
        return [
            [self.ms(first), self.ms(last)]
            for first, last in spans_ns
            if last >= self.start_ns and first <= self.end_ns
        ]


class NewestLine:
    """The line of a memory as it is now, made once for all who look."""

    def __init__(self) -> None:
        self._memory: MemorySummary | None = None
        self._line: TimeLine | None = None

    def of(self, memory: MemorySummary) -> TimeLine | None:
        """As `TimeLine.of`."""
        if memory is not self._memory:
            self._memory, self._line = memory, TimeLine.of(memory)
        return self._line


def _joined(held: list[Band], unbroken_ns: Sequence[tuple[int, int]]) -> list[Band]:
    """Up to the next frame, where nothing between them was forgotten."""
    held.sort(key=lambda band: (band.start_ns, band.end_ns))
    starts = [start for start, _ in unbroken_ns]
    found = []
    for index, band in enumerate(held):
        following = held[index + 1] if index + 1 < len(held) else None
        stretch = bisect_right(starts, band.end_ns) - 1
        if (
            following is not None
            and stretch >= 0
            and band.end_ns < following.start_ns <= unbroken_ns[stretch][1]
        ):
            band = Band(band.kind, band.start_ns, following.start_ns)
        found.append(band)
    return found


def _merged(bands: Sequence[Band], length_ns: int) -> list[Band]:
    """Without gaps that nobody would see."""
    found: list[Band] = []
    for band in sorted(bands, key=lambda band: band.start_ns):
        if found and band.start_ns - found[-1].end_ns <= length_ns // FINEST:
            last = found.pop()
            band = Band(band.kind, last.start_ns, max(last.end_ns, band.end_ns))
        found.append(band)
    return found
