# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Memories in a process of their own: neither the page nor who looks at it takes time from the
engine, and the page is there while its libraries load.

Who looks at nothing costs nothing: what goes between the two processes is asked for. Pictures lie
in memory that both share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.session.question import Outcome, Question
from stream_vlm_ros.web.in_process import TICK, InProcessMemory, described
from stream_vlm_ros.web.live_memory import (
    GrowingAnswer,
    LiveAnswer,
    LiveMemory,
    PastAnswer,
    Picture,
    Status,
)
from stream_vlm_ros.web.pictures import A_SECOND, LONGEST, Pictures, as_jpeg, reduced

Answered = Callable[[Any], None]
LOOK = 0.9  # s between two looks at a status
LOOKED_AT = 1.0  # s after a look at a picture, until no more are laid ready
END_TIMEOUT = 6.0  # s
PROGRAM = f"import sys; from {__name__} import main; main(*sys.argv[1:])"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Camera:
    """What an `InProcessMemory` is made of."""

    source: str
    settings: Settings
    options: Mapping[str, Any] = field(default_factory=dict)
    looped: bool = False

    def remembered(self, pictures: Pictures | None = None) -> InProcessMemory:
        """Its memory, in this process."""
        return InProcessMemory(
            self.source,
            self.settings,
            options=self.options,
            looped=self.looped,
            pictures=pictures,
        )


class EngineEndedError(StreamVlmError):
    """The process of the engine has ended."""


class _Room:
    """Memory of both processes for the newest picture of a camera, in which neither waits.

    While it is written its number is below 0; who has read meanwhile has read nothing.
    """

    HEAD = 64
    SIZE = HEAD + LONGEST * LONGEST * 3  # bytes

    def __init__(self, shared: mmap.mmap, index: int) -> None:
        start = self.SIZE * index
        self._looked = np.frombuffer(shared, np.float64, 1, start)  # s, of the monotonic clock
        self._head = np.frombuffer(shared, np.int64, 4, start + 8)  # number, stamp, height, width
        self._data = np.frombuffer(shared, np.uint8, self.SIZE - self.HEAD, start + self.HEAD)

    @property
    def is_looked_at(self) -> bool:
        return bool(time.monotonic() - self._looked[0] < LOOKED_AT)

    def look(self) -> int:
        """The number of the picture that lies there; 0 or below: none."""
        self._looked[0] = time.monotonic()
        return int(self._head[0])

    def _image(self, height: int, width: int) -> np.ndarray:
        return self._data[: height * width * 3].reshape(height, width, 3)

    def write(self, number: int, stamp_ns: int, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        self._head[0] = -number
        self._head[1:] = stamp_ns, height, width
        self._image(height, width)[...] = image
        self._head[0] = number

    def read(self) -> Picture | None:
        """The picture that lies there, encoded; None: it is being written."""
        number, stamp_ns, height, width = map(int, self._head)
        if number <= 0:
            return None
        jpeg = as_jpeg(self._image(height, width))
        return Picture(number, stamp_ns, jpeg) if self._head[0] == number else None


# -- where the page is ----------------------------------------------------------------------------


class _Engine:
    """The other process, from here."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self._cameras = cameras
        self.memories = [ApartMemory(self, index, one) for index, one in enumerate(cameras)]
        self.words = ""  # why it is not there any more
        self._users = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._last = 0
        self._pending: dict[int, Answered] = {}

    def begin(self) -> None:
        """Start it for the first memory."""
        self._users += 1
        if self._child is not None:
            return
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        size = _Room.SIZE * len(self._cameras)
        shared = os.memfd_create("stream_vlm pictures")
        os.ftruncate(shared, size)
        both = mmap.mmap(shared, size)
        for index, memory in enumerate(self.memories):
            memory.room = _Room(both, index)
        # In a session of its own: Ctrl-C is for this process, which ends that one.
        self._child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(shared)],
            pass_fds=(theirs.fileno(), shared),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        os.close(shared)
        self._channel = Connection(ours.detach())
        self.tell(tuple(self._cameras))
        threading.Thread(target=self._listen, name="engine's process", daemon=True).start()

    async def end(self) -> None:
        """End it with the last memory."""
        self._users -= 1
        if self._users or self._child is None:
            return
        self.tell("close")
        await asyncio.to_thread(self._wait, self._child)
        self._channel.close()

    @staticmethod
    def _wait(child: subprocess.Popen[bytes]) -> None:
        for end in (child.terminate, child.kill, None):
            try:
                child.wait(END_TIMEOUT)
                return
            except subprocess.TimeoutExpired:
                if end is not None:
                    end()

    def tell(self, *message: Any) -> None:
        """Send it; one that has ended hears nothing."""
        with self._lock, contextlib.suppress(OSError):
            self._channel.send(message)

    def order(self, answered: Answered, kind: str, *what: Any) -> int:
        """Send an order; its number. ``answered`` is called with each answer, in the event loop;
        with an EngineEndedError where there is none."""
        self._last += 1
        if self.words:
            self._loop.call_soon(answered, EngineEndedError(self.words))
        else:
            self._pending[self._last] = answered
            self.tell(kind, self._last, *what)
        return self._last

    def _listen(self) -> None:
        """In a thread of its own."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._in_loop(self._answered, *self._channel.recv())
        assert self._child is not None
        status = self._child.wait()
        self._in_loop(self._over, status)

    def _in_loop(self, do: Callable[..., None], *given: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(do, *given)

    def _answered(self, number: int, what: Any, last: bool) -> None:
        answered = self._pending.pop(number)
        if not last:
            self._pending[number] = answered
        answered(what)

    def _over(self, status: int) -> None:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self.words = (
            f"the engine's process has ended ({how}); what it printed says why. Start this again"
        )
        pending, self._pending = self._pending, {}
        for answered in pending.values():
            answered(EngineEndedError(self.words))


class ApartMemory(LiveMemory):
    """A memory of the other process, seen from here."""

    def __init__(self, engine: _Engine, index: int, camera: Camera) -> None:
        self.name, model, self.examples = described(camera.source, camera.settings)
        self._engine, self._index = engine, index
        self._status = Status(words="the model is being loaded", model=model)
        self._looked_at, self._looking = 0.0, False
        self.room: _Room | None = None  # once there is another process
        self._picture: Picture | None = None
        self._encoding: asyncio.Future[Picture | None] | None = None
        self._encoded_at = 0.0

    async def start(self) -> None:
        self._engine.begin()

    async def close(self) -> None:
        await self._engine.end()

    @property
    def status(self) -> Status:
        now = time.monotonic()
        if self.room is None:  # not started
            return self._status
        if self._engine.words:
            return replace(self._status, state="inactive", words=self._engine.words)
        if not self._looking and now - self._looked_at > LOOK:
            self._looking, self._looked_at = True, now
            self._engine.order(self._take_status, "status", self._index)
        return self._status

    def _take_status(self, told: Status | StreamVlmError) -> None:
        self._looking = False
        if isinstance(told, Status):
            self._status = told

    @property
    def picture(self) -> Picture | None:
        if self.room is not None and (number := self.room.look()) > 0 and self._encoding is None:
            is_new = self._picture is None or self._picture.number != number
            if is_new and time.monotonic() - self._encoded_at > 0.9 / A_SECOND:
                self._encoded_at = time.monotonic()
                loop = asyncio.get_running_loop()
                self._encoding = loop.run_in_executor(None, self.room.read)
                self._encoding.add_done_callback(self._take_picture)
        return self._picture

    def _take_picture(self, encoding: asyncio.Future[Picture | None]) -> None:
        try:
            self._picture = encoding.result() or self._picture
        finally:  # else no other one would ever be read
            self._encoding = None

    def ask(self, question: Question) -> LiveAnswer:
        return _Asked(self._engine, self._index, question)

    async def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(what: Any) -> None:
            if not future.done():
                future.set_result(what)

        self._engine.order(answered, "call", self._index, method, arguments, named)
        what = await future
        if isinstance(what, StreamVlmError):
            raise what
        result, self._status = what
        return result

    async def thumbnail(self, stamp_ns: int, size: int = 320) -> bytes | None:
        found: bytes | None = await self._call("thumbnail", stamp_ns, size)
        return found

    async def past_answers(self, text: str = "", limit: int = 100) -> Sequence[PastAnswer]:
        found: Sequence[PastAnswer] = await self._call("past_answers", text, limit)
        return found

    async def saved_names(self) -> Sequence[str]:
        names: Sequence[str] = await self._call("saved_names")
        return names

    async def reset(self) -> str:
        return str(await self._call("reset"))

    async def pause(self) -> str:
        return str(await self._call("pause"))

    async def resume(self) -> str:
        return str(await self._call("resume"))

    async def save(self, name: str = "") -> str:
        return str(await self._call("save", name))

    async def load(self, name: str = "") -> str:
        return str(await self._call("load", name))

    async def check(self, **settings: Any) -> None:
        await self._call("check", **settings)

    async def set(self, **settings: Any) -> str:
        return str(await self._call("set", **settings))


class _Asked(GrowingAnswer):
    """An answer that is written in the other process."""

    def __init__(self, engine: _Engine, index: int, question: Question) -> None:
        super().__init__(asyncio.get_running_loop().create_future())
        self._engine, self._question = engine, question
        self._number = engine.order(self._take, "ask", index, question)

    def _take(self, what: str | Outcome | StreamVlmError) -> None:
        if isinstance(what, str):
            self._grow(what)
            return
        if isinstance(what, StreamVlmError):
            what = Outcome(self._question, self._text, error=what)
        self._outcome.set_result(what)
        self._grow(self._text)

    def cancel(self) -> None:
        self._engine.tell("cancel", self._number)


def remembered_apart(cameras: Sequence[Camera]) -> list[LiveMemory]:
    """The memories of these cameras, all in one process, which starts and ends with them."""
    return list(_Engine(cameras).memories)


# -- where the engine is --------------------------------------------------------------------------


class _Given(Pictures):
    """Lays the newest picture ready while the other process looks."""

    def __init__(self, room: _Room) -> None:
        super().__init__()
        self._room, self._given, self._given_at = room, 0, 0.0

    def offer(self, image: np.ndarray, stamp_ns: int) -> None:
        super().offer(image, stamp_ns)
        self.give()

    def give(self) -> None:
        """Also every now and then: the last one may have come while nobody looked."""
        with self._lock:
            now = time.monotonic()
            if self._newest is None or self._newest[0] == self._given:
                return
            if now - self._given_at < 0.9 / A_SECOND or not self._room.is_looked_at:
                return
            self._given_at, (self._given, stamp_ns, image) = now, self._newest
            self._room.write(self._given, stamp_ns, reduced(image))


class _Served:
    """The memories of this process, for the one that has the page."""

    def __init__(self, channel: Connection, shared: int) -> None:
        self._channel, self._lock = channel, threading.Lock()
        (cameras,) = channel.recv()
        both = mmap.mmap(shared, _Room.SIZE * len(cameras))
        self._given = [_Given(_Room(both, index)) for index in range(len(cameras))]
        pairs = zip(cameras, self._given, strict=True)
        self._memories = [camera.remembered(given) for camera, given in pairs]
        self._answers: dict[int, LiveAnswer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the other one says so, or is gone."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        for memory in self._memories:
            await memory.start()
        threading.Thread(target=self._listen, daemon=True).start()
        while not self._over.is_set():
            for given in self._given:
                given.give()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._over.wait(), TICK)
        await asyncio.gather(*(memory.close() for memory in self._memories))

    def _listen(self) -> None:
        """In a thread of its own."""
        with contextlib.suppress(EOFError, OSError):
            while (message := self._channel.recv())[0] != "close":
                kind, *rest = message
                if kind == "status":  # often, and no work for the loop
                    self._on_status(*rest)
                else:
                    self._loop.call_soon_threadsafe(getattr(self, f"_on_{kind}"), *rest)
        self._loop.call_soon_threadsafe(self._over.set)

    def _tell(self, *message: Any) -> None:
        with self._lock, contextlib.suppress(OSError):  # nobody is there: `_listen` ends it all
            self._channel.send(message)

    def _start(self, task: Any) -> None:
        one = self._loop.create_task(task)
        self._tasks.add(one)
        one.add_done_callback(self._tasks.discard)

    def _on_status(self, number: int, index: int) -> None:
        try:
            self._tell(number, self._memories[index].status, True)
        except Exception as fault:  # which would end the thread that hears all orders
            self._tell(number, _sendable(fault), True)

    def _on_call(self, number: int, index: int, method: str, arguments: Any, named: Any) -> None:
        self._start(self._call(number, self._memories[index], method, arguments, named))

    async def _call(
        self, number: int, memory: LiveMemory, method: str, arguments: Any, named: Any
    ) -> None:
        try:
            result = await getattr(memory, method)(*arguments, **named)
        except Exception as fault:
            self._tell(number, _sendable(fault), True)
        else:
            self._tell(number, (result, memory.status), True)

    def _on_ask(self, number: int, index: int, question: Question) -> None:
        try:
            self._answers[number] = answer = self._memories[index].ask(question)
        except Exception as fault:  # somebody waits for what comes of it
            self._tell(number, _sendable(fault), True)
        else:
            self._start(self._follow(number, answer))

    async def _follow(self, number: int, answer: LiveAnswer) -> None:
        try:
            async for text in answer:
                self._tell(number, text, False)
            outcome = await answer.outcome()
        except Exception as fault:
            self._tell(number, _sendable(fault), True)
            return
        finally:
            del self._answers[number]
        if outcome.error is not None:
            outcome = replace(outcome, error=_sendable(outcome.error))
        self._tell(number, outcome, True)

    def _on_cancel(self, number: int) -> None:
        if (answer := self._answers.get(number)) is not None:
            answer.cancel()


def _sendable(fault: Exception) -> StreamVlmError:
    """The fault as the other process can read it."""
    if not isinstance(fault, StreamVlmError):
        log.error("internal error", exc_info=fault)
        return StreamVlmError(f"internal error: {fault!r}")
    try:
        read = pickle.loads(pickle.dumps(fault))
    except Exception:  # one with more to it than words
        return StreamVlmError(str(fault))
    return read if isinstance(read, StreamVlmError) else StreamVlmError(str(fault))


def main(channel: str, shared: str) -> None:
    """The process of the engine."""
    logging.basicConfig(format="%(message)s")
    asyncio.run(_Served(Connection(int(channel)), int(shared)).serve())
    logging.shutdown()
    os._exit(0)  # a model that is being loaded would hold up the end, or crash in it
