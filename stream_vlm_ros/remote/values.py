# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between what travels and what the node works with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from stream_vlm_ros.engine.inputs.stamp_check import check_stamp
from stream_vlm_ros.errors import InvalidTimestampError, StreamVlmError
from stream_vlm_ros.history.poses import PoseTrack
from stream_vlm_ros.remote.protocol import (
    Ask,
    Episode,
    Fault,
    Memory,
    ProtocolError,
    Response,
    Session,
)
from stream_vlm_ros.session.memory_summary import (
    EpisodeState,
    LevelState,
    MemorySummary,
    TierState,
)
from stream_vlm_ros.session.question import Outcome, Question


class RemoteError(StreamVlmError):
    """What the server refused or failed at, with its code and in its words."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message or f"the server says no more than {fault.code}")
        self.code = "NOT_ACTIVE" if fault.code == "ENDING" else fault.code


# Counts of 64 bits in the node's messages, and sequences, which are in none; the others have 32.
_LARGE = frozenset({
    "accepted_sequence", "bytes", "chunks", "closed_pauses", "evicted_tokens", "evictions", "first",
    "frames", "last", "max_bytes", "memory_bytes",
})  # fmt: skip


def check_values(name: str, value: Any) -> None:
    """Raise ProtocolError for what a server tells and no message of the node's can hold."""
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            check_values(field, getattr(value, field))
        if isinstance(value, Session) and not (value.factor and value.max_pixels > 1):
            raise ProtocolError("the server tells no size of pictures")
    elif isinstance(value, tuple):
        for one in value:
            check_values(name, one)
    elif name.endswith("_ns") and value is not None:
        try:
            check_stamp(value)
        except InvalidTimestampError as fault:
            raise ProtocolError(f"the server's {name} is none: {fault}") from None
    elif isinstance(value, int | float):
        least, most = 0.0, 2**63 if name in _LARGE else 2**32
        if name == "choice_index":  # -1: none
            least, most = -1, 2**31
        elif isinstance(value, float):
            least, most = -math.inf, 2**31
        if not least <= value < most:
            raise ProtocolError(f"the server's {name} is {value:g}")


def to_ask(question: Question) -> Ask:
    """A question on its way out: what a node may ask."""
    return msgspec.convert(question, Ask, from_attributes=True)


def to_summary(told: Memory, header_of: Callable[[int], Any]) -> MemorySummary:
    """A memory as the server tells it.

    Args:
        header_of: the header of the frame of a stamp.
    """
    values = msgspec.structs.asdict(told)
    values["tiers"] = tuple(TierState(**msgspec.structs.asdict(tier)) for tier in told.tiers)
    if told.levels:
        levels = (LevelState(**msgspec.structs.asdict(level)) for level in told.levels)
        values["levels"] = tuple(levels)
    else:
        del values["levels"]
    header = None if told.newest_ns is None else header_of(told.newest_ns)
    return MemorySummary(**values, header=header)


def to_outcome(
    question: Question,
    told: Response,
    error: StreamVlmError | None,
    memory: MemorySummary,
    waiting: float,
    poses: PoseTrack | None,
) -> Outcome:
    """What came of a question."""
    values = msgspec.structs.asdict(told)
    for name in ("id", "status", "text", "error", "waiting", "memory", "evidence"):
        del values[name]
    return Outcome(
        question,
        told.text,
        error=error,
        waiting=waiting,
        memory=memory,
        evidence=tuple(_to_episode(episode, poses) for episode in told.evidence),
        **values,
    )


def _to_episode(told: Episode, poses: PoseTrack | None) -> EpisodeState:
    known = [] if poses is None else [poses.at(stamp_ns) for stamp_ns in told.stamps_ns]
    return EpisodeState(
        told.start_ns,
        told.end_ns,
        told.score,
        told.tier,
        told.stamps_ns,
        tuple((one.stamp_ns, one.jpeg) for one in told.thumbnails),
        tuple(pose for pose in known if pose is not None),
    )
