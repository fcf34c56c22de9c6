# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console's server: the page, pictures and thumbnails, on one loop.

Needs the extra ``web``. Nothing that it serves comes from another host, and it asks none.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import nicegui
import uvicorn
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import Response
from nicegui import ui

from stream_vlm_ros.access import Access

from .clock import clock_text
from .gate import Gate
from .live_memory import LiveMemory, Picture
from .newest import Newest
from .page import Page
from .time_line import NewestLine

RECONNECT = 10.0  # s that a page's answers wait for its viewer, whose network was away
JPEG = "image/jpeg"
LOCAL = Access()


def make_app(memories: Sequence[LiveMemory]) -> FastAPI:
    """The application over these memories, which begin and end with it.

    One in a process: NiceGUI has its state for all of it.
    """
    newest = [Newest(memory) for memory in memories]
    lines = [NewestLine() for _ in memories]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for memory in memories:
            await memory.start()
        try:
            yield
        finally:
            for memory in memories:
                await memory.close()

    app = FastAPI(title="stream_vlm", lifespan=lifespan, openapi_url=None)

    @app.get("/cameras/{index}/picture")
    async def picture(index: int, after: int = -1) -> Response:
        """The newest picture; with ``after``, the next one but that."""
        found = await newest[_known(index, memories)].after(after)
        headers = {
            "X-Picture-Number": str(found.number),
            "X-Picture-Stamp": str(found.stamp_ns),
            "Cache-Control": "no-store",
        }
        return Response(found.jpeg, media_type=JPEG, headers=headers)

    @app.websocket("/cameras/{index}/pictures")
    async def pictures(viewer: WebSocket, index: int) -> None:
        """The newest picture each time that the viewer says it has shown the last one."""
        feed = newest[_known(index, memories)]
        await viewer.accept()
        number = -1
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                next_one = asyncio.ensure_future(feed.after(number))
                gone = asyncio.ensure_future(viewer.receive())
                await asyncio.wait((next_one, gone), return_when=asyncio.FIRST_COMPLETED)
                if not next_one.done():  # nothing is said before a picture comes: it went away
                    next_one.cancel()
                    return
                found = next_one.result()
                number = found.number
                await viewer.send_bytes(framed(found))
                if (await gone)["type"] == "websocket.disconnect":
                    return

    @app.get("/cameras/{index}/thumbnails/{stamp_ns}")
    async def thumbnail(index: int, stamp_ns: int, size: int = 320) -> Response:
        """The kept picture next to that time."""
        memory = memories[_known(index, memories)]
        data = await memory.thumbnail(stamp_ns, max(16, min(size, 1024)))
        if data is None:
            raise HTTPException(404, "no picture of that time is kept")
        return Response(data, media_type=JPEG, headers={"Cache-Control": "max-age=60"})

    @ui.page("/")
    def page() -> None:
        Page(memories, lines).build()

    # NiceGUI would build a page, and keep it a while, for every path that there is not.
    nicegui.app.exception_handler(404)(http_exception_handler)
    ui.run_with(
        app,
        title="stream_vlm",
        dark=None,  # as the viewer's system has it
        language="en-US",
        reconnect_timeout=RECONNECT,
        binding_refresh_interval=None,
        tailwind=False,
        show_welcome_message=False,
    )
    return app


def framed(picture: Picture) -> bytes:
    """A picture as it goes to a viewer: the length of its time's text, the text, the JPEG."""
    text = clock_text(picture.stamp_ns).encode()
    return bytes([len(text)]) + text + picture.jpeg


async def serve(
    memories: Sequence[LiveMemory],
    access: Access = LOCAL,
    *,
    listening: socket.socket | None = None,
) -> None:
    """Serve until cancelled; the memories are closed then.

    Args:
        access: who is let in, and where is listened.
        listening: a bound socket, instead of that host and port.
    """
    config = uvicorn.Config(
        Gate(make_app(memories), access),
        host=access.host,
        port=access.port,
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(None if listening is None else [listening]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        if not serving.done():  # else it was a signal, after which it has ended in order
            server.should_exit = True
            await serving
        raise


class _Server(uvicorn.Server):
    """Leaves signals to who runs the loop: uvicorn raises them again within its task."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _known(index: int, memories: Sequence[LiveMemory]) -> int:
    if not 0 <= index < len(memories):
        raise HTTPException(404, f"there is no camera {index}")
    return index
