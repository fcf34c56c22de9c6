# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The connection to a server, kept up in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from socket import gaierror
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidStatus,
    NegotiationError,
    WebSocketException,
)
from websockets.http11 import Response
from websockets.typing import Subprotocol

from stream_vlm_ros.access import is_loopback
from stream_vlm_ros.errors import StreamVlmError, cut, in_words
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.remote.exchange import Chunk
from stream_vlm_ros.remote.protocol import ClientEvent, ProtocolError, ServerEvent
from stream_vlm_ros.remote.values import check_values
from stream_vlm_ros.session.question import DisconnectedError

OPEN, SEND, CLOSE = 5.0, 10.0, 1.0  # s, for a connection, a message, and a farewell
PING, PONG = 5.0, 10.0  # s between two pings, and for the answer
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # s between two tries; each pause is twice the one before
LONGEST_WAIT = 600.0  # s until the next try, whatever the server says
STEADY = 5.0  # s: a connection that held for longer was a good one, and is tried again at once
LARGEST_EVENT = 16 << 20  # bytes; kept pictures are in it
FINAL = (400, 401, 403)  # HTTP: it would be refused again

_LOG = logging.getLogger(f"{__name__}.websockets")  # what it says is told in our own words
_LOG.addHandler(logging.NullHandler())
_LOG.propagate = False


class RefusedError(DisconnectedError):
    """The server takes no connection.

    Attributes:
        retry_after: seconds after which to try again, up to `LONGEST_WAIT`; None: never.
    """

    def __init__(self, words: str, retry_after: float | None = None) -> None:
        super().__init__(words)
        if retry_after is not None:
            retry_after = min(max(0.0, retry_after), LONGEST_WAIT)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Address:
    """Where a session is.

    Attributes:
        url: ws:// or wss://, see `stream_vlm_ros.config.check_engine_url`.
        session: its name.
        key: "": none is told.
    """

    url: str
    session: str
    key: str = ""

    @property
    def target(self) -> str:
        """The URL with a path."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") or protocol.PATH))

    @property
    def headers(self) -> dict[str, str]:
        """Who is there, and what for."""
        bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {protocol.SESSION_HEADER: self.session, **bearer}

    @property
    def tells_key_openly(self) -> bool:
        """Whether others on the way can read the key."""
        parts = urlsplit(self.url)
        return bool(self.key) and parts.scheme == "ws" and not is_loopback(parts.hostname or "")


class _ConnectThere(connect):
    """To no other place, wherever the server sends us: pictures and the key are for this one."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class Peer(Protocol):
    """Whose connection it is; all is called in the thread, and returns at once."""

    def connected(self, told: protocol.SessionCreated) -> None:
        """There is a connection."""

    def disconnected(self, why: StreamVlmError, is_final: bool) -> None:
        """There is none (any more)."""

    def hear(self, event: ServerEvent) -> None:
        """The server said it."""

    def take(self) -> ClientEvent | Chunk | None:
        """What is to be sent next."""

    def packed(self, chunk: Chunk) -> Iterator[bytes]:
        """A chunk's messages; what it raises is for `fail`."""

    def fail(self, chunk: Chunk, fault: Exception) -> None:
        """A chunk cannot be packed."""

    def report(self, fault: BaseException) -> None:
        """A fault of this package."""

    def stop(self) -> None:
        """There will be no connection any more; from any thread."""


class Link:
    """Keeps up the connection of one session until it is told to end.

    Args:
        pauses: seconds before the second try, the third, and so on; made for each series of tries.
    """

    def __init__(
        self,
        address: Address,
        peer: Peer,
        pauses: Callable[[], Iterator[float]] = lambda: growing_pauses(),
    ) -> None:
        self.address = address
        self.peer, self._pauses = peer, pauses
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_end = False
        self._since = math.inf  # when the connection was there
        self._stalled = ""  # why it was given up
        self._wake: asyncio.Event
        self._over: asyncio.Event

    def wake(self) -> None:
        """There is something to send; from any thread."""
        self._call(lambda: self._wake.set())

    def end(self) -> None:
        """End the connection, and try no more; from any thread."""
        self._told_to_end = True
        self._call(lambda: self._over.set())

    def _call(self, what: Callable[[], None]) -> None:
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(what)

    async def run(self) -> None:
        """In the thread."""
        self._wake, self._over = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        over = asyncio.create_task(self._over.wait())
        pauses = self._pauses()
        while not self._told_to_end:
            self._since, self._stalled = math.inf, ""
            trying = asyncio.create_task(self._connect())
            await asyncio.wait([trying, over], return_when=asyncio.FIRST_COMPLETED)
            if self._told_to_end:
                trying.cancel()
                await asyncio.gather(trying, return_exceptions=True)
                return
            why = trying.result()
            final = isinstance(why, RefusedError) and why.retry_after is None
            self.peer.disconnected(why, final)
            if final:
                return
            if time.monotonic() - self._since > STEADY:
                pauses = self._pauses()
            pause = next(pauses)
            if isinstance(why, RefusedError):
                pause += why.retry_after or 0.0
            await asyncio.wait([over], timeout=pause)

    async def _connect(self) -> StreamVlmError:
        """Connect, and talk until the connection ends; why it did."""
        try:
            async with _ConnectThere(
                self.address.target,
                additional_headers=self.address.headers,
                subprotocols=[Subprotocol(protocol.SUBPROTOCOL)],
                compression=None,
                proxy=None,
                open_timeout=OPEN,
                ping_interval=PING,
                ping_timeout=PONG,
                close_timeout=CLOSE,
                max_size=LARGEST_EVENT,
                logger=_LOG,
            ) as socket:
                try:
                    await self._talk(socket)
                finally:
                    if not self._told_to_end:
                        socket.transport.abort()  # what is behind it may be long gone
        except StreamVlmError as fault:
            return fault
        except InvalidStatus as fault:
            return _refused(fault.response)
        except NegotiationError:
            return RefusedError(f"the server does not speak {protocol.SUBPROTOCOL}")
        except ConnectionClosed as fault:
            return DisconnectedError(self._stalled or _ending(fault))
        except (asyncio.TimeoutError, TimeoutError):
            return DisconnectedError("the server does not answer")
        except (OSError, WebSocketException) as fault:
            return DisconnectedError(_unreachable(fault))
        except Exception as fault:  # of this package: other cameras' connections go on
            self.peer.report(fault)
            return DisconnectedError(f"internal error: {fault!r}; see the log")
        return DisconnectedError("the connection was ended")

    async def _talk(self, socket: ClientConnection) -> None:
        with self._patience(socket, OPEN, "the server does not begin with session.created"):
            told = _event(await socket.recv())
        if not isinstance(told, protocol.SessionCreated):
            raise ProtocolError("the server does not begin with session.created")
        if socket.subprotocol != protocol.SUBPROTOCOL:
            raise RefusedError(f"the server does not speak {protocol.SUBPROTOCOL}")
        ours = protocol.SessionUpdate(settings={"commit": "client"})
        await self._send(socket, protocol.encoded(ours))
        self._since = time.monotonic()
        self.peer.connected(told)
        tasks = [asyncio.create_task(one) for one in (self._listen(socket), self._say(socket))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._told_to_end:
                # A farewell: it ends in any case.
                with contextlib.suppress(Exception), self._patience(socket, CLOSE, ""):
                    await self._say_rest(socket)

    async def _listen(self, socket: ClientConnection) -> None:
        while True:
            self.peer.hear(_event(await socket.recv()))
            self._wake.set()  # there may be room for the next chunk

    async def _say(self, socket: ClientConnection) -> None:
        while True:
            self._wake.clear()
            while (what := self.peer.take()) is not None:
                if not isinstance(what, Chunk):
                    await self._send(socket, protocol.encoded(what))
                    continue
                try:
                    messages = list(self.peer.packed(what))
                except Exception as fault:  # a picture that cannot be packed: the next one may
                    self.peer.fail(what, fault)
                    continue
                for message in messages:
                    await self._send(socket, message)
                await self._send(socket, protocol.encoded(protocol.Commit()))
            await self._wake.wait()

    async def _say_rest(self, socket: ClientConnection) -> None:
        while (what := self.peer.take()) is not None:
            if not isinstance(what, Chunk):
                await socket.send(protocol.encoded(what))

    async def _send(self, socket: ClientConnection, message: str | bytes) -> None:
        with self._patience(socket, SEND, f"the server took nothing for {SEND:.0f} s"):
            await socket.send(message)

    @contextlib.contextmanager
    def _patience(self, socket: ClientConnection, seconds: float, words: str) -> Iterator[None]:
        """What takes longer ends the connection. (`asyncio.wait_for` loses a cancellation that
        comes as what it waits for is done, before Python 3.12.)"""

        def end() -> None:
            self._stalled = words
            socket.transport.abort()

        timer = asyncio.get_running_loop().call_later(seconds, end)
        try:
            yield
        finally:
            timer.cancel()


def growing_pauses() -> Iterator[float]:
    """Each about twice as long as the one before, and no two robots' alike."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE)


class LinkThread:
    """One thread for the connections of all cameras.

    It has what the node uses of a `stream_vlm_ros.session.engine_thread.EngineThread`.
    """

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)

    def add(self, link: Link) -> None:
        """Take on a connection; before the start."""
        self._links.append(link)

    def start(self) -> None:
        """Connect all."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End all connections and the thread; True if it ended within ``timeout`` seconds."""
        for link in self._links:
            link.peer.stop()
            link.end()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        async def keep(link: Link) -> None:
            try:
                await link.run()
            except Exception as fault:  # of this package: other cameras' connections go on
                link.peer.report(fault)
                words = f"internal error: {fault!r}; see the log"
                link.peer.disconnected(DisconnectedError(words), True)

        async def run() -> None:
            await asyncio.gather(*map(keep, self._links), return_exceptions=True)

        asyncio.run(run())


def _event(message: str | bytes) -> ServerEvent:
    event = protocol.server_event(message)
    check_values("", event)
    if isinstance(event, protocol.SessionEnding):
        raise RefusedError(event.message or event.code, event.retry_after)
    return event


def _refused(response: Response) -> RefusedError:
    """From what the server answers instead of a WebSocket."""
    status = response.status_code
    words = _words_of(bytes(response.body or b""))
    if not words or words.startswith("<"):  # a page, of a proxy
        words = response.reason_phrase
    told = f"the server refuses the connection: {cut(words)} (HTTP {status})"
    if status in FINAL:
        return RefusedError(told)
    try:
        after = float(response.headers.get("Retry-After", "0"))
    except ValueError:  # a date
        after = LONGEST_PAUSE
    return RefusedError(told, after)


def _words_of(body: bytes) -> str:
    """What a body of JSON says, be it {"error": {"message": ...}} or {"detail": ...}."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip()
    for name in ("error", "message", "detail"):
        if isinstance(told, dict) and name in told:
            told = told[name]
    return str(told)


def _unreachable(fault: Exception) -> str:
    if isinstance(fault, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(fault, gaierror):
        return f"no machine of that name is found ({fault.strerror})"
    return in_words(fault)


def _ending(fault: ConnectionClosed) -> str:
    if fault.rcvd is not None:
        reason = cut(fault.rcvd.reason) or f"code {fault.rcvd.code}"
        return f"the server ended the connection: {reason}"
    if fault.sent is not None and "ping" in fault.sent.reason:
        return f"the server did not answer for {PONG:.0f} s"
    return "the connection broke off"
