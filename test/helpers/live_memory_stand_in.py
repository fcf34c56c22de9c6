# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A LiveMemory without a model: a drawn camera, and answers that a test knows."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from PIL import Image, ImageDraw

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, OutOfHorizonError, StreamVlmError
from stream_vlm_ros.session.memory_summary import EpisodeState, LevelState, MemorySummary, TierState
from stream_vlm_ros.session.question import CancelledError, Outcome, Question
from stream_vlm_ros.web.live_memory import (
    LiveAnswer,
    LiveMemory,
    PastAnswer,
    Picture,
    Status,
)

SECOND = 10**9
ANSWER = "A red ball lies on the table."


def drawn(stamp_ns: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A picture whose look says its second."""
    picture = Image.new("RGB", size, (236, 233, 226))
    pen = ImageDraw.Draw(picture)
    width, height = size
    pen.rectangle((0, height * 2 // 3, width, height), fill=(190, 165, 130))
    x = round((stamp_ns / SECOND * 23) % width)
    pen.ellipse((x - 20, height // 2 - 10, x + 20, height // 2 + 30), fill=(196, 58, 46))
    pen.text((8, 6), f"{stamp_ns / SECOND:.1f} s", fill=(60, 60, 60))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return data.getvalue()


class StandInAnswer(LiveAnswer):
    """Writes a word at a time, until it is cancelled."""

    def __init__(self, memory: LiveMemoryStandIn, question: Question) -> None:
        self._memory, self._question = memory, question
        self._cancelled = False
        self._text, self._grown = "", asyncio.Event()
        self._task = asyncio.create_task(self._write())
        self._task.add_done_callback(lambda task: memory.outcomes.append(task.result()))

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts()

    async def _texts(self) -> AsyncIterator[str]:
        told = ""
        while not (self._task.done() and told == self._text):
            if told != self._text:
                told = self._text
                yield told
            else:
                self._grown.clear()
                await asyncio.wait(
                    (self._task, asyncio.ensure_future(self._grown.wait())),
                    return_when=asyncio.FIRST_COMPLETED,
                )

    def cancel(self) -> None:
        self._cancelled = True

    async def outcome(self) -> Outcome:
        return await asyncio.shield(self._task)

    async def _pause(self) -> None:
        """Between two words; the memory's pace may change meanwhile."""
        begin = time.monotonic()
        await asyncio.sleep(0)
        while not self._cancelled and time.monotonic() - begin < self._memory.pace:
            await asyncio.sleep(0.02)

    async def _write(self) -> Outcome:
        memory, question = self._memory, self._question
        summary = memory.status.memory
        about = question.about_ns
        if about and memory.forgotten_ns[0] < about[0] and about[1] < memory.forgotten_ns[1]:
            words = OutOfHorizonError("nothing of that time is remembered")
            return Outcome(question, error=words, memory=summary)
        if question.choices:
            await asyncio.sleep(memory.pace)
            scores = tuple(math.log(0.7 if i == 1 else 0.3) for i in range(len(question.choices)))
            return Outcome(
                question,
                question.choices[1],
                choice_index=1,
                choice_scores=scores,
                ttft=0.05,
                latency=0.06,
                memory=summary,
            )
        for word in memory.answer.split(" "):
            if self._text:
                await self._pause()
            if self._cancelled:
                words = CancelledError("the question was cancelled")
                return Outcome(question, self._text, error=words, memory=summary)
            self._text = f"{self._text} {word}".strip()
            self._grown.set()
        evidence = (
            EpisodeState(
                start_ns=memory.seen_ns - 8 * SECOND,
                end_ns=memory.seen_ns - 6 * SECOND,
                score=0.83,
                tier="window",
                stamps_ns=(memory.seen_ns - 8 * SECOND, memory.seen_ns - 6 * SECOND),
                thumbnails=tuple(
                    (stamp, drawn(stamp))
                    for i in range(question.thumbnails)
                    for stamp in [memory.seen_ns - 8 * SECOND + i * SECOND // 2]
                ),
            ),
        )
        memory.past.append(PastAnswer(time.time_ns(), question.text, (), self._text))
        return Outcome(
            question,
            self._text,
            ttft=0.21,
            latency=0.9,
            answer_tokens=8,
            finish_reason="stop",
            memory=summary,
            evidence=evidence,
        )


class LiveMemoryStandIn(LiveMemory):
    """Its fields are what a test changes."""

    def __init__(self, name: str = "kitchen", *, size: tuple[int, int] = (320, 240)) -> None:
        self.name = name
        self.examples = ("What is on the table?", "Which color is the ball?")
        self.size = size
        self.begin()

    def begin(self) -> None:
        """As at first."""
        self.answer, self.pace = ANSWER, 0.05
        self.state, self.words, self.paused = "active", "", False
        self.asked: list[Question] = []
        self.outcomes: list[Outcome] = []
        self.past: list[PastAnswer] = []
        self.saved: dict[str, int] = {}
        self.told = ""
        self.settings = {"sample_fps": 2.0, "max_pixels": 401_408, "max_cache_tokens": 16_384}
        self.seen_ns = 120 * SECOND
        self.forgotten_ns = (20 * SECOND, 40 * SECOND)
        self.counters = {"frames_received": 1000, "frames_ingested": 240, "dropped_sampling": 760}
        self.pictures = 0
        self._picture: Picture | None = None
        self.started = self.closed = False

    def wait_until_answered(self, seconds: float) -> None:
        """In a test's thread: until every question has its outcome."""
        end = time.monotonic() + seconds
        while len(self.outcomes) < len(self.asked):
            assert time.monotonic() < end, "a question has no outcome"
            time.sleep(0.02)

    async def start(self) -> None:
        self.started = True
        self._moving = asyncio.create_task(self._move())

    async def _move(self) -> None:
        while True:
            if self.state == "active":
                self.pictures += 1
                if not self.paused:
                    self.seen_ns += SECOND // 10
                self._picture = Picture(self.pictures, self.seen_ns, drawn(self.seen_ns, self.size))
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        self.closed = True
        self._moving.cancel()

    @property
    def status(self) -> Status:
        now = self.seen_ns
        levels, tiers = self._held(now)
        memory = MemorySummary(
            length=sum(level.tokens for level in levels),
            cap=16_384,
            sink=256,
            window=4_000,
            memory_bytes=48 << 20,
            chunks=120,
            frames=sum(level.frames for level in levels),
            evictions=31,
            evicted_tokens=9_400,
            oldest_ns=0 if levels[0].frames else None,
            newest_ns=now if levels[0].frames else None,
            levels=levels,
            tiers=tiers,
        )
        return Status(
            memory=memory,
            state=self.state,
            words=self.words,
            paused=self.paused,
            counters=dict(self.counters),
            lag=0.12,
            model="small world model",
            device="cpu",
            used_bytes=612 << 20,
            settings=dict(self.settings),
            saved=self.told,
        )

    def _held(self, now: int) -> tuple[tuple[LevelState, ...], tuple[TierState, ...]]:
        if now <= 0:
            return MemorySummary().levels, ()
        grids = tuple((s * SECOND, s * SECOND + SECOND // 2) for s in (8, 12, 46, 55, 64, 78, 85))
        levels = (
            LevelState("sink", 4, 256, ((0, 2 * SECOND),)),
            LevelState(
                "sampled", 10, 640, ((12 * SECOND, 13 * SECOND), (55 * SECOND, 57 * SECOND))
            ),
            LevelState("important", 20, 1_280, grids[1::2]),
            LevelState("window", 60, 3_840, ((now - 30 * SECOND, now),)),
        )
        tier = TierState(
            "disk", 300, 600, 9 << 20, 1 << 30, "/data/frames", self.forgotten_ns[1], now
        )
        return levels, (tier,)

    @property
    def picture(self) -> Picture | None:
        return self._picture

    def ask(self, question: Question) -> LiveAnswer:
        self.asked.append(question)
        return StandInAnswer(self, question)

    async def thumbnail(self, stamp_ns: int, size: int = 320) -> bytes | None:
        if self.forgotten_ns[0] < stamp_ns < self.forgotten_ns[1]:
            return None
        return drawn(stamp_ns)

    async def past_answers(self, text: str = "", limit: int = 100) -> Sequence[PastAnswer]:
        found = [one for one in self.past if text.lower() in f"{one.question} {one.text}".lower()]
        return found[-limit:]

    async def reset(self) -> str:
        self.seen_ns = 0
        return "the memory is empty"

    async def pause(self) -> str:
        self.paused = True
        return "paused"

    async def resume(self) -> str:
        self.paused = False
        return "going on"

    async def save(self, name: str = "") -> str:
        self.saved[name or "memory"] = self.seen_ns
        return f"saved as {name or 'memory'}"

    async def load(self, name: str = "") -> str:
        name = name or next(reversed(self.saved), "")
        if name not in self.saved:
            raise StreamVlmError(f"there is no memory {name!r}")
        self.seen_ns = self.saved[name]
        return f"loaded {name}"

    async def saved_names(self) -> Sequence[str]:
        return list(reversed(self.saved))

    async def set(self, **settings: Any) -> str:
        for name, value in settings.items():
            if name not in self.settings:
                raise InvalidParameterError(f"{name} cannot change now")
            self.settings[name] = Settings.named(name).checked(value)
        return "changed"
