# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""In front of one replica of several: requests that have come to it by chance are refused."""

from __future__ import annotations

from fastapi import WebSocket
from fastapi.datastructures import Headers
from fastapi.responses import JSONResponse

from stream_vlm_ros.access import is_loopback
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.remote.protocol import PATH, SESSION_HEADER
from stream_vlm_ros.serve.app import App, Message, Receive, Scope, Send
from stream_vlm_ros.serve.keys import Keys, NotAdmittedError
from stream_vlm_ros.serve.live import refuse
from stream_vlm_ros.serve.refusals import body_of, status_of

REPLICA_HEADER = b"x-stream-vlm-replica"  # of an answer: who gave it
SESSIONS_PATH, QUESTIONS_PATH = "/v1/sessions/", "/v1/chat/"


class SessionMissingError(StreamVlmError):
    """A request about a session does not say about which, where the proxies read it."""

    code = "SESSION_MISSING"


class Named:
    """Refuses what does not name its session where the proxies read it, and says who answered.

    The proxies know a session by its header alone: without it they would choose any replica.
    """

    def __init__(self, app: App, replica: str, keys: Keys) -> None:
        self._app, self._replica, self._keys = app, replica, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                told = (REPLICA_HEADER, self._replica.encode())
                message = {**message, "headers": [*message.get("headers", ()), told]}
            await send(message)

        try:
            self._check_client(scope)
            self._check_session(scope)
        except StreamVlmError as fault:
            if scope["type"] == "websocket":
                await refuse(WebSocket(scope, receive, sent), fault)
            else:
                status, headers = status_of(fault)
                await JSONResponse(body_of(fault), status, headers)(scope, receive, sent)
            return
        await self._app(scope, receive, sent)

    def _check_client(self, scope: Scope) -> None:
        """Without a key, only a proxy's own machine is let in: where it listens is not known."""
        host = (scope.get("client") or ("",))[0]
        if not self._keys.keys and not is_loopback(host):
            raise NotAdmittedError(
                "this cluster has no key, and so serves its own machines alone: give it --key-file"
            )

    def _check_session(self, scope: Scope) -> None:
        path = scope["path"]
        if not path.startswith((PATH, QUESTIONS_PATH, SESSIONS_PATH)):
            return
        name = Headers(scope=scope).get(SESSION_HEADER, "")
        if not name:
            raise SessionMissingError(
                f"name the session in the header {SESSION_HEADER}: by it, and by nothing else, "
                "this cluster finds the server that has the session"
            )
        if path.startswith(SESSIONS_PATH) and path.removeprefix(SESSIONS_PATH) != name:
            raise SessionMissingError(
                f"the header {SESSION_HEADER} names {cut(name)}, and the path another session"
            )
