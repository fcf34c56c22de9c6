# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a node says, as the plain values it was made of there; see ``node/interfaces.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stream_vlm_ros.client.errors import AskError
from stream_vlm_ros.client.messages import nanoseconds, seconds
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.session.memory_summary import EpisodeState, LevelState, MemorySummary, TierState
from stream_vlm_ros.session.question import Outcome, Question


def to_memory(status: Any) -> MemorySummary:
    """Of a ``stream_vlm/CacheStatus``."""
    return MemorySummary(
        length=status.length,
        cap=status.cap,
        sink=status.sink,
        window=status.window,
        memory_bytes=status.memory_bytes,
        chunks=status.chunks,
        frames=status.frames,
        evictions=status.evictions,
        evicted_tokens=status.evicted_tokens,
        closed_pauses=status.closed_pauses,
        closed_seconds=status.closed_seconds,
        oldest_ns=_known_ns(status.oldest_stamp),
        newest_ns=_known_ns(status.newest_stamp),
        spans_ns=_spans(status.spans),
        levels=tuple(
            LevelState(level.name, level.frames, level.tokens, _spans(level.spans))
            for level in status.levels
        ),
        tiers=tuple(map(_tier, status.tiers)),
        header=status.header if nanoseconds(status.newest_stamp) else None,
    )


def to_outcome(answer: Any, question: Question) -> Outcome:
    """Of a ``stream_vlm/Answer``; its poses are left out."""
    memory = replace(
        to_memory(answer.cache_status),
        oldest_ns=_known_ns(answer.oldest_stamp),
        newest_ns=_known_ns(answer.newest_stamp),
        spans_ns=_spans(answer.seen),
        header=answer.header,
    )
    error: StreamVlmError | None = AskError(answer) if answer.error_code else None
    return Outcome(
        question,
        answer=answer.text,
        choice_index=answer.choice_index,
        choice_scores=tuple(answer.choice_scores),
        choice_tokens=tuple(answer.choice_tokens),
        error=error,
        waiting=seconds(answer.waiting),
        ttft=seconds(answer.ttft),
        latency=seconds(answer.latency),
        prompt_tokens=answer.prompt_tokens,
        fetched_tokens=answer.fetched_tokens,
        answer_tokens=answer.answer_tokens,
        finish_reason=answer.finish_reason,
        memory=memory,
        evidence=tuple(map(_episode, answer.evidence)),
    )


def _known_ns(stamp: Any) -> int | None:
    return nanoseconds(stamp) or None


def _spans(spans: Any) -> tuple[tuple[int, int], ...]:
    return tuple((nanoseconds(span.start), nanoseconds(span.end)) for span in spans)


def _tier(tier: Any) -> TierState:
    return TierState(
        name=tier.name,
        grids=tier.grids,
        frames=tier.frames,
        bytes=tier.bytes,
        max_bytes=tier.max_bytes,
        where=tier.where,
        oldest_ns=_known_ns(tier.oldest),
        newest_ns=_known_ns(tier.newest),
        left_out=tier.left_out,
    )


def _episode(evidence: Any) -> EpisodeState:
    return EpisodeState(
        start_ns=nanoseconds(evidence.span.start),
        end_ns=nanoseconds(evidence.span.end),
        score=evidence.score,
        tier=evidence.tier,
        stamps_ns=tuple(map(nanoseconds, evidence.stamps)),
        thumbnails=tuple(
            (nanoseconds(picture.header.stamp), bytes(picture.data))
            for picture in evidence.thumbnails
        ),
    )
