# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the console shows and steers: a memory of one camera, wherever it lives."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_vlm_ros.config import Settings
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.question import Outcome, Question


@dataclass(frozen=True)
class Picture:
    """What the camera showed last, encoded once for all who look.

    Attributes:
        number: counts up; another number is another picture.
        stamp_ns: of the source.
        jpeg: as it is sent.
    """

    number: int
    stamp_ns: int
    jpeg: bytes


@dataclass(frozen=True)
class Status:
    """A memory at one moment.

    Attributes:
        memory: what it holds and where, with the spans of time of each level.
        state: "active", "inactive", "loading", "away" (the node does not answer), "ended" (the
            source has).
        words: why nothing moves, for people; "" while all is well.
        paused: pictures are dropped, questions answered.
        counters: frames by what became of them, named as in ``CacheStatus``
            (``frames_received``, ``dropped_sampling`` ...).
        lag: seconds from a frame's stamp to its being remembered; None: not known.
        model, device: what answers, and where it runs.
        used_bytes: of the device, or of this process where the device is a CPU.
        settings: the values of those settings that may be changed now, by name (see `config`).
        saved: what was last saved, or why saving failed; "".
    """

    memory: MemorySummary = field(default_factory=MemorySummary)
    state: str = "loading"
    words: str = ""
    paused: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    lag: float | None = None
    model: str = ""
    device: str = ""
    used_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    saved: str = ""


@dataclass(frozen=True)
class PastAnswer:
    """A question that was answered before, by whomever it was asked."""

    answered_ns: int
    question: str
    choices: Sequence[str]
    text: str
    error: str = ""


class LiveAnswer(ABC):
    """An answer that is being written."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[str]:
        """The text as far as it has come, each time it grows."""

    @abstractmethod
    def cancel(self) -> None:
        """End it within a token; `outcome` tells so."""

    @abstractmethod
    async def outcome(self) -> Outcome:
        """What came of it: an answer with its evidence, or an error. Never raises."""


class GrowingAnswer(LiveAnswer):
    """One whose text is handed over as it grows, in the loop that it was begun in.

    Args:
        outcome: done when the answer is complete.
    """

    def __init__(self, outcome: asyncio.Future[Outcome]) -> None:
        self._outcome = outcome
        self._text, self._moved = "", asyncio.Event()  # another with each growth

    def _grow(self, text: str) -> None:
        """It has come so far, or has ended."""
        self._text = text
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def __aiter__(self) -> AsyncIterator[str]:
        told = ""
        while True:
            moved = self._moved
            if self._text != told:
                told = self._text
                yield told
            elif self._outcome.done():
                return
            else:
                await moved.wait()

    async def outcome(self) -> Outcome:
        return await asyncio.shield(self._outcome)


class LiveMemory(ABC):
    """A memory at work. Everything is called in one event loop, and nothing waits in it.

    What orders a change returns words for people, and raises `StreamVlmError` with such words.

    Attributes:
        name: of the camera.
        examples: questions that this memory's model can answer.
    """

    name: str
    examples: Sequence[str] = ()

    @abstractmethod
    async def start(self) -> None:
        """Begin; returns at once, `status` tells how it goes on."""

    @abstractmethod
    async def close(self) -> None:
        """End, and give everything back."""

    @property
    @abstractmethod
    def status(self) -> Status:
        """As it is now."""

    @property
    @abstractmethod
    def picture(self) -> Picture | None:
        """The newest; None: none came yet."""

    @abstractmethod
    def ask(self, question: Question) -> LiveAnswer:
        """Ask; several questions may be asked at a time."""

    @abstractmethod
    async def thumbnail(self, stamp_ns: int, size: int = 320) -> bytes | None:
        """JPEG of the kept picture next to that time; None: none of that time is kept."""

    @abstractmethod
    async def past_answers(self, text: str = "", limit: int = 100) -> Sequence[PastAnswer]:
        """The newest that contain ``text``, oldest first."""

    @abstractmethod
    async def reset(self) -> str:
        """Forget everything."""

    @abstractmethod
    async def pause(self) -> str:
        """Drop pictures from now on, and go on answering."""

    @abstractmethod
    async def resume(self) -> str:
        """Take pictures again."""

    @abstractmethod
    async def save(self, name: str = "") -> str:
        """Save the memory under a name; "": one by the time."""

    @abstractmethod
    async def load(self, name: str = "") -> str:
        """Put a saved memory in the place of the present one; "": the newest."""

    @abstractmethod
    async def saved_names(self) -> Sequence[str]:
        """Of the memories that `load` takes, newest first."""

    async def check(self, **settings: Any) -> None:
        """Raise what `set` would, as far as that can be told before; nothing changes."""
        for name, value in settings.items():
            Settings.named(name).checked(value)

    @abstractmethod
    async def set(self, **settings: Any) -> str:
        """Change settings (those of `Status.settings`) while all goes on."""
