# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A camera's WebSocket: frames and events in, events out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastapi import WebSocket
from fastapi.responses import JSONResponse
from fastapi.websockets import WebSocketDisconnect, WebSocketState

from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError, cut
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.remote.protocol import ClientEvent, ProtocolError, ServerEvent
from stream_vlm_ros.serve.calls import Call
from stream_vlm_ros.serve.outbox import MAX_BYTES, MAX_EVENTS, Outbox
from stream_vlm_ros.serve.pixel_budget import PixelBudget
from stream_vlm_ros.serve.refusals import body_of, status_of
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.session_errors import ServerEndingError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.serve.telling import fault_of, pixels_of, question_of, response_of
from stream_vlm_ros.session.memory_keeper import Done
from stream_vlm_ros.session.question import (
    MAX_PICTURE_SIZE,
    WRITING,
    Outcome,
    QueueFullError,
    Ticket,
)

log = logging.getLogger(__name__)

SEND_TIMEOUT = 20.0  # s that a message may take on its way out
FAREWELL = 2.0  # s for the last one
STATUS_PERIOD = 5.0  # s between two of the status, if nothing happens
MAX_ORDERS = 64  # questions and orders of one connection under way
ORDERS = (
    protocol.SessionClose, protocol.MemoryReset, protocol.MemorySave, protocol.MemoryLoad,
    protocol.MemoryList, protocol.MemoryPicture,
)  # fmt: skip
FAULTS, FAULT_PERIOD = 50, 10.0  # so many bad messages in so many seconds end a connection
ENDED, FLOODING, TOO_SLOW, TAKEN_OVER = 4000, 4008, 4009, 4010  # close codes

# Pictures are decoded here, so that others are served meanwhile. Large ones wait for each other:
# one of 64 megapixels, which may be a file of some kilobytes, takes a second, and 200 MB and more.
DECODERS = max(2, (os.cpu_count() or 2) // 2)
_decoding = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoding")
LARGE = 9_000_000  # pixels: more than 4K
LARGE_AT_ONCE = PixelBudget(64_000_000)
# Meanwhile a connection is not read: neither pings, nor its end.
TURN = 1.0  # s that a large picture waits for its turn; after one that waited in vain none does


async def serve_camera(socket: WebSocket, sessions: Sessions, owner: str) -> None:
    """Serve one connection until it ends."""
    if protocol.SUBPROTOCOL not in socket.scope["subprotocols"]:
        asked = ", ".join(socket.scope["subprotocols"]) or "no subprotocol"
        words = f"this server speaks {protocol.SUBPROTOCOL}, not {cut(asked)}"
        await refuse(socket, UnknownVersionError(words))
        return
    name = socket.headers.get(protocol.SESSION_HEADER) or socket.query_params.get("session")
    try:
        session = sessions.open(name or uuid.uuid4().hex, owner)
    except StreamVlmError as fault:
        await refuse(socket, fault)
        return
    await socket.accept(protocol.SUBPROTOCOL)
    connection = Connection(socket, session, sessions)
    sessions.connections.add(connection)
    try:
        with contextlib.suppress(WebSocketDisconnect, ConnectionError):
            await connection.run()
    finally:
        sessions.connections.discard(connection)


class UnknownVersionError(ProtocolError):
    """Another version of the protocol, or none, is asked for."""

    code = "UNKNOWN_VERSION"


async def refuse(socket: WebSocket, fault: StreamVlmError) -> None:
    """Refuse a connection in words: by an answer of HTTP, or where the server in front of us cannot
    give one by an event."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        status, headers = status_of(fault)
        await socket.send_denial_response(JSONResponse(body_of(fault), status, headers))
        return
    offered = socket.scope["subprotocols"]
    ours = protocol.SUBPROTOCOL if protocol.SUBPROTOCOL in offered else None
    await socket.accept(ours)
    await socket.send_text(protocol.encoded(_ending(fault)))
    await socket.close(ENDED, cut(str(fault), 60))


class Connection:
    """One who is connected to a session."""

    def __init__(
        self, socket: WebSocket, session: Session, sessions: Sessions, max_events: int = MAX_EVENTS
    ) -> None:
        self._socket, self._session, self._sessions = socket, session, sessions
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(lambda: protocol.MemoryStatus(status=session.status), max_events)
        self._tickets: dict[str, Ticket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: deque[float] = deque()
        self._code = ENDED
        self._why: protocol.SessionEnding | None = None  # it ends
        self._farewell: protocol.SessionEnding | None = None
        self._is_ending = False
        self._closing = False  # the session was closed by this connection
        self._receiving: asyncio.Future[Any] | None = None  # a frame
        self._waits_again = 0.0  # by `time.monotonic`: large pictures wait for their turn
        self._cut_off, self._over = asyncio.Event(), asyncio.Event()

    # -- from any thread ---------------------------------------------------------------------

    def hear(self, event: ServerEvent | None) -> None:
        """Something became of frames, or the status has changed."""
        self._call(self._put, event)

    def session_ended(self, forgotten: bool, words: str) -> None:
        """The session has ended, or for the words given it has to be connected to again."""
        fault = ServerEndingError(words)
        self._call(self.end, _ending(fault, None if forgotten else fault.retry_after), ENDED)

    def _call(self, do: Callable[..., object], *given: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(do, *given)

    # -- in the loop -------------------------------------------------------------------------

    def _put(self, event: ServerEvent | None) -> None:
        """Let an event wait to be sent; who lets too many wait is cut off."""
        self._outbox.put(event)
        if self._outbox.full and not self._is_ending:
            words = StreamVlmError(
                f"more than {self._outbox.max_events:,} events, or {MAX_BYTES / 1e6:.0f} MB of "
                "them, wait to be read"
            )
            self.end(_ending(words, 1.0, code="TOO_SLOW"), TOO_SLOW, at_once=True)

    def end(self, event: protocol.SessionEnding, code: int, *, at_once: bool = False) -> None:
        """Tell why, and end it; ``at_once``: without what else waits to be told."""
        if not self._is_ending:
            self._is_ending, self._code, self._why = True, code, event
            if not self._closing:
                self._end_by(event)
            if at_once:
                self._cut_off.set()

    def _end_by(self, event: protocol.SessionEnding) -> None:
        self._farewell = event
        self._outbox.end(event)

    async def run(self) -> None:
        """Until one of the two ends it."""
        session = self._session
        while (older := session.connection) is not None:  # of the same owner
            taken = StreamVlmError("a newer connection took the session over")
            older.end(_ending(taken, code="TAKEN_OVER"), TAKEN_OVER, at_once=True)
            await older.wait_until_over()
        session.connection = self
        try:
            try:
                await _shielded(asyncio.wrap_future(session.ready))
            except Exception as fault:
                self.end(_ending(fault, getattr(fault, "retry_after", None)), ENDED)
            if not session.life.takes_frames:  # as one of no use, just before it was connected to
                gone = ServerEndingError("the session was just ended: connect again")
                self.end(_ending(gone, gone.retry_after), ENDED)
            if not self._is_ending:
                await self._talk()
            await self._say_farewell()
        finally:
            session.connection = None
            self._over.set()

    async def wait_until_over(self) -> None:
        """Until the session is free for another connection."""
        await self._over.wait()

    async def _talk(self) -> None:
        session = self._session
        resumed = session.was_connected  # one that has begun may have done so for us, and quickly
        ends = session.connect(self.hear)
        told = session.described(resumed=resumed)
        self._put(protocol.SessionCreated(session=told, status=session.status))
        for end in ends if resumed else ():
            self._put(end)
        working = (self._read(), self._write(), self._tick(), self._cut_off.wait())
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one) for one in working]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._is_ending = True
            session.disconnect(self.hear)
            for ticket in list(self._tickets.values()):
                ticket.cancel()
            for task in (*tasks, *self._tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._receiving is not None:
                await asyncio.wait([self._receiving])

    async def _say_farewell(self) -> None:
        """Say why it ends, if that was not said, and close it: it may be gone, or take nothing."""
        if self._socket.application_state is not WebSocketState.CONNECTED:
            return
        with contextlib.suppress(asyncio.TimeoutError, RuntimeError, WebSocketDisconnect):
            if self._farewell is not None:
                told = self._socket.send_text(protocol.encoded(self._farewell))
                await asyncio.wait_for(told, FAREWELL)
            await asyncio.wait_for(self._socket.close(self._code), FAREWELL)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(STATUS_PERIOD)
            self._session.touch()
            self._put(None)

    async def _write(self) -> None:
        while True:
            event = await self._outbox.get()
            if isinstance(event, protocol.SessionEnding):
                return  # it is said last
            if not await self._sent(protocol.encoded(event)):
                words = StreamVlmError(f"this client took nothing for {SEND_TIMEOUT:.0f} s")
                self.end(_ending(words, 1.0, code="TOO_SLOW"), TOO_SLOW, at_once=True)
                return
            if isinstance(event, protocol.SessionClosed):
                return

    async def _sent(self, text: str) -> bool:
        """Whether it could be sent within `SEND_TIMEOUT`."""
        # Before Python 3.12 `asyncio.wait_for` may swallow the cancellation of a connection that is
        # cut off, and the next message would wait.
        sending = asyncio.ensure_future(self._socket.send_text(text))
        sending.add_done_callback(_take_exception)
        try:
            await asyncio.wait([sending], timeout=SEND_TIMEOUT)
            if sending.done():
                sending.result()
            return sending.done()
        finally:
            sending.cancel()

    async def _read(self) -> None:
        while not self._is_ending:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if self._is_ending:
                break
            event_id = ""
            try:
                if (data := message.get("bytes")) is not None:
                    await self._take_frame(data)
                else:
                    event = protocol.client_event(message["text"])
                    event_id = event.event_id
                    await self._take(event)
            except StreamVlmError as fault:
                self._refuse(fault, event_id)
            except Exception as fault:
                log.error("session %s: internal error", self._session.id, exc_info=fault)
                self._refuse(fault, event_id)
        await asyncio.Event().wait()  # what is told last is being sent

    def _refuse(self, fault: BaseException, event_id: str) -> None:
        self._put(protocol.ErrorEvent(event_id=event_id, error=fault_of(fault, event_id)))
        now = time.monotonic()
        self._faults.append(now)
        while now - self._faults[0] > FAULT_PERIOD:
            self._faults.popleft()
        if len(self._faults) > FAULTS:
            words = StreamVlmError(
                f"more than {FAULTS} messages in {FAULT_PERIOD:.0f} s were refused, the last "
                f"since {fault}"
            )
            self.end(_ending(words, FAULT_PERIOD, code="FLOODING"), FLOODING)

    async def _take_frame(self, data: bytes) -> None:
        if len(data) > protocol.MAX_FRAME_BYTES:
            raise ProtocolError(
                f"a frame of {len(data):,} bytes is longer than {protocol.MAX_FRAME_BYTES:,}"
            )
        frame = protocol.unpacked(data)
        if pixels := await self._received(
            self._loop.run_in_executor(_decoding, self._receive_unless_large, frame)
        ):
            await self._take_large(frame, pixels)

    def _receive_unless_large(self, frame: protocol.FrameMessage) -> int:
        """How many pixels a large one has, which is not received; 0: it was."""
        frames = self._session.frames
        if (pixels := pixels_of(frame, frames.limit)) > LARGE:
            return pixels
        frames.receive(frame)
        return 0

    async def _take_large(self, frame: protocol.FrameMessage, pixels: int) -> None:
        frames = self._session.frames
        patience = TURN if time.monotonic() >= self._waits_again else 0.0
        if not await LARGE_AT_ONCE.take(pixels, patience):
            if patience:
                self._waits_again = time.monotonic() + TURN
            words = (
                f"a picture of {pixels / 1e6:.0f} megapixels cannot be decoded soon: the server "
                f"decodes others above {LARGE / 1e6:.0f} megapixels"
            )
            dropping = self._loop.run_in_executor(_decoding, frames.drop, frame, words)
            await self._received(dropping)
            return
        call = Call(frames.receive, frame)
        try:
            threading.Thread(target=call, name="decoding a large picture", daemon=True).start()
        except RuntimeError:  # there are too many threads
            LARGE_AT_ONCE.give_back(pixels)
            raise
        call.done.add_done_callback(lambda done: LARGE_AT_ONCE.give_back(pixels))
        await self._received(asyncio.wrap_future(call.done))

    async def _received(self, receiving: asyncio.Future[Any]) -> Any:
        self._receiving = receiving
        done = await _shielded(receiving)
        self._receiving = None
        return done

    async def _take(self, event: ClientEvent) -> None:
        session = self._session
        if isinstance(event, ORDERS) and len(self._tasks) >= MAX_ORDERS:  # before it is given
            raise QueueFullError(f"{len(self._tasks)} orders of this connection are under way")

        def tell(make: Callable[[str, Any], ServerEvent]) -> Callable[[Any], ServerEvent]:
            return functools.partial(make, event.event_id)

        match event:
            case protocol.Commit():
                session.frames.commit_open()
            case protocol.ResponseCreate():
                self._ask(event)
            case protocol.ResponseCancel():
                if (ticket := self._tickets.get(event.response_id)) is not None:
                    ticket.cancel()
            case protocol.Clear():
                session.frames.clear()
            case protocol.SessionUpdate():
                session.frames.update(event.settings)
                self._put(
                    protocol.SessionUpdated(event_id=event.event_id, session=session.described())
                )
            case protocol.SessionClose():
                # At once: who closes it may go without waiting for the answer.
                closing = self._sessions.begin_to_close(session.id, session.owner)
                self._closing = True
                self._order(event.event_id, self._tell_closed, event.event_id, closing)
            case protocol.MemoryReset():
                resetting = session.reset(time_jump=event.time_jump)
                self._order(event.event_id, self._tell_when, resetting, tell(_forgotten))
            case protocol.MemorySave():
                saving = session.save(event.name)
                self._order(event.event_id, self._tell_when, saving, tell(_done))
            case protocol.MemoryLoad():
                loading = session.load(event.name)
                self._order(event.event_id, self._tell_when, loading, tell(_done))
            case protocol.MemoryList():
                named = session.keeper.names()
                self._order(event.event_id, self._tell_when, named, tell(_names))
            case protocol.MemoryPicture():
                if not 16 <= event.max_size <= MAX_PICTURE_SIZE:
                    raise InvalidParameterError(
                        f"max_size is from 16 to {MAX_PICTURE_SIZE}, not {event.max_size}"
                    )
                looked = session.worker.picture_near(
                    event.stamp_ns, event.within_ns, event.max_size
                )
                self._order(event.event_id, self._tell_when, looked, tell(_picture))

    # -- questions ---------------------------------------------------------------------------

    def _ask(self, event: protocol.ResponseCreate) -> None:
        id = event.event_id
        if not id:
            raise ProtocolError("response.create needs an event_id, which names its response")
        if id in self._tickets:
            raise ProtocolError(f"a response {cut(id)!r} is under way already")
        question = question_of(event.response)
        if question.choices and question.keep_exchange:
            raise InvalidParameterError(
                "keep_exchange does not go with choices: nothing is written"
            )
        if question.history in ("auto", "always") and not self._session.settings.has_history:
            raise InvalidParameterError("this server keeps no history (--history)")
        written = ""

        def follow(state: str, text: str) -> None:  # in the thread of the engines
            nonlocal written
            if state != WRITING:
                self._call(self._grow, id, None)
            elif text.startswith(written) and len(text) > len(written):
                delta, written = text[len(written) :], text
                self._call(self._grow, id, delta)

        ticket = self._session.ask(question, follow)
        self._tickets[id] = ticket
        ticket.future.add_done_callback(lambda done: self._call(self._answer, id, done))

    def _grow(self, id: str, delta: str | None) -> None:
        if delta is None:
            self._put(protocol.ResponseReading(response_id=id))
        else:
            self._put(protocol.TextDelta(response_id=id, delta=delta))

    def _answer(self, id: str, done: Future[Outcome]) -> None:
        del self._tickets[id]
        try:
            response = response_of(id, done.result())
        except Exception as fault:  # of this package: who asked is told all the same
            log.error("session %s: internal error", self._session.id, exc_info=fault)
            response = protocol.Response(id=id, status="failed", error=fault_of(fault))
        self._put(protocol.ResponseDone(event_id=id, response=response))

    # -- what else is asked ------------------------------------------------------------------

    def _order(
        self, event_id: str, do: Callable[..., Coroutine[Any, Any, None]], *given: Any
    ) -> None:
        task = asyncio.create_task(self._carry_out(event_id, do, *given))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(
        self, event_id: str, do: Callable[..., Coroutine[Any, Any, None]], *given: Any
    ) -> None:
        try:
            await do(*given)
        except Exception as fault:
            self._tell_fault(event_id, fault)

    def _tell_fault(self, event_id: str, fault: Exception) -> None:
        if not isinstance(fault, StreamVlmError):
            log.error("session %s: internal error", self._session.id, exc_info=fault)
        error = fault_of(fault, event_id)
        error.message = self._session.file.without_folder(error.message)
        self._put(protocol.ErrorEvent(event_id=event_id, error=error))

    async def _tell_closed(self, event_id: str, closing: Future[None]) -> None:
        try:
            await self._tell_when(closing, functools.partial(_closed, event_id))
        except Exception as fault:
            self._tell_fault(event_id, fault)
            self._closing = False
            if self._why is not None:  # it has ended all the same
                self._end_by(self._why)

    async def _tell_when(self, done: Future[Any], event: Callable[[Any], ServerEvent]) -> None:
        told = event(await _shielded(asyncio.wrap_future(done)))
        if isinstance(told, protocol.MemoryDone):
            told.words = self._session.file.without_folder(told.words)
        self._put(told)


def _ending(
    fault: BaseException, retry_after: float | None = None, code: str = ""
) -> protocol.SessionEnding:
    told = fault_of(fault)
    return protocol.SessionEnding(
        code=code or told.code, message=told.message, retry_after=retry_after
    )


def _shielded(waited: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """It goes on where who waits for it is cancelled; what it raises then nobody is to be told."""
    shield = asyncio.shield(waited)
    for one in (waited, shield):
        one.add_done_callback(_take_exception)
    return shield


def _take_exception(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


def _closed(event_id: str, done: None) -> protocol.SessionClosed:
    return protocol.SessionClosed(event_id=event_id)


def _forgotten(event_id: str, done: None) -> protocol.MemoryDone:
    return protocol.MemoryDone(event_id=event_id, words="forgotten")


def _names(event_id: str, names: list[str]) -> protocol.MemoryDone:
    return protocol.MemoryDone(event_id=event_id, words=", ".join(names), names=tuple(names))


def _done(event_id: str, done: Done) -> protocol.MemoryDone:
    return protocol.MemoryDone(
        event_id=event_id,
        words=done.words,
        bytes=done.bytes,
        seconds=done.seconds,
        newest_ns=done.newest_ns,
    )


def _picture(event_id: str, found: tuple[int, bytes] | None) -> protocol.PictureDone:
    if found is None:
        return protocol.PictureDone(event_id=event_id)
    stamp_ns, jpeg = found
    picture = protocol.Thumbnail(stamp_ns=stamp_ns, jpeg=jpeg)
    return protocol.PictureDone(event_id=event_id, picture=picture)
