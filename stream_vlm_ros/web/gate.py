# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The door of the console: who comes in, and how many at a time.

Plain ASGI, in front of whatever is served. Another site's page that a viewer has open reaches
nothing, neither by its scripts nor by a name that it gives this machine.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stream_vlm_ros.access import Access, is_of_own_page
from stream_vlm_ros.errors import StreamVlmError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_VIEWERS = 24
KEY_PAGE = "/key"
OPENING = 20.0  # s that a page may take to open its websocket
COOKIE = "stream_vlm"  # and the port, as a browser keeps the cookies of a machine's ports together
LONGEST_FORM = 4096  # bytes
SAFE = ("GET", "HEAD", "OPTIONS")
# No other page shows ours in it, where a viewer could be made to press its buttons, nor a picture.
OURS_ALONE = [
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
REFUSED = 4403  # close code of a websocket
_LOOK = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<title>stream_vlm</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:28rem;
margin:20vh auto 0;padding:0 1rem}input,button{font:inherit;padding:.5rem .75rem;width:100%;
box-sizing:border-box;margin-top:.5rem}</style><main><h1>stream_vlm</h1>"""
_FORM = """<form method="post" action="/key"><label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form>"""


class TooManyViewersError(StreamVlmError):
    """So many look already that one more would cost the others."""

    code = "TOO_MANY_VIEWERS"


class Gate:
    """In front of an ASGI application.

    A page is one viewer from when it is loaded, as long as its websocket under ``pages`` is open.

    Args:
        access: with its key, which comes by the form at `KEY_PAGE` and then in a cookie, or as
            ``Authorization: Bearer KEY``.
        pages: how the path of a page's websocket begins.
    """

    def __init__(
        self, app: App, access: Access, pages: str = "/_nicegui_ws", most: int = MOST_VIEWERS
    ) -> None:
        self.viewers = 0
        self._opening: deque[float] = deque()  # when pages were loaded that have no websocket yet
        self._app, self._access, self._pages, self._most = app, access, pages, most
        # Of this process alone: a cookie tells nobody the key, and ends with the server.
        self._cookie = hmac.new(secrets.token_bytes(32), access.key.encode(), hashlib.sha256)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._on_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._on_websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _on_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        heads = _heads(scope)
        if not self._is_ours(heads, scope["method"] in SAFE):
            await _say(send, 403, "<p>This address is not the console's own.</p>")
        elif scope["path"] == KEY_PAGE and scope["method"] == "POST":
            await self._take_key(heads, receive, send)
        elif not self._knows_key(heads):
            await _say(send, 401, f"<p>Type the key of this console.</p>{_FORM}")
        elif scope["path"].startswith(self._pages):  # by which more could look than are counted
            await _say(send, 400, "<p>The console needs websockets.</p>")
        elif scope["path"] == "/" and (refusal := self._refusal(self._count_opening())) is not None:
            await _say(send, 503, f"<p>{escape(str(refusal))}</p>")
        else:
            if scope["path"] == "/" and scope["method"] == "GET":
                self._opening.append(time.monotonic())
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of one who goes away before there is an answer, a middleware of Starlette's says that
        there is none."""
        gone = False

        async def received() -> MutableMapping[str, Any]:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *OURS_ALONE]}
            await send(message)

        try:
            await self._app(scope, received, sent)
        except RuntimeError:
            if not gone:
                raise

    async def _on_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        heads, page = _heads(scope), scope["path"].startswith(self._pages)
        if (
            not self._is_ours(heads, safe=False)
            or not self._knows_key(heads)
            or (page and self._refusal() is not None)
        ):
            await receive()  # what opens it
            await send({"type": "websocket.close", "code": REFUSED})
            return
        self.viewers += page
        if page and self._count_opening():
            self._opening.popleft()
        try:
            await self._app(scope, receive, send)
        finally:
            self.viewers -= page

    def _is_ours(self, heads: dict[str, str], safe: bool) -> bool:
        """Whether it was sent by our page, or by none; ``safe``: it changes nothing."""
        return is_of_own_page(heads, self._access.host, safe, bool(self._access.key))

    def _knows_key(self, heads: dict[str, str]) -> bool:
        if not self._access.key:
            return True
        scheme, _, given = heads.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._access.admits(given.strip())
        # By hand: `http.cookies` drops all for one that it cannot read.
        cookies = (one.strip().partition("=") for one in heads.get("cookie", "").split(";"))
        known = self._cookie.hexdigest().encode()
        return any(
            name == _cookie_name(heads) and hmac.compare_digest(value.encode(), known)
            for name, _, value in cookies
        )

    async def _take_key(self, heads: dict[str, str], receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more and len(body) <= LONGEST_FORM:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        given = parse_qs(body.decode("latin-1")).get("key", [""])[0]
        if not self._access.admits(given.strip()):
            await _say(send, 401, f'<p role="alert">This is not the key.</p>{_FORM}')
            return
        told = f"{_cookie_name(heads)}={self._cookie.hexdigest()}"
        cookie = f"{told}; Path=/; HttpOnly; SameSite=Strict"
        await _say(send, 303, "", (b"location", b"/"), (b"set-cookie", cookie.encode()))

    def _count_opening(self) -> int:
        while self._opening and time.monotonic() - self._opening[0] > OPENING:
            self._opening.popleft()
        return len(self._opening)

    def _refusal(self, opening: int = 0) -> TooManyViewersError | None:
        if self.viewers + opening < self._most:
            return None
        return TooManyViewersError(
            f"{self._most} look at this already, and no more can: close one of the pages, then "
            "load this one again"
        )


def _heads(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _cookie_name(heads: dict[str, str]) -> str:
    """By the port that the browser knows, which a tunnel may have made another one."""
    try:
        port = urlsplit(f"//{heads.get('host', '')}").port
    except ValueError:  # no address
        port = None
    return f"{COOKIE}_{port or 80}"


async def _say(send: Send, status: int, words: str, *heads: tuple[bytes, bytes]) -> None:
    body = f"{_LOOK}{words}</main></html>".encode()
    told = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *OURS_ALONE,
        *heads,
    ]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})
