# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A server of the remote protocol without a model: what a session does with what it is sent."""

import asyncio
import contextlib
import copy
import threading
from collections import deque

from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.http11 import Response

from stream_vlm_ros.remote import protocol

NO_PICTURE = b"no picture"


class ModelSession:
    """One session. It takes chunks in when told to, one by one, so that tests decide when.

    Attributes:
        frames: (sequence, stamp) of those in its memory, in their order.
        all_frames: of those that ever were in it.
        ended: of each frame that was told of, what became of it.
    """

    def __init__(self, queue_size=2):
        self.frames, self.ended, self.all_frames = [], {}, []
        self.accepted_ns, self.accepted_sequence = None, 0
        self.resumed, self.restored, self.gap = False, False, ""
        self.queue_size, self.waiting, self.open = queue_size, deque(), []
        self.ends, self.saved, self.connections = [], None, 0
        self.asked, self.cancelled, self.resets = [], [], []
        self.bounds = dict(factor=28, min_pixels=784, max_pixels=401_408)

    # A connection

    def created(self):
        """The events that a connection begins with."""
        self.connections += 1
        self.open = []
        session = protocol.Session(
            id="robot", resumed=self.resumed, restored=self.restored,
            accepted_ns=self.accepted_ns, accepted_sequence=self.accepted_sequence,
            model="a model", device="cuda:0", plan="a plan", **self.bounds,
        )  # fmt: skip
        ends = [*self.ends] if self.resumed else []
        self.resumed = True
        return [protocol.SessionCreated(session=session, status=self.status), *ends]

    @property
    def status(self):
        stamps = [stamp for _, stamp in self.frames]
        memory = protocol.Memory(
            frames=len(stamps), length=4 * len(stamps), cap=1000, chunks=len(stamps),
            oldest_ns=min(stamps, default=None), newest_ns=max(stamps, default=None),
        )  # fmt: skip
        return protocol.Status(memory=memory, gap=self.gap)

    def take(self, message):
        """What it says to a message at once."""
        if isinstance(message, bytes):
            frame = protocol.unpacked(message)
            assert frame.sequence > self.accepted_sequence, "a frame came twice"
            if frame.pixels == NO_PICTURE:
                return self._drop_frames([(frame.sequence, frame.stamp_ns)], "invalid_image")
            self.open.append((frame.sequence, frame.stamp_ns))
            return []
        event = protocol.client_event(message)
        match event:
            case protocol.SessionUpdate():
                assert event.settings == {"commit": "client"}
            case protocol.Commit():
                return self._commit()
            case protocol.Clear():
                return self._drop([*self.waiting], "reset")
            case protocol.MemoryReset():
                self.resets.append(event.time_jump)
                dropped = self._drop([*self.waiting], "time_jump" if event.time_jump else "reset")
                self.frames = []
                done = protocol.MemoryDone(event_id=event.event_id, words="forgotten")
                return [*dropped, done, protocol.MemoryStatus(status=self.status)]
            case protocol.ResponseCreate():
                self.asked.append(event)
            case protocol.ResponseCancel():
                self.cancelled.append(event.response_id)
                return [self.answer(event.response_id, status="cancelled")]
            case protocol.MemorySave():
                self.save()
                return [protocol.MemoryDone(event_id=event.event_id, words="saved", bytes=7)]
            case protocol.MemoryList():
                return [
                    protocol.MemoryDone(event_id=event.event_id, words="", names=("one", "two"))
                ]
            case protocol.MemoryPicture():
                picture = protocol.Thumbnail(stamp_ns=event.stamp_ns, jpeg=b"jpeg")
                return [protocol.PictureDone(event_id=event.event_id, picture=picture)]
            case protocol.MemoryLoad():
                fault = protocol.Fault(code="MEMORY_FILE", message="there is no such memory")
                return [protocol.ErrorEvent(event_id=event.event_id, error=fault)]
        return []

    def answer(self, id, text="two boxes", **fields):
        return protocol.ResponseDone(
            response=protocol.Response(id=id, text=text, memory=self.status.memory, **fields)
        )

    # Frames

    def _commit(self):
        chunk, self.open = self.open, []
        if not chunk:
            return []
        self.accepted_sequence, self.accepted_ns = chunk[-1]
        told = self._drop([self.waiting[0]], "overflow") if self.is_full else []
        self.waiting.append(chunk)
        return told

    @property
    def is_full(self):
        return len(self.waiting) >= self.queue_size

    def _drop(self, chunks, cause):
        told = []
        for chunk in chunks:
            self.waiting.remove(chunk)
            told += self._drop_frames(chunk, cause)
        return told

    def _drop_frames(self, frames, cause):
        self.ended |= dict.fromkeys([sequence for sequence, _ in frames], cause)
        first, last = frames[0][0], frames[-1][0]
        told = protocol.Dropped(first=first, last=last, frames=len(frames), cause=cause)
        self.ends.append(told)
        return [told]

    def ingest(self):
        """Take the oldest chunk that waits into the memory; what it says of it."""
        if not self.waiting:
            return []
        chunk = self.waiting.popleft()
        self.frames += chunk
        self.all_frames += chunk
        self.ended |= dict.fromkeys([sequence for sequence, _ in chunk], "ingested")
        (first, _), (last, newest_ns) = chunk[0], chunk[-1]
        event = protocol.Ingested(first=first, last=last, frames=len(chunk), newest_ns=newest_ns)
        self.ends.append(event)
        return [event, protocol.MemoryStatus(status=self.status)]

    # Its end

    def save(self):
        self.saved = copy.copy(self.frames)

    def begun_again(self):
        """What comes after it was killed."""
        again = ModelSession(self.queue_size)
        again.saved, again.resets, again.ended = self.saved, self.resets, self.ended
        if self.saved:
            again.frames, again.restored = [*self.saved], True
            again.accepted_ns = max(stamp for _, stamp in self.saved)
        return again


class ModelServer:
    """A `ModelSession` behind a socket, in a thread; it takes in what it is sent at once.

    Attributes:
        refusal: what is answered instead of a WebSocket: status, headers, body.
        first: what is sent instead of the first events.
        deaf: it reads no message any more.
        answers: an answer follows each question.
    """

    def __init__(self, port=0):
        self.session = ModelSession()
        self.refusal = self.first = self.keys = None
        self.deaf, self.answers, self.takes = False, True, True
        self.heads, self.sockets = [], set()
        self._port, self._started = port, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def url(self):
        return f"ws://127.0.0.1:{self._port}"

    async def _run(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with serve(
            self._serve, "127.0.0.1", self._port, process_request=self._check,
            subprotocols=[protocol.SUBPROTOCOL], max_size=protocol.MAX_FRAME_BYTES,
            close_timeout=0.2,
        ) as server:  # fmt: skip
            self._port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._over.wait()

    def _check(self, socket, request):
        refusal = self.refusal
        self.heads.append(request)
        if refusal is None:
            return None
        status, headers, body = refusal
        return Response(status, "refused", Headers(headers), body.encode())

    async def _serve(self, socket):
        self.sockets.add(socket)
        with contextlib.suppress(Exception):
            if self.first is not None:
                await socket.send(self.first)
            else:
                await self._say(socket, self.session.created())
            async for message in socket:
                while self.deaf:
                    await asyncio.sleep(0.02)
                await self._say(socket, self.session.take(message))
                if self.takes:
                    await self._say(socket, self.session.ingest())
                while self.answers and self.session.asked:
                    await self._answer(socket, self.session.asked.pop(0).event_id)
        self.sockets.discard(socket)

    async def _answer(self, socket, id):
        await self._say(socket, [protocol.ResponseReading(response_id=id)])
        for delta in ("two ", "boxes"):
            await self._say(socket, [protocol.TextDelta(response_id=id, delta=delta)])
        await self._say(socket, [self.session.answer(id, answer_tokens=2)])

    async def _say(self, socket, events):
        for event in events:
            await socket.send(protocol.encoded(event))

    def say(self, *events):
        """To all who are connected."""
        for socket in list(self.sockets):
            asyncio.run_coroutine_threadsafe(self._say(socket, events), self._loop).result(10)

    def say_raw(self, message):
        for socket in list(self.sockets):
            asyncio.run_coroutine_threadsafe(socket.send(message), self._loop).result(10)

    def cut(self):
        """All connections break off."""
        for socket in list(self.sockets):
            self._loop.call_soon_threadsafe(socket.transport.abort)

    def close(self):
        self.cut()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
