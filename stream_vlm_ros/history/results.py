# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the engines with a history return in addition to what every engine does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from stream_vlm_ros.engine.results import (
    AnswerMetrics,
    CacheInfo,
    ChoiceMetrics,
    ChunkResult,
    QuestionMetrics,
    Record,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptResult(ChunkResult):
    """Of frames that were offered: ``kept`` is how many the target rate took.

    With those among them that had waited for a jump of time to be believed.
    """

    kept: int


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameStatistics(Record):
    """What became of the frames since the start or the last `clear`.

    ``frames_added`` were offered = ``frames_kept`` + ``frames_repeated`` (the stamp before again) +
    ``frames_not_sampled`` (between two ticks of the target rate) + ``frames_invalid_stamp`` (not
    believed; the manager's ``last_refusal`` says why) + ``frames_waiting`` (for a pause
    or a jump of time to be believed).

    Attributes:
        unique_frames: in star memory or stream window, each counted once.
        compression_ratio: frames added a unique frame.
        stored_frames, stored_bytes: of the store, with what it took up from before.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "total_frames_added": "frames_added",
        "star_memory_size": "star_frames",
        "stream_memory_size": "stream_frames",
    }

    frames_added: int
    frames_kept: int
    frames_repeated: int
    frames_not_sampled: int
    frames_invalid_stamp: int
    frames_waiting: int
    frames_forgotten: int
    star_frames: int
    stream_frames: int
    unique_frames: int
    compression_ratio: float
    stored_frames: int
    stored_bytes: int


@dataclass(frozen=True, eq=False, kw_only=True)
class EngineStatistics(FrameStatistics):
    """What was kept, encoded and answered. Latencies in seconds.

    Attributes:
        cache_valid: a question about no named time asked now finds all its frames encoded.
        disk_cache_enabled: frames are kept in a folder.
        frames_encoded: in the model's memory now; a frame that fills a grid alone counts twice.
        visual_tokens: of these frames.
        second_per_grid_t: mean seconds of a temporal grid; ``time_span``: from the oldest to the
            newest of them.
        encode_count ... generation_latency: see `EncodingCounts`.
    """

    cache_valid: bool
    disk_cache_enabled: bool
    frames_encoded: int
    visual_tokens: int
    second_per_grid_t: float
    time_span: float
    encode_count: int
    encoded_tokens: int
    reused_tokens: int
    encoding_latency: float
    generation_latency: float


@dataclass(frozen=True, eq=False, kw_only=True)
class _EncodingCosts(QuestionMetrics):
    """Of a question, with the encoding before it.

    Attributes:
        encode_latency: seconds of the encoding; ``generation_latency``: without it.
        encoded_tokens: computed for this question; 0: all was in place.
        frames_used: frames that the answer was read from; ``frames_encoded`` counts one that fills
            a grid alone twice.
        visual_tokens: of these frames.
        second_per_grid_t: mean seconds of a temporal grid; ``time_span``: from the oldest to the
            newest of these frames. What was kept between them was not looked at: ``time_spans``
            are the stretches that they cover.
    """

    encode_latency: float
    generation_latency: float
    encoded_tokens: int
    frames_used: int
    frames_encoded: int
    visual_tokens: int
    second_per_grid_t: float
    time_span: float


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedAnswer(AnswerMetrics, _EncodingCosts):
    """Of an answer that was written after its frames were encoded."""

    aliases: ClassVar[Mapping[str, str]] = {
        **AnswerMetrics.aliases,
        "encoding_latency": "encode_latency",
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedChoice(ChoiceMetrics, _EncodingCosts):
    """Of a choice that was made after its frames were encoded."""

    aliases: ClassVar[Mapping[str, str]] = {
        **ChoiceMetrics.aliases,
        "encoding_latency": "encode_latency",
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class DelayedCacheInfo(CacheInfo):
    """`CacheInfo` of what is encoded, with the times of the kept frames, and ``frame_memory``."""

    frame_memory: EngineStatistics


@dataclass(frozen=True, eq=False, kw_only=True)
class TierInfo(Record):
    """What one tier of a history holds. Stamps in seconds of the source, None where it is empty.

    Attributes:
        name: ``pictures`` (frames, to be read), ``features`` (the newest of them as the model saw
            them) or ``keys`` (what finds them).
        grids, frames: held, of which ``oldest`` and ``newest`` are the first and last stamp.
        bytes, max_bytes: taken, and at most.
        where: ``memory``, ``device``, or the folder.
        error: why the newest of what was seen was not taken (a full disk), in words; "" if it was.
        left_out: of ``keys``, further grids that these stand for: their own had no more room.
    """

    name: str
    grids: int
    frames: int
    bytes: int
    max_bytes: int
    where: str
    oldest: float | None = None
    newest: float | None = None
    error: str = ""
    left_out: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class RecallCacheInfo(CacheInfo):
    """`CacheInfo` of a stream, and ``tiers``: what its history holds."""

    tiers: tuple[TierInfo, ...]
