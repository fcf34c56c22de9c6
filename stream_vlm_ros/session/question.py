# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A question on its way to an answer, or to an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.session.memory_summary import EpisodeState, MemorySummary


class NotActiveError(StreamVlmError):
    """A question to a node that is not active, or ceased to be while it waited."""

    code = "NOT_ACTIVE"


class QueueFullError(StreamVlmError):
    """Too many questions are waiting already."""

    code = "QUEUE_FULL"


class CancelledError(StreamVlmError):
    """A question that was cancelled."""

    code = "CANCELLED"


class DisconnectedError(StreamVlmError):
    """There is no connection to the server that has the memory."""

    code = "DISCONNECTED"


class EngineEndedError(StreamVlmError):
    """The engine's thread has ended by a fault: nothing is taken any more."""


@dataclass(frozen=True)
class Question:
    """What was asked, with every setting decided."""

    text: str
    choices: tuple[str, ...] = ()
    max_new_tokens: int = 128
    temperature: float = 0.0  # 0: greedy
    keep_exchange: bool = False
    about_ns: tuple[int, int] | None = None  # stamps from and to; 0: no limit on that side
    refuse_forgotten: bool = True  # if nothing of that time is held; else answered anyway
    history: str = ""  # never, auto or always; "": as the engine was built
    thumbnails: int = 0  # pictures with each episode that the answer names
    earlier: tuple[tuple[str, str], ...] = ()  # questions and answers that are read as turns before
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # texts that end the answer
    seed: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a question: an answer, or an error. Times in seconds.

    ``memory`` is what the answer was read from, whatever came while it was written.
    """

    question: Question
    answer: str = ""
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    choice_tokens: tuple[int, ...] = ()
    error: StreamVlmError | None = None
    waiting: float = 0.0
    ttft: float = 0.0
    latency: float = 0.0
    prompt_tokens: int = 0
    cache_length: int = 0  # tokens of the memory that it was read from
    fetched_tokens: int = 0
    answer_tokens: int = 0
    finish_reason: str = ""
    memory: MemorySummary = field(default_factory=MemorySummary)
    evidence: tuple[EpisodeState, ...] = ()  # at most MAX_EPISODES


MAX_EPISODES = 3  # that an answer names
MAX_THUMBNAILS, THUMBNAIL_SIZE = 6, 320  # an episode; pixels of the longer side
MAX_PICTURES, MAX_PICTURE_SIZE = 16, 1280  # that may wait; pixels of the longer side
READING = "reading"
WRITING = "writing"
Progress = Callable[[str, str], None]  # (READING or WRITING, the answer so far)


@dataclass(eq=False)
class Ticket:
    """A question on its way. ``future`` is always given an :class:`Outcome`, never an exception."""

    question: Question
    progress: Progress | None = None
    future: Future[Outcome] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _why: StreamVlmError = field(
        default_factory=lambda: CancelledError("the question was cancelled")
    )

    def cancel(self, why: StreamVlmError | None = None) -> None:
        """Ask for an early end; the future still gets its outcome."""
        if why is not None and not self.cancelled:
            self._why = why
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether an early end was asked for."""
        return self._cancelled.is_set()

    @property
    def why(self) -> StreamVlmError:
        """The reason for the early end."""
        return self._why
