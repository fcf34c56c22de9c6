# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is told of a session, in the words of the protocol."""

from __future__ import annotations

import msgspec
import numpy as np

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit, open_picture, rgb_of
from stream_vlm_ros.errors import (
    InvalidImageError,
    MemoryFileError,
    StreamVlmError,
    cut,
)
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.session.memory_keeper import SavedState
from stream_vlm_ros.session.memory_summary import EpisodeState, MemorySummary
from stream_vlm_ros.session.question import CancelledError, Outcome, Question

_START_OF_JPEG = b"\xff\xd8\xff"


def memory_of(summary: MemorySummary) -> protocol.Memory:
    """What a memory holds."""
    return msgspec.convert(summary, protocol.Memory, from_attributes=True)


def saved_of(state: SavedState) -> protocol.Saved:
    """What is told of saved memories."""
    return msgspec.convert(state, protocol.Saved, from_attributes=True)


def fault_of(fault: BaseException, event_id: str = "") -> protocol.Fault:
    """What went wrong; of what nobody raised on purpose the log says more."""
    if isinstance(fault, StreamVlmError):
        of_file = isinstance(fault, MemoryFileError) and fault.code == StreamVlmError.code
        code = "MEMORY_FILE" if of_file else fault.code
        return protocol.Fault(code=code, message=str(fault), event_id=event_id)
    return protocol.Fault(
        code=StreamVlmError.code,
        message="internal error; see the log of the server",
        event_id=event_id,
    )


def question_of(ask: protocol.Ask) -> Question:
    """The question that was asked."""
    return Question(**{name: getattr(ask, name) for name in ask.__struct_fields__})


def response_of(response_id: str, outcome: Outcome) -> protocol.Response:
    """What came of a question."""
    error, status = outcome.error, "completed"
    if error is not None:
        status = "cancelled" if isinstance(error, CancelledError) else "failed"
    return protocol.Response(
        id=response_id,
        status=status,
        text=outcome.answer,
        error=None if error is None else fault_of(error),
        choice_index=outcome.choice_index,
        choice_scores=outcome.choice_scores,
        choice_tokens=outcome.choice_tokens,
        waiting=outcome.waiting,
        ttft=outcome.ttft,
        latency=outcome.latency,
        prompt_tokens=outcome.prompt_tokens,
        fetched_tokens=outcome.fetched_tokens,
        answer_tokens=outcome.answer_tokens,
        finish_reason=outcome.finish_reason,
        memory=memory_of(outcome.memory),
        evidence=tuple(map(episode_of, outcome.evidence)),
    )


def episode_of(episode: EpisodeState) -> protocol.Episode:
    """Evidence."""
    return protocol.Episode(
        start_ns=episode.start_ns,
        end_ns=episode.end_ns,
        score=episode.score,
        tier=episode.tier,
        stamps_ns=episode.stamps_ns,
        thumbnails=tuple(
            protocol.Thumbnail(stamp_ns=stamp, jpeg=jpeg) for stamp, jpeg in episode.thumbnails
        ),
    )


def pixels_of(frame: protocol.FrameMessage, limit: PictureLimit) -> int:
    """How many are to be decoded, by its header; 0: none, as it will be refused."""
    if frame.encoding == protocol.RAW:
        pixels = frame.width * frame.height
        return pixels if pixels <= limit.pixels else 0
    try:
        width, height = open_picture(bytes(frame.pixels), limit).size
    except InvalidImageError:
        return 0
    return width * height


def picture_of(frame: protocol.FrameMessage, limit: PictureLimit) -> np.ndarray:
    """The picture of a frame, uint8 [height, width, 3] RGB.

    Raises PictureTooLargeError before it is decoded, InvalidImageError.
    """
    if frame.encoding == protocol.RAW:
        limit.check(frame.width, frame.height)
        return np.frombuffer(frame.pixels, np.uint8).reshape(frame.height, frame.width, 3).copy()
    data = bytes(frame.pixels)
    if not data.startswith(_START_OF_JPEG):
        raise InvalidImageError(f"it is no JPEG; it begins with {cut(repr(data[:8]))}")
    return rgb_of(open_picture(data, limit))
