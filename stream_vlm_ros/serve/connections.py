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
from collections import deque
from typing import TYPE_CHECKING, Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.serve.refusals import body_of, status_of

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from websockets.frames import Frame

HEAD_TIMEOUT = 10.0  # s for the head of a request, from the connection or the answer before it
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


class Http(H11Protocol):
    """Ends a connection that does not come to its request.

    Where there are too many connections, the one goes that has waited longest for its next request
    or takes nothing of the answer.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.most = most_connections()
        self.waits_since = self.loop.time()  # for a request
        self._has_come = False  # a part of one
        self._is_websocket = False

    @property
    def waits(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def may_go(self) -> bool:
        """Whether it waits, or its client takes nothing of the answer."""
        return self.waits or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _give_up_unread(transport)
        if len(self.connections) > self.most:
            idle = (one for one in self.connections if isinstance(one, Http) and one.may_go)
            longest = min(idle, key=lambda one: one.waits_since)
            if longest is self:
                words = f"there are {self.most:,} connections already: come again later"
                self._refuse(ConnectionLimitError(words))
                return
            longest.transport.abort()
            self.connections.discard(longest)
        self._limit_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._has_come = self.waits
        self._limit_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._is_websocket = True
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        self.waits_since, self._has_come = self.loop.time(), False
        super().on_response_complete()

    def _limit_head(self) -> None:
        if self._is_websocket or not self.waits or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        left = self.waits_since + HEAD_TIMEOUT - self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(left, self._give_up)

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._has_come:
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
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, headers = status_of(fault)
            content = msgspec.json.encode(body_of(fault))
            told = {
                "content-type": "application/json",
                "content-length": str(len(content)),
                "connection": "close",
                **headers,
            }
            for event in (
                h11.Response(
                    status_code=status, headers=[*told.items()], reason=STATUS_PHRASES[status]
                ),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
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
            content = msgspec.json.encode(body_of(fault))
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(content)}\r\n"
            head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
            self.transport.write(head.encode() + content)
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


def _give_up_unread(transport: asyncio.Transport) -> None:
    """A client that takes nothing, be it gone, is found out by the system."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, option, round(1000 * UNREAD_TIMEOUT))
