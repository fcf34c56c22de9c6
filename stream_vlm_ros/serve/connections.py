# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Connections as they come in: how many there are, and what each may take of the server, whoever it
is.

Nothing is known of a client before the head of its request is there, not even whether it has a key.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections import OrderedDict, deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.serve.refusals import body_of, status_of

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn._types import ASGISendEvent
    from websockets.frames import Frame

HEAD_TIMEOUT = 10  # s for the head of a request, from the connection or the answer before it
LONGEST_HEAD = 64 << 10  # bytes
UNREAD_TIMEOUT = 30.0  # s that a client may take nothing of what is sent to it, or be gone
SMALL = 1024  # bytes: a piece of a message that is shorter and not the last is of no use
MANY, MANY_PERIOD = 1000, 10.0  # so many pings and small pieces in so many seconds end a connection
MOST_FILES = 65_536  # of the process, where it may have so many
BACKLOG = 64  # connections that are accepted at once, before any of them is looked at
TOO_MANY_OF_THEM = 1008  # code of a WebSocket's end: against the rules of the server


class HeadError(StreamVlmError):
    """What was sent is no request."""

    code = "INVALID_REQUEST"


class HeadTooLongError(HeadError):
    """The head of a request does not end."""

    code = "HEAD_TOO_LARGE"


class HeadTooSlowError(HeadError):
    """The head of a request does not come to its end."""

    code = "TOO_SLOW"


class ConnectionLimitError(StreamVlmError):
    """There are as many connections as the process may have files for."""

    code = "TOO_MANY_CONNECTIONS"
    retry_after = 10.0  # s


def allow_files() -> None:
    """Let this process have as many files as it may, up to `MOST_FILES`: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections() -> int:
    """How many connections there may be: half of the files, as sessions have files, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES)) // 2


class State(ServerState):
    """What the connections of a server share.

    Attributes:
        idle: those that wait for a request or take nothing of an answer, the first the longest.
            One whose request has come is still there until it is its turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle: OrderedDict[Http, None] = OrderedDict()


class Http(H11Protocol):
    """Ends a connection that does not come to its request.

    Where there are too many connections, the one goes that has waited longest for its next request
    or takes nothing of the answer.
    """

    def __init__(self, config: Config, server_state: State, *given: Any, **named: Any) -> None:
        super().__init__(config, server_state, *given, **named)
        self.most = most_connections()
        self.timeout_keep_alive = HEAD_TIMEOUT
        self._idle = server_state.idle

    @property
    def may_go(self) -> bool:
        """Whether it waits for a request, or its client takes nothing of the answer."""
        return self.timeout_keep_alive_task is not None or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _give_up_unread(transport)
        if len(self.connections) > self.most:
            while self._idle:
                longest, _ = self._idle.popitem(last=False)
                if longest.may_go:
                    longest.transport.abort()
                    self.connections.discard(longest)
                    break
            else:
                words = f"there are {self.most:,} connections already: come again later"
                self._refuse(ConnectionLimitError(words))
                return
        self._idle[self] = None
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()  # uvicorn leaves it where there is an ``exc``
        self._idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Not as uvicorn does: a piece of a head would stop the timer.
        self.conn.receive_data(data)
        self.handle_events()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        self._idle.pop(self, None)

    def on_response_complete(self) -> None:
        self._idle[self] = None
        self._idle.move_to_end(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._idle[self] = None

    def timeout_keep_alive_handler(self) -> None:
        if self.conn.trailing_data[0] and not self.transport.is_closing():
            words = f"the request did not come to its end within {HEAD_TIMEOUT:g} s"
            self._refuse(HeadTooSlowError(words))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What was read is no HTTP; called where that was found out."""
        fault = sys.exc_info()[1]
        if getattr(fault, "error_status_hint", 400) == 431:
            words = f"the head of a request has at most {LONGEST_HEAD:,} bytes"
            self._refuse(HeadTooLongError(words))
        else:
            why = str(fault).partition(": ")[0]
            self._refuse(HeadError(f"this is no request of HTTP/1.1: {cut(why)}"))

    def _refuse(self, fault: StreamVlmError) -> None:
        """Answer in the place of the application, unless that has begun to, and end it."""
        if self.conn.our_state is h11.IDLE:
            self.transport.write(_response(fault))
        elif self.conn.our_state is h11.SEND_RESPONSE:
            self.transport.write(_response(fault, self.scope["method"]))
        if self.cycle is not None:  # it says nothing more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


class WebSockets(WebSocketsSansIOProtocol):
    """Ends a connection that costs more than it brings.

    Knows that a handshake is complete with a refusal too, which uvicorn logs as an error.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._small: deque[float] = deque(maxlen=MANY)  # when pings and small pieces came

    async def send(self, message: ASGISendEvent) -> None:
        if self.close_sent and message["type"] == "websocket.send":
            raise ClientDisconnected  # it was ended here; uvicorn calls that a fault of who sends
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            fault = HeadError(f"this opens no WebSocket: {cut(str(self.conn.handshake_exc))}")
            self.transport.write(_response(fault))
            self.transport.close()

    def handle_ping(self) -> None:
        if not self._is_too_much():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if not self._is_too_much():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        is_small = not event.fin and len(event.data) < SMALL
        if not (is_small and self._is_too_much()):
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn logs it as a fault of its own
                self.frames = []
                self._fail(1007, "a text is no UTF-8")
                return
        super().send_receive_event_to_app()

    def _is_too_much(self) -> bool:
        now = self.loop.time()
        if len(self._small) == MANY and now - self._small[0] < MANY_PERIOD:
            words = f"more than {MANY:,} pings or small pieces came in {MANY_PERIOD:.0f} s"
            self._fail(TOO_MANY_OF_THEM, words)
            return True
        self._small.append(now)
        return False

    def _fail(self, code: int, words: str) -> None:
        if not self.close_sent:
            self.conn.fail(code, words)
            self.handle_parser_exception()


def _response(fault: StreamVlmError, method: str = "GET") -> bytes:
    """The last that is sent on a connection."""
    status, headers = status_of(fault)
    content = msgspec.json.encode(body_of(fault))
    told = {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
        **headers,
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in told.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head if method == "HEAD" else head + content


def _give_up_unread(transport: asyncio.Transport) -> None:
    """A client that takes nothing, be it gone, is found out by the system."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, option, round(1000 * UNREAD_TIMEOUT))
