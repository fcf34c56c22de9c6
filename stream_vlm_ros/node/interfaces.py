"""Between the worker's plain values and the generated messages."""

from __future__ import annotations

from typing import Any, TypeVar

from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from stream_vlm.msg import Answer, CacheStatus, MemoryLevel

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidChoicesError, InvalidParameterError
from stream_vlm_ros.node.health import Health
from stream_vlm_ros.node.sampling import SECOND
from stream_vlm_ros.node.worker import MemoryState, Outcome, Question

Result = TypeVar("Result")  # Answer, Query.Response or Ask.Result: they share their fields


def from_time(stamp: Any) -> int:
    """Time -> nanoseconds."""
    nanoseconds: int = stamp.sec * SECOND + stamp.nanosec
    return nanoseconds


def to_time(stamp: int | None) -> Time:
    """Nanoseconds -> Time; None (an empty memory) -> zero."""
    seconds, nanoseconds = divmod(stamp or 0, SECOND)
    return Time(sec=seconds, nanosec=nanoseconds)


def to_spans(memory: MemoryState) -> tuple[list[Time], list[Time]]:
    """Beginnings and ends of the unbroken stretches of time in memory."""
    starts, ends = zip(*memory.spans_ns, strict=True) if memory.spans_ns else ((), ())
    return [to_time(start) for start in starts], [to_time(end) for end in ends]


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
        raise InvalidChoicesError("a choice cannot be kept: leave keep_exchange or choices out")
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


def fill_result(result: Result, outcome: Outcome, status: CacheStatus) -> Result:
    """Write an outcome into one of the three messages that carry it."""
    out: Any = result
    out.answer = outcome.answer
    out.choice_index = outcome.choice_index
    out.choice_scores = list(outcome.choice_scores)
    if outcome.error is not None:
        out.error_code = getattr(Answer, outcome.error.code, Answer.INTERNAL)
        out.error_message = str(outcome.error)
    if outcome.memory.header is not None:
        out.header = outcome.memory.header
    out.oldest_stamp = to_time(outcome.memory.oldest_ns)
    out.newest_stamp = to_time(outcome.memory.newest_ns)
    out.seen_from, out.seen_to = to_spans(outcome.memory)
    out.waiting = to_duration(outcome.waiting)
    out.ttft = to_duration(outcome.ttft)
    out.latency = to_duration(outcome.latency)
    out.prompt_tokens = outcome.prompt_tokens
    out.answer_tokens = outcome.answer_tokens
    out.finish_reason = outcome.finish_reason
    out.cache_status = status
    return result


def fill_fault(result: Result, fault: Exception) -> Result:
    """Write a fault of this package into one of the three messages, where there is no outcome."""
    out: Any = result
    out.choice_index = -1
    out.error_code = Answer.INTERNAL
    out.error_message = f"the node failed inside: {fault!r}; see its log"
    return result


def to_cache_status(memory: MemoryState, state: str, counts: dict[str, int]) -> CacheStatus:
    """Memory, lifecycle state and every count by its field's name -> message."""
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
        oldest_stamp=to_time(memory.oldest_ns),
        newest_stamp=to_time(memory.newest_ns),
        levels=[
            MemoryLevel(name=level.name, frames=level.frames, tokens=level.tokens)
            for level in memory.levels
        ],
        **counts,
    )
    status.span_from, status.span_to = to_spans(memory)
    if memory.header is not None:
        status.header = memory.header
    return status


def to_diagnostic(health: Health, node_name: str, hardware_id: str) -> DiagnosticStatus:
    """One status of /diagnostics."""
    return DiagnosticStatus(
        level=bytes([health.level]),
        name=f"{node_name}: {health.task}",
        message=health.message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in health.values.items()],
    )
