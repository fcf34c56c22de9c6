# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`OverNode`: the memory of a node that runs, watched and asked over ROS."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from stream_vlm.msg import CacheStatus

from stream_vlm_ros.client.answer_stream import AnswerStream
from stream_vlm_ros.client.camera import Camera
from stream_vlm_ros.client.errors import AskError, NodeUnavailableError
from stream_vlm_ros.client.messages import nanoseconds
from stream_vlm_ros.client.node_client import counts_of
from stream_vlm_ros.client.plain_values import to_memory, to_outcome
from stream_vlm_ros.client.stream_vlm_client import StreamVlmClient
from stream_vlm_ros.config import ALL_CAMERAS, NODE, Settings
from stream_vlm_ros.console import bytes_text
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidImageError, MemoryFileError, StreamVlmError
from stream_vlm_ros.factory import card_of
from stream_vlm_ros.model_card import ModelCard
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.question import CancelledError, Outcome, Question
from stream_vlm_ros.setting import ALWAYS
from stream_vlm_ros.web.examples import examples_for
from stream_vlm_ros.web.live_memory import (
    GrowingAnswer,
    LiveAnswer,
    LiveMemory,
    PastAnswer,
    Picture,
    Status,
)
from stream_vlm_ros.web.pictures import A_SECOND, as_jpeg

log = logging.getLogger(__name__)

PATIENCE = 10.0  # s for a reply of the node
FIRST_LOOK, LONGEST_LOOK = 4.0, 60.0  # s to wait for the node, before it is looked for afresh
STEP = 1.0  # s between two looks whether it is there
LOOKED_AT = 3.0  # s after a look at the picture, until the camera is left alone
SILENT = 10.0  # s without a word of the node's
LONGEST_LAG = 300.0  # s: stamps farther from the clock are of another one
NEAR = 2.0  # s, or two samples: a picture that is shown for a time is at most so far from it
MEMORY, INPUT, SAVED = "model and memory", "image input", "saved memory"  # of /diagnostics
OK = DiagnosticStatus.OK
NOT_OF_ONE = (*ALL_CAMERAS, "use_sim_time")  # parameters that no camera has for itself
STATES = {"active": "active", "configuring": "loading"}  # of a node; of all others "inactive"


class OverNode(LiveMemory):
    """Looks for the node until it is there, and again where it went away.

    Args:
        node: its full name; "": the only one there is.
        source: which of its cameras; "": the only one, or the first.
    """

    def __init__(self, node: str = "", source: str = "") -> None:
        self._wish = self._source = source
        self._node = f"/{node.strip('/')}" if node else ""
        self.name = source or self._node or "the node"
        self._small = card_of(Settings())  # of the package; of another, a node tells the name alone
        self._client: StreamVlmClient | None = None  # while the node is there
        self._why_away = f"looking for {self._node or 'the node'}"
        self._life: asyncio.Task[None] | None = None
        self._forget()
        self._memory = MemorySummary()
        self._picture: Picture | None = None
        self._looked_at = -LOOKED_AT

    def _forget(self) -> None:
        """What was heard of the node before; but for its memory, which is shown on."""
        self._state, self._heard_at = "", time.monotonic()
        self._paused, self._save_error = False, ""
        self._counters: dict[str, int] = {}
        self._lag: float | None = None
        self._health: dict[str, Any] = {}  # diagnostic_msgs/DiagnosticStatus, by task
        self._parameters: dict[str, Any] = {}

    # -- its life ----------------------------------------------------------------------------

    async def start(self) -> None:
        self._life = asyncio.ensure_future(self._live())

    async def close(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})

    async def _live(self) -> None:
        patience = FIRST_LOOK
        while True:
            try:
                async with StreamVlmClient(self._node, patience=patience) as client:
                    client.patience, patience = PATIENCE, FIRST_LOOK
                    await self._attend(client)
            except Exception as fault:
                self._tell_away(fault)
                patience = min(2 * patience, LONGEST_LOOK)
            await asyncio.sleep(STEP)

    def _tell_away(self, fault: BaseException) -> None:
        words = str(_as_ours(fault))
        if words != self._why_away:
            log.warning("%s is away: %s", self.name, words)
        self._why_away = words

    async def _attend(self, client: StreamVlmClient) -> None:
        """Follow the node for as long as it is there; raises NodeUnavailableError then."""
        self._node = client.name  # and no other, should that one come meanwhile
        await self._check(client)
        cameras = await client.cameras()
        if self._wish and self._wish not in cameras:
            raise NodeUnavailableError(f"the node {client.name} has no camera {self._wish!r}")
        self._source = self._wish or next(iter(cameras), "")
        self.name = self._source or client.name
        tasks = [
            asyncio.ensure_future(one)
            for one in (self._hear(client), self._look(client), self._watch_camera(client))
        ]
        self._forget()
        self._client = client
        try:
            for one in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
                if (fault := one.exception()) is not None:
                    self._tell_away(fault)
                    raise fault
        finally:
            self._client = None
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, client: StreamVlmClient) -> None:
        if not await client.is_there():
            raise NodeUnavailableError(f"the node {client.name} has ended; it may be restarting")

    async def _look(self, client: StreamVlmClient) -> None:
        """Whether it is there, alone, and replies; and how it is set, whoever set it."""
        rows = Settings.table().values()
        names = [row.name for row in rows if row.change == ALWAYS and NODE in row.takers]
        while True:
            try:
                self._parameters = await self._values(
                    client, *names, "engine", "history", "use_sim_time"
                )
            except NodeUnavailableError:
                if time.monotonic() - self._heard_at > SILENT:  # else it is busy
                    raise
            for _ in range(3):
                await asyncio.sleep(STEP)
                await self._check(client)

    async def _values(self, client: StreamVlmClient, *names: str) -> dict[str, Any]:
        """Of parameters: what holds for this camera."""
        own = {name: self._own(name) for name in names}
        values = await client.get(*own.values())
        return {name: values[full] for name, full in own.items()}

    def _own(self, name: str) -> str:
        """The parameter that holds for this camera."""
        alone = self._source and name not in NOT_OF_ONE
        return f"{self._source}.{name}" if alone else name

    async def _hear(self, client: StreamVlmClient) -> None:
        """What the node says of itself."""
        async for event in client.watch():
            self._heard_at = time.monotonic()
            if isinstance(event, CacheStatus) and event.source == self._source:
                self._take_status(event)
            elif isinstance(event, DiagnosticStatus):
                self._take_health(event)

    def _take_status(self, status: CacheStatus) -> None:
        before, self._memory = self._memory.newest_ns, to_memory(status)
        self._state, self._paused, self._save_error = status.state, status.paused, status.save_error
        self._counters = counts_of(status)
        newest = self._memory.newest_ns
        if newest is not None and newest != before:
            lag = (time.time_ns() - newest) / SECOND
            simulated = self._parameters.get("use_sim_time", True)
            self._lag = lag if 0 <= lag < LONGEST_LAG and not simulated else None

    def _take_health(self, status: DiagnosticStatus) -> None:
        *camera, task = status.name.split(": ")[1:]
        if "".join(camera) not in ("", self._source):
            return
        self._health[task] = status
        if task == MEMORY:
            self._state = self._value(MEMORY, "state")
            model = self._value(MEMORY, "model")
            self.examples = examples_for(
                self._small if str(self._small) == model else ModelCard(model)
            )
            if self._state not in ("active", "inactive"):  # the model is not there
                self._memory = MemorySummary()

    def _value(self, task: str, key: str) -> str:
        """Of what the node said of a task last; "": nothing."""
        told = getattr(self._health.get(task), "values", ())
        return next((one.value for one in told if one.key == key), "")

    async def _watch_camera(self, client: StreamVlmClient) -> None:
        """Show the node's own images, and only while somebody looks."""
        camera = Camera(client.ros)
        steps = 0
        while True:
            if steps % 5 == 0:
                looked = time.monotonic() - self._looked_at < LOOKED_AT
                topic = self._value(INPUT, "topic") if looked else ""
                await camera.follow(topic, self._value(INPUT, "qos") == "reliable")
            if camera.has_new:
                with suppress(InvalidImageError):  # the node counts it, and says why
                    await self._show(camera)
            steps += 1
            await asyncio.sleep(1 / A_SECOND)

    async def _show(self, camera: Camera) -> None:
        def encoded() -> tuple[int, bytes] | None:
            taken = camera.take()
            return None if taken is None else (taken[0], as_jpeg(taken[1]))

        if (shown := await asyncio.to_thread(encoded)) is not None:
            number = self._picture.number + 1 if self._picture is not None else 1
            self._picture = Picture(number, *shown)

    # -- what is told ------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        state, words = self._state_and_words()
        saved = self._value(SAVED, "last_save_file").removesuffix(".safetensors")
        if saved:
            saved += f" ({bytes_text(int(self._value(SAVED, 'last_save_bytes') or 0))})"
        return Status(
            memory=self._memory,
            state=state,
            words=words,
            paused=self._paused,
            counters=self._counters,
            lag=self._lag,
            model=self._value(MEMORY, "model"),
            device=self._value(MEMORY, "device"),
            used_bytes=round(1e6 * float(self._value(MEMORY, "used_memory_mb") or 0)),
            settings=self._settings,
            saved=self._save_error or saved,
        )

    def _state_and_words(self) -> tuple[str, str]:
        if self._client is None:
            return "away", self._why_away
        silent = time.monotonic() - self._heard_at
        if silent > SILENT:
            return "away", f"the node {self.name} has said nothing for {silent:.0f} s"
        if not self._state:
            return "loading", f"the node {self.name} is there; it has said nothing yet"
        state = STATES.get(self._state, "inactive")
        if state == "loading":
            return state, "the model is being loaded"
        tasks = (MEMORY,) if self._paused or state != "active" else (MEMORY, INPUT)
        told = [one for task in tasks if (one := self._health.get(task)) and one.level != OK]
        words = "; ".join(one.message for one in told)
        if not words and state != "active":
            words = f"the node is {self._state}"
        return state, words

    @property
    def _settings(self) -> dict[str, Any]:
        delayed = self._parameters.get("engine") == "delayed_batch"
        left_out = {"engine", "history", "use_sim_time"}
        left_out.add("max_pixels" if delayed else "sampled_max_pixels")
        return {name: one for name, one in self._parameters.items() if name not in left_out}

    @property
    def picture(self) -> Picture | None:
        self._looked_at = time.monotonic()
        return self._picture

    @property
    def source(self) -> str:
        """Which camera of the node; "": the only one."""
        return self._source

    # -- what is asked -----------------------------------------------------------------------

    def client(self) -> StreamVlmClient:
        """Of the node. Raises NodeUnavailableError while it is away."""
        if self._client is None:
            raise NodeUnavailableError(self._why_away)
        return self._client

    @contextmanager
    def ordering(self) -> Iterator[StreamVlmClient]:
        """The client of the node, for an order or a question. Raises NodeUnavailableError where the
        node is away, or goes meanwhile, with why that is."""
        client = self.client()
        try:
            yield client
        except NodeUnavailableError:
            self.client()  # raises, where it went: the client's own words are that it was closed
            raise

    def ask(self, question: Question) -> LiveAnswer:
        if self._parameters.get("history") == "never":
            question = replace(question, history="")
        return _Asked(self, question)

    async def thumbnail(self, stamp_ns: int, size: int = 320) -> bytes | None:
        rate = self._parameters.get("sample_fps") or 1.0
        within = round(max(NEAR, 2 / rate) * SECOND)
        try:
            with self.ordering() as client:
                found = await client.picture(stamp_ns, within, size, self._source)
        except StreamVlmError as why:
            log.info("no picture: %s", why)
            return None
        return None if found is None else found[1]

    async def past_answers(self, text: str = "", limit: int = 100) -> Sequence[PastAnswer]:
        with self.ordering() as client:
            found = await client.past_answers(text=text, limit=limit)
        return [
            PastAnswer(
                nanoseconds(one.answered),
                one.answer.question,
                tuple(one.answer.choices),
                one.answer.text,
                one.answer.error_message,
            )
            for one in found
            if one.answer.source in ("", self._source)
        ]

    # -- what is ordered ---------------------------------------------------------------------

    async def reset(self) -> str:
        with self.ordering() as client:
            return await client.reset(self._source)

    async def pause(self) -> str:
        with self.ordering() as client:
            return await client.pause(self._source)

    async def resume(self) -> str:
        with self.ordering() as client:
            return await client.resume(self._source)

    async def save(self, name: str = "") -> str:
        name = name or time.strftime("%Y-%m-%d_%H-%M-%S")
        with self.ordering() as client:
            return await client.save(name, self._source)

    async def load(self, name: str = "") -> str:
        if not name and not (name := next(iter(await self.saved_names()), "")):
            raise MemoryFileError("no memory is saved yet in the node's folder")
        with self.ordering() as client:
            return await client.load(name, self._source)

    async def saved_names(self) -> Sequence[str]:
        with self.ordering() as client:
            return await client.saved_memories(self._source)

    async def set(self, **settings: Any) -> str:
        before = self._settings
        with self.ordering() as client:
            await client.set(**{self._own(name): one for name, one in settings.items()})
            self._parameters |= await self._values(client, *settings)
        changes = [
            f"{name}: {before.get(name)} -> {now}"
            for name in settings
            if (now := self._parameters[name]) != before.get(name)
        ]
        return "; ".join(changes) or "nothing has changed"


class _Asked(GrowingAnswer):
    """A question to the node, and its answer as it comes."""

    def __init__(self, node: OverNode, question: Question) -> None:
        task = asyncio.ensure_future(self._pursue())
        super().__init__(task)
        self._node, self._question = node, question
        self._cancelled = False
        self._stream: AnswerStream | None = None
        self._cancelling: asyncio.Task[None] | None = None
        task.add_done_callback(lambda _: self._grow(self._text))

    def cancel(self) -> None:
        self._cancelled = True
        if self._stream is not None and self._cancelling is None:
            self._cancelling = asyncio.ensure_future(self._cancel(self._stream))

    async def _cancel(self, stream: AnswerStream) -> None:
        with suppress(StreamVlmError):  # told by the answer
            await stream.cancel()

    async def _pursue(self) -> Outcome:
        question = self._question
        try:
            if self._cancelled:  # before it was sent
                raise CancelledError("the question was cancelled")
            return await self._answered(question)
        except AskError as refusal:
            return to_outcome(refusal.answer, question)
        except Exception as fault:
            memory = self._node.status.memory
            return Outcome(question, answer=self._text, error=_as_ours(fault), memory=memory)

    async def _answered(self, question: Question) -> Outcome:
        with self._node.ordering() as client:
            return await self._answered_by(client, question)

    async def _answered_by(self, client: StreamVlmClient, question: Question) -> Outcome:
        stream = client.stream(
            question.text,
            question.choices,
            about_ns=question.about_ns,
            source=self._node.source,
            max_new_tokens=question.max_new_tokens,
            temperature=question.temperature,
            keep_exchange=question.keep_exchange,
            history=question.history,
            thumbnails=question.thumbnails,
        )
        async with stream:
            self._stream = stream
            if self._cancelled:
                self.cancel()
            async for _ in stream:
                self._grow(stream.text)
            outcome = to_outcome(await stream.answer(), question)
        self._grow(outcome.answer)
        return outcome


def _as_ours(fault: BaseException) -> StreamVlmError:
    """An error in words for people; what is a fault of this package is logged."""
    if isinstance(fault, StreamVlmError):
        return fault
    log.error("internal error", exc_info=fault)
    return StreamVlmError(f"internal error: {fault!r}")
