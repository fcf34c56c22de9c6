# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between the worker's plain values and the generated messages."""

from __future__ import annotations

from typing import Any

from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from std_msgs.msg import Header
from stream_vlm.msg import Answer, CacheStatus, MemoryLevel, TimeSpan

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidChoicesError, InvalidParameterError, cut
from stream_vlm_ros.node.health import Health
from stream_vlm_ros.node.memory_keeper import NOTHING_SAVED, SavedState
from stream_vlm_ros.node.worker import MemorySummary, Outcome, Question

# Longer questions are refused; their beginning is still published.
MAX_QUESTION, MAX_CHOICE, MAX_CHOICES = 10_000, 1000, 1000  # characters, characters, choices


def from_time(stamp: Any) -> int:
    """Time -> nanoseconds."""
    nanoseconds: int = stamp.sec * SECOND + stamp.nanosec
    return nanoseconds


def to_time(stamp: int | None) -> Time:
    """Nanoseconds -> Time; None (an empty memory) -> zero."""
    seconds, nanoseconds = divmod(stamp or 0, SECOND)
    return Time(sec=seconds, nanosec=nanoseconds)


def to_header(stamp: int, frame_id: str) -> Header:
    """Nanoseconds and a frame's name -> Header."""
    return Header(stamp=to_time(stamp), frame_id=frame_id)


def to_spans(memory: MemorySummary) -> list[TimeSpan]:
    """The unbroken stretches of time in memory."""
    return [TimeSpan(start=to_time(start), end=to_time(end)) for start, end in memory.spans_ns]


def to_duration(seconds: float) -> Duration:
    """Seconds -> Duration."""
    whole, nanoseconds = divmod(round(seconds * SECOND), SECOND)
    return Duration(sec=whole, nanosec=nanoseconds)


def to_question(request: Any, parameters: Settings) -> Question:
    """The question in a ``Query.Request`` or ``Ask.Goal``; what it leaves out is the node's.

    Raises InvalidParameterError or InvalidChoicesError for fields that make no sense.
    """
    if request.source not in ("", "stream"):
        raise InvalidParameterError(
            f"there is no memory {request.source!r}; leave source empty or set it to 'stream'"
        )
    if request.keep_exchange and request.choices:
        raise InvalidChoicesError(
            "an exchange with choices cannot be kept: leave out keep_exchange or choices"
        )
    about = (from_time(request.about_from), from_time(request.about_to))
    if all(about) and about[0] > about[1]:
        raise InvalidParameterError("about_from is later than about_to")
    temperature = request.temperature
    if not temperature <= 10.0:  # also refuses nan
        raise InvalidParameterError(
            f"temperature must be at most 10, got {temperature}; 0 is greedy, a negative value "
            "takes the node's parameter"
        )
    return Question(
        text=request.question,
        choices=tuple(request.choices),
        max_new_tokens=request.max_new_tokens or parameters.max_new_tokens,
        temperature=temperature if temperature >= 0 else parameters.temperature,
        keep_exchange=request.keep_exchange,
        about_ns=about if any(about) else None,
        refuse_forgotten=parameters.refuse_forgotten,
    )


def to_answer(outcome: Outcome, status: CacheStatus) -> Answer:
    """What came of a question -> message; ``status`` is that of the memory right after it."""
    question, memory, error = outcome.question, outcome.memory, outcome.error
    answer = Answer(
        question=question.text[:MAX_QUESTION],
        choices=[choice[:MAX_CHOICE] for choice in question.choices[:MAX_CHOICES]],
        text=outcome.answer,
        choice_index=outcome.choice_index,
        choice_scores=list(outcome.choice_scores),
        choice_tokens=list(outcome.choice_tokens),
        oldest_stamp=to_time(memory.oldest_ns),
        newest_stamp=to_time(memory.newest_ns),
        seen=to_spans(memory),
        waiting=to_duration(outcome.waiting),
        ttft=to_duration(outcome.ttft),
        latency=to_duration(outcome.latency),
        prompt_tokens=outcome.prompt_tokens,
        answer_tokens=outcome.answer_tokens,
        finish_reason=outcome.finish_reason,
        cache_status=status,
    )
    if error is not None:
        answer.error_code = getattr(Answer, error.code, Answer.INTERNAL)
        answer.error_message = cut(str(error))
    if memory.header is not None:
        answer.header = memory.header
    return answer


def to_fault(fault: Exception) -> Answer:
    """A fault of this package -> message, where nothing came of a question."""
    message = cut(f"internal error: {fault!r}; see the node's log")
    return Answer(error_code=Answer.INTERNAL, error_message=message)


def to_cache_status(
    memory: MemorySummary, state: str, counts: dict[str, int], saved: SavedState = NOTHING_SAVED
) -> CacheStatus:
    """Memory, lifecycle state, every count by its field's name, saved memories -> message."""
    status = CacheStatus(
        state=state,
        length=memory.length,
        cap=memory.cap,
        sink=memory.sink,
        window=memory.window,
        memory_bytes=memory.memory_bytes,
        chunks=memory.chunks,
        frames=memory.frames,
        evictions=memory.evictions,
        evicted_tokens=memory.evicted_tokens,
        closed_pauses=memory.closed_pauses,
        closed_seconds=memory.closed_seconds,
        oldest_stamp=to_time(memory.oldest_ns),
        newest_stamp=to_time(memory.newest_ns),
        levels=[
            MemoryLevel(name=level.name, frames=level.frames, tokens=level.tokens)
            for level in memory.levels
        ],
        spans=to_spans(memory),
        last_save=to_time(saved.saved_ns),
        last_save_bytes=saved.bytes,
        save_error=cut(saved.error),
        **counts,
    )
    if memory.header is not None:
        status.header = memory.header
    return status


def to_diagnostic(health: Health, node_name: str, hardware_id: str) -> DiagnosticStatus:
    """One status of /diagnostics."""
    return DiagnosticStatus(
        level=bytes([health.level]),
        name=f"{node_name}: {health.task}",
        message=cut(health.message),
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=cut(value)) for key, value in health.values.items()],
    )
