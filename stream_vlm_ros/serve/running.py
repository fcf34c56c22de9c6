# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A server that is drained before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from fastapi import FastAPI

from stream_vlm_ros.console import plural
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.connections import (
    BACKLOG,
    LONGEST_HEAD,
    Http,
    State,
    WebSockets,
    allow_files,
)
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.sessions import Sessions

FAREWELLS = 3.0  # s for the last words to all clients
PING, PONG = 20.0, 20.0  # s between two pings, and for the answer


class Server(uvicorn.Server):
    """Leaves signals to who runs the loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = State()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def spare_what_stays() -> None:
    """Leave all that there is now out of later garbage collections. Once a process, when the model
    is loaded: a full one would look through it, and halt all sessions for 0.1 s and more."""
    gc.collect()
    gc.freeze()


def make_server(app: FastAPI, ping: float = PING, pong: float = PONG) -> Server:
    """What serves an application.

    Args:
        ping, pong: seconds between two pings on a WebSocket, and for the answer: one that is gone
            without a word is found out.
    """
    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=3,
            backlog=BACKLOG,
            http=Http,
            h11_max_incomplete_event_size=LONGEST_HEAD,
            ws=WebSockets,
            ws_max_size=protocol.MAX_FRAME_BYTES + 1024,
            ws_ping_interval=ping,
            ws_ping_timeout=pong,
            ws_per_message_deflate=False,  # pictures are dense; and none unpacks to more
        )
    )


async def serve(
    app: FastAPI,
    sessions: Sessions,
    listening: socket.socket,
    drain_seconds: float,
    tell: Callable[[str], None] = lambda words: None,
) -> None:
    """Serve until cancelled; then answers end, memories are saved and clients are told. ``tell`` is
    told of that."""
    allow_files()
    server = make_server(app)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        await asyncio.shield(serving)
    finally:
        await asyncio.shield(_end(server, serving, sessions, drain_seconds, tell))


async def _end(
    server: Server,
    serving: asyncio.Task[None],
    sessions: Sessions,
    drain_seconds: float,
    tell: Callable[[str], None],
) -> None:
    ending = sessions.all()
    with contextlib.suppress(OSError, SystemExit):  # nobody reads it any more
        tell(f"Ending {plural(len(ending), 'session')}, within {drain_seconds:g} s")
    await asyncio.to_thread(sessions.drain, drain_seconds)
    with contextlib.suppress(OSError, SystemExit):
        tell(farewell(ending))
    over = [asyncio.create_task(one.wait_until_over()) for one in list(sessions.connections)]
    if over:  # what clients were told goes out, if they read it
        await asyncio.wait(over, timeout=FAREWELLS)
    server.should_exit = True
    await serving


def farewell(ended: Sequence[Session]) -> str:
    """What has become of the memories of sessions that have ended."""
    seen = [one for one in ended if one.has_begun and one.memory.latest_ns is not None]
    saved = [one for one in seen if one.is_saved]
    words = ["Ended"]
    if saved:
        words.append(f"{plural(len(saved), 'memory', 'memories')} saved")
    if lost := len(seen) - len(saved):
        why = "see the log" if all(one.file.path for one in seen) else "--memory-folder keeps them"
        words.append(f"{plural(lost, 'memory', 'memories')} not saved ({why})")
    return ", ".join(words)
