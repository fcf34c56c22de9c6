# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between what travels and what the node works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.history.poses import PoseTrack
from stream_vlm_ros.remote.protocol import Ask, Episode, Fault, Memory, Response
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
