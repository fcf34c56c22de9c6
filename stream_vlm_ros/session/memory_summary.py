# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What an engine's memory holds, as plain values in the source's time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.engine.inputs.timestamps import SECOND

if TYPE_CHECKING:  # torch takes seconds to import: the node is on the graph before that
    from stream_vlm_ros.engine.results import CacheInfo, LevelInfo, TimeSpans
    from stream_vlm_ros.engine.saving.memory_copy import MemoryCopy
    from stream_vlm_ros.history.poses import Pose
    from stream_vlm_ros.history.results import TierInfo


LEVELS = ("sink", "sampled", "important", "window")  # of the memory, oldest frames first


@dataclass(frozen=True)
class LevelState:
    """What one level of the memory holds: frames, tokens of these frames, and from when they are.

    ``spans_ns`` are unbroken stretches of the source's time, oldest first.
    """

    name: str
    frames: int = 0
    tokens: int = 0
    spans_ns: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class TierState:
    """What one tier of the history holds. Stamps in nanoseconds of the source, None when empty."""

    name: str
    grids: int
    frames: int
    bytes: int
    max_bytes: int
    where: str
    oldest_ns: int | None
    newest_ns: int | None
    error: str = ""  # why it did not take the newest of what was seen
    left_out: int = 0  # further grids that its grids stand for


@dataclass(frozen=True)
class EpisodeState:
    """An episode that an answer rests on. Stamps in nanoseconds of the source.

    Attributes:
        thumbnails: JPEGs with their stamps.
        poses: of the robot at those of the stamps for which it is known.
    """

    start_ns: int
    end_ns: int
    score: float
    tier: str
    stamps_ns: tuple[int, ...]
    thumbnails: tuple[tuple[int, bytes], ...] = ()
    poses: tuple[Pose, ...] = ()


@dataclass(frozen=True)
class MemorySummary:
    """The engine's memory at one moment. Stamps in nanoseconds of the source, None when empty."""

    length: int = 0
    cap: int = 0
    sink: int = 0
    window: int = 0
    memory_bytes: int = 0
    chunks: int = 0
    frames: int = 0
    evictions: int = 0
    evicted_tokens: int = 0
    closed_pauses: int = 0
    closed_seconds: float = 0.0
    oldest_ns: int | None = None
    newest_ns: int | None = None
    spans_ns: tuple[tuple[int, int], ...] = ()  # unbroken stretches of time, oldest first
    levels: tuple[LevelState, ...] = tuple(LevelState(name) for name in LEVELS)
    tiers: tuple[TierState, ...] = ()  # of the history behind it
    header: Any = None  # of the newest frame

    @property
    def history_ns(self) -> tuple[int, int] | None:
        """From when to when the history reaches; None: there is none, or it is empty."""
        oldest = [tier.oldest_ns for tier in self.tiers if tier.oldest_ns is not None]
        newest = [tier.newest_ns for tier in self.tiers if tier.newest_ns is not None]
        return (min(oldest), max(newest)) if oldest and newest else None

    @property
    def history_fault(self) -> str:
        """Why the history did not take the newest of what was seen; "" if it did."""
        return "; ".join(sorted({tier.error for tier in self.tiers if tier.error}))

    @property
    def latest_ns(self) -> int | None:
        """Of the newest frame, be it in memory or, as at a start, in the history alone."""
        ends = [self.newest_ns, self.history_ns and self.history_ns[1]]
        return max((end for end in ends if end is not None), default=None)


@dataclass(frozen=True)
class CopiedMemory:
    """The memory, copied from the engine, and what a file of it also says.

    Attributes:
        memory: what was copied.
        origin_ns: the source's time at the engine's second 0.
        frame_id: of the newest frame.
    """

    copy: MemoryCopy
    memory: MemorySummary
    origin_ns: int
    frame_id: str


def summarize(info: CacheInfo, epoch_ns: int, header: Any) -> MemorySummary:
    """What an engine says of its memory.

    Args:
        epoch_ns: the source's time at the engine's second 0.
        header: of the newest frame.
    """

    def to_ns(seconds: float) -> int:
        return epoch_ns + round(seconds * SECOND)

    def maybe_ns(seconds: float | None) -> int | None:
        return None if seconds is None else to_ns(seconds)

    def spans_ns(spans: TimeSpans) -> tuple[tuple[int, int], ...]:
        return tuple((to_ns(first), to_ns(last)) for first, last in spans)

    def level(name: str, held: LevelInfo | None) -> LevelState:
        if held is None:
            return LevelState(name)
        return LevelState(name, held.frames, held.tokens, spans_ns(held.time_spans))

    def tier(held: TierInfo) -> TierState:
        return TierState(
            held.name, held.grids, held.frames, held.bytes, held.max_bytes, held.where,
            maybe_ns(held.oldest), maybe_ns(held.newest), held.error, held.left_out,
        )  # fmt: skip

    return MemorySummary(
        length=info.cache_seq_length,
        cap=info.max_cache_tokens or 0,
        sink=info.sink_size or 0,
        window=info.window_size or 0,
        memory_bytes=info.cache_memory_bytes,
        chunks=info.chunks,
        frames=info.frames,
        evictions=info.eviction_stats.total_evictions,
        evicted_tokens=info.eviction_stats.total_tokens_evicted,
        closed_pauses=info.closed_pauses,
        closed_seconds=info.closed_seconds,
        oldest_ns=maybe_ns(info.oldest_timestamp),
        newest_ns=maybe_ns(info.newest_timestamp),
        spans_ns=spans_ns(info.time_spans),
        levels=tuple(level(name, info.levels.get(name)) for name in LEVELS),
        tiers=tuple(tier(one) for one in getattr(info, "tiers", ())),
        header=header,
    )
