# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between the worker's plain values and the generated messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PoseStamped, Quaternion
from geometry_msgs.msg import Pose as PoseMessage
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from stream_vlm.msg import Answer, CacheStatus, Evidence, HistoryTier, MemoryLevel, TimeSpan

from stream_vlm_ros.config import HISTORY, Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidChoicesError, InvalidParameterError, cut
from stream_vlm_ros.node.health import Health
from stream_vlm_ros.session.memory_keeper import NOTHING_SAVED, SavedState
from stream_vlm_ros.session.memory_summary import EpisodeState, LevelState, MemorySummary, TierState
from stream_vlm_ros.session.question import MAX_THUMBNAILS, Outcome, Question

if TYPE_CHECKING:
    from stream_vlm_ros.history.poses import Pose
    from stream_vlm_ros.remote.worker import Connection

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


def to_spans(memory: MemorySummary | LevelState) -> list[TimeSpan]:
    """Unbroken stretches of time, of a memory or of one of its levels."""
    return [TimeSpan(start=to_time(start), end=to_time(end)) for start, end in memory.spans_ns]


def to_duration(seconds: float) -> Duration:
    """Seconds -> Duration."""
    whole, nanoseconds = divmod(round(seconds * SECOND), SECOND)
    return Duration(sec=whole, nanosec=nanoseconds)


def to_seconds(duration: Duration) -> float:
    """Duration -> seconds."""
    return from_time(duration) / SECOND


def latched(depth: int = 1) -> QoSProfile:
    """Of topics whose newest messages reach who comes later."""
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def sources_asked(source: str, names: Sequence[str]) -> list[str]:
    """Which of a node's cameras a request is for, in the node's order.

    Raises InvalidParameterError for a name that is none of theirs.
    """
    wanted = {one.strip() for one in source.split(",")} - {""}
    if not wanted or "*" in wanted:
        wanted |= set(names)
    elif list(names) == [""]:
        wanted = {"" if one == "stream" else one for one in wanted}
    if unknown := wanted - {*names, "*"}:
        there = f"there are {', '.join(names)}" if names[0] else "this node has only one"
        raise InvalidParameterError(
            f"there is no camera {cut(min(unknown))!r}: {there}; leave source empty to ask "
            f"{'all of them' if names[0] else 'it'}"
        )
    return [name for name in names if name in wanted]


def to_question(request: Any, parameters: Settings) -> Question:
    """The question in a ``Query.Request`` or ``Ask.Goal``; what it leaves out is the node's.

    Raises InvalidParameterError or InvalidChoicesError for fields that make no sense.
    """
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
    if request.history not in ("", *HISTORY):
        raise InvalidParameterError(
            f"history must be {', '.join(HISTORY)} or empty, got {cut(request.history)!r}"
        )
    if request.history not in ("", "never") and not parameters.may_recall:
        raise InvalidParameterError(
            "this node keeps no history: set its parameter history, before it is configured"
        )
    if request.thumbnails > MAX_THUMBNAILS:
        raise InvalidParameterError(
            f"thumbnails must be at most {MAX_THUMBNAILS} an episode, got {request.thumbnails}"
        )
    return Question(
        text=request.question,
        choices=tuple(request.choices),
        max_new_tokens=request.max_new_tokens or parameters.max_new_tokens,
        temperature=temperature if temperature >= 0 else parameters.temperature,
        keep_exchange=request.keep_exchange,
        about_ns=about if any(about) else None,
        refuse_forgotten=parameters.refuse_forgotten,
        history=request.history if parameters.may_recall else "",
        thumbnails=request.thumbnails,
    )


def to_answer(outcome: Outcome, status: CacheStatus) -> Answer:
    """What came of a question to a camera -> message; ``status`` is that of its memory right after
    it."""
    question, memory, error = outcome.question, outcome.memory, outcome.error
    answer = Answer(
        source=status.source,
        question=question.text[:MAX_QUESTION],
        choices=[choice[:MAX_CHOICE] for choice in question.choices[:MAX_CHOICES]],
        text=outcome.answer,
        choice_index=outcome.choice_index,
        choice_scores=list(outcome.choice_scores),
        choice_tokens=list(outcome.choice_tokens),
        oldest_stamp=to_time(memory.oldest_ns),
        newest_stamp=to_time(memory.newest_ns),
        seen=to_spans(memory),
        evidence=[_to_evidence(episode) for episode in outcome.evidence],
        waiting=to_duration(outcome.waiting),
        ttft=to_duration(outcome.ttft),
        latency=to_duration(outcome.latency),
        prompt_tokens=outcome.prompt_tokens,
        fetched_tokens=outcome.fetched_tokens,
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


def to_joint_answer(answers: Sequence[Answer]) -> Answer:
    """What several cameras answered, in one message; of one the same."""
    if len(answers) == 1:
        return answers[0]
    failed = [one for one in answers if one.error_code != Answer.NONE]
    newest = max(answers, key=lambda one: from_time(one.newest_stamp))
    endings = {one.finish_reason for one in answers}
    joint = Answer(
        question=answers[0].question,
        choices=answers[0].choices,
        text=named_texts([(one.source, one.text) for one in answers]),
        error_code=failed[0].error_code if failed else Answer.NONE,
        error_message=cut("; ".join(f"{one.source}: {one.error_message}" for one in failed)),
        source=",".join(one.source for one in answers),
        header=newest.header,
        newest_stamp=newest.newest_stamp,
        finish_reason=endings.pop() if len(endings) == 1 else "",
        cache_status=CacheStatus(state=newest.cache_status.state),
    )
    if held := [one.oldest_stamp for one in answers if from_time(one.oldest_stamp)]:
        joint.oldest_stamp = min(held, key=from_time)
    for cost in ("waiting", "ttft", "latency"):
        setattr(joint, cost, max((getattr(one, cost) for one in answers), key=from_time))
    for tokens in ("prompt_tokens", "fetched_tokens", "answer_tokens"):
        setattr(joint, tokens, sum(getattr(one, tokens) for one in answers))
    return joint


def named_texts(texts: Iterable[tuple[str, str]]) -> str:
    """What several cameras answered, each behind its name on a line of its own."""
    return "\n".join(f"{name}: {text}" for name, text in texts if text)


def _to_evidence(episode: EpisodeState) -> Evidence:
    return Evidence(
        span=TimeSpan(start=to_time(episode.start_ns), end=to_time(episode.end_ns)),
        score=episode.score,
        tier=episode.tier,
        stamps=[to_time(stamp_ns) for stamp_ns in episode.stamps_ns],
        thumbnails=[
            CompressedImage(header=to_header(stamp_ns, ""), format="jpeg", data=data)
            for stamp_ns, data in episode.thumbnails
        ],
        poses=[_to_pose(pose) for pose in episode.poses],
    )


def _to_pose(pose: Pose) -> PoseStamped:
    (x, y, z), (qx, qy, qz, qw) = pose.position, pose.orientation
    return PoseStamped(
        header=to_header(pose.stamp_ns, pose.frame_id),
        pose=PoseMessage(
            position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw)
        ),
    )


def _to_tier(tier: TierState) -> HistoryTier:
    return HistoryTier(
        name=tier.name,
        grids=tier.grids,
        frames=tier.frames,
        bytes=tier.bytes,
        max_bytes=tier.max_bytes,
        where=cut(tier.where),
        oldest=to_time(tier.oldest_ns),
        newest=to_time(tier.newest_ns),
        left_out=tier.left_out,
    )


def to_fault(fault: Exception) -> Answer:
    """A fault of this package -> message, where nothing came of a question."""
    message = cut(f"internal error: {fault!r}; see the node's log")
    return Answer(error_code=Answer.INTERNAL, error_message=message)


def to_cache_status(
    memory: MemorySummary,
    state: str,
    counts: dict[str, int],
    saved: SavedState = NOTHING_SAVED,
    *,
    paused: bool = False,
    source: str = "",
    connection: Connection | None = None,
) -> CacheStatus:
    """Memory, lifecycle state, every count by its field's name, saved memories -> message.

    Args:
        source: the camera's name; "": the node's only one.
        connection: to the server that has the memory; None: it is the node's.
    """
    status = CacheStatus(
        source=source,
        state=state,
        paused=paused,
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
            MemoryLevel(
                name=level.name, frames=level.frames, tokens=level.tokens, spans=to_spans(level)
            )
            for level in memory.levels
        ],
        tiers=[_to_tier(tier) for tier in memory.tiers],
        spans=to_spans(memory),
        last_save=to_time(saved.saved_ns),
        last_save_bytes=saved.bytes,
        save_error=cut(saved.error),
        **counts,
    )
    if memory.header is not None:
        status.header = memory.header
    if connection is not None:
        status.disconnected_since = to_time(connection.lost_ns)
        status.connection_error = cut(connection.why)
        status.gap = cut(connection.gap)
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
