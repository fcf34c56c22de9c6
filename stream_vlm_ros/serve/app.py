# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The application: sessions over HTTP and WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from stream_vlm_ros import __version__
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.completions import openai_router
from stream_vlm_ros.serve.keys import Keys, owner_of
from stream_vlm_ros.serve.live import refuse, serve_camera
from stream_vlm_ros.serve.metrics import Metrics
from stream_vlm_ros.serve.refusals import body_of, status_of
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.sessions import Sessions

Scope = MutableMapping[str, Any]  # as ASGI has them
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SAFE = ("GET", "HEAD", "OPTIONS")
OPEN_TO_ALL = ("/health",)
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]


def create_app(sessions: Sessions, keys: Keys, *, metrics: Metrics | None = None) -> FastAPI:
    """The application over these sessions.

    It neither begins nor ends them: who made them calls `Sessions.load` and `Sessions.drain`.

    Args:
        keys: who is let in. Endpoints find whose key it was by `owner_of`.
    """
    metrics = metrics or Metrics(sessions)
    app = FastAPI(title="stream_vlm", version=__version__, openapi_url=None, redirect_slashes=False)
    app.state.sessions = sessions
    app.add_middleware(KeyMiddleware, keys=keys)
    app.add_exception_handler(StreamVlmError, _answer)
    app.add_exception_handler(Exception, _failed)
    for status in (404, 405):  # in the form of all errors
        app.add_exception_handler(status, _nothing_there)
    app.include_router(openai_router(sessions))

    @app.get("/health")
    async def health() -> Response:
        """Whether sessions can be opened."""
        state = "ok" if sessions.is_loaded else "draining" if sessions.draining else "loading"
        state = "failed" if state == "ok" and not sessions.is_alive else state
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics")
    def scraped() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/sessions")
    async def listed(request: Request) -> dict[str, Any]:
        """The sessions of this key."""
        found = sessions.all(owner_of(request))
        return {"object": "list", "data": [_described(one) for one in found]}

    @app.delete("/v1/sessions/{id}")
    async def delete(request: Request, id: str) -> dict[str, Any]:
        """End a session and forget what it saw, what was saved by itself, too."""
        await asyncio.to_thread(sessions.close, id, owner_of(request))
        return {"id": id, "object": "session.deleted", "deleted": True}

    @app.websocket(protocol.PATH)
    async def camera(socket: WebSocket) -> None:
        """A camera; see `stream_vlm_ros.remote.protocol`."""
        await serve_camera(socket, sessions, owner_of(socket))

    return app


class KeyMiddleware:
    """In front of everything: who has no key reaches nothing but `OPEN_TO_ALL`."""

    def __init__(self, app: App, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        heads: dict[str, str] = {}
        for name, value in scope["headers"]:
            key, told = name.decode("latin-1").lower(), value.decode("latin-1")
            heads[key] = f"{heads[key]}, {told}" if key in heads else told
        is_http = scope["type"] == "http"
        try:
            if not (is_http and scope["path"] in OPEN_TO_ALL):
                safe = is_http and scope["method"] in SAFE
                scope["owner"] = self._keys.owner(heads, safe)
        except StreamVlmError as fault:
            if is_http:
                status, headers = status_of(fault)
                await JSONResponse(body_of(fault), status, headers)(scope, receive, sent)
            else:
                await refuse(WebSocket(scope, receive, sent), fault)
            return
        await self._app(scope, receive, sent)


class NothingThereError(StreamVlmError):
    """No such address, or not with this method."""

    code = "NOT_FOUND"


def _nothing_there(request: Request, fault: Exception) -> Response:
    asked = cut(f"{request.method} {request.url.path}")
    return _answer(request, NothingThereError(f"there is no {asked} here (docs/serving.md)"))


def _failed(request: Request, fault: Exception) -> Response:
    """Of what nobody raised on purpose; the server logs it."""
    return _answer(request, StreamVlmError("internal error; see the log of the server"))


def _answer(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, StreamVlmError)
    status, headers = status_of(fault)
    return JSONResponse(body_of(fault), status, headers)


def _described(session: Session) -> dict[str, Any]:
    memory = session.memory
    return {
        "id": session.id,
        "object": "session",
        "connected": session.connection is not None,
        "ready": session.ready.done(),
        "restored": session.restored,
        "gap": session.gap,
        "frames": memory.frames,
        "oldest_ns": memory.oldest_ns,
        "newest_ns": memory.newest_ns,
        "tokens": memory.length,
        "max_tokens": memory.cap,
        "counters": session.counters.snapshot(),
    }
