# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""OpenAI's chat completions over live sessions: any of its clients asks a robot's memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from stream_vlm_ros.errors import cut
from stream_vlm_ros.factory import card_of
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.chat_request import ChatRequest, RequestError
from stream_vlm_ros.serve.keys import owner_of
from stream_vlm_ros.serve.refusals import body_of
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.session_errors import SessionUnknownError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.serve.telling import response_of
from stream_vlm_ros.session.question import WRITING, Outcome, Ticket

LIVE = {"x-accel-buffering": "no"}  # no proxy keeps pieces back
READ_TIMEOUT = 20.0  # s for a request's body
FINISH = {"choice": "stop"}  # as OpenAI has it; the others are named alike


class RequestTooLargeError(RequestError):
    """A request of more bytes than are read."""

    code = "TOO_LARGE"


class RequestBrokenOffError(RequestError):
    """Who asked has gone before the request was whole; nobody reads the answer."""


class RequestTooSlowError(RequestError):
    """A request whose body does not end."""

    code = "TOO_SLOW"


def openai_router(sessions: Sessions) -> APIRouter:
    """``/v1/chat/completions`` and ``/v1/models``, of an application that answers errors."""
    router = APIRouter()
    served = card_of(sessions.settings).name

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        usual = sessions.settings.max_new_tokens
        wanted = ChatRequest.of(await _content(request), usual)
        session = _asked(request, wanted, sessions, served)
        # It may begin again from its saved memory; a request that ends meanwhile leaves that alone.
        await asyncio.shield(asyncio.wrap_future(session.ready))
        return await _answered(request, wanted, session)

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": _models(served, sessions, owner_of(request))}

    @router.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        for row in _models(served, sessions, owner_of(request)):
            if row["id"] == name:
                return row
        raise SessionUnknownError(f"there is no model, and no session, {cut(name)!r}")

    return router


def _models(served: str, sessions: Sessions, owner: str) -> list[dict[str, Any]]:
    """What answers, and each session, which is asked by its own name."""
    begun = [(served, sessions.began)]
    begun += [(session.id, session.began) for session in sessions.all(owner)]
    return [
        {"id": name, "object": "model", "created": int(when), "owned_by": "stream_vlm"}
        for name, when in begun
    ]


async def _content(request: Request) -> bytes:
    try:
        return await asyncio.wait_for(_read(request), READ_TIMEOUT)
    except asyncio.TimeoutError:
        words = f"the request did not come to its end within {READ_TIMEOUT:g} s"
        raise RequestTooSlowError(words) from None


async def _read(request: Request) -> bytes:
    content, is_whole = bytearray(), False
    while not is_whole:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestBrokenOffError("the request broke off")
        content += message.get("body", b"")
        if len(content) > protocol.MAX_EVENT_BYTES:
            raise RequestTooLargeError(
                f"a request has at most {protocol.MAX_EVENT_BYTES:,} bytes. Only text is taken: "
                "pictures reach the session as frames of its camera"
            )
        is_whole = not message.get("more_body", False)
    return bytes(content)


def _asked(request: Request, wanted: ChatRequest, sessions: Sessions, served: str) -> Session:
    """The session of the header, or else ``model`` is its name."""
    model, named = wanted.model, request.headers.get(protocol.SESSION_HEADER, "")
    if named and model not in (named, served):
        raise RequestError(
            f"{protocol.SESSION_HEADER} names the session {cut(named)}, so that model is its name "
            f"or {served!r}, not {cut(model)!r}",
            "model",
        )
    try:
        session = sessions.find_or_restore(named or model, owner_of(request))
    except SessionUnknownError as fault:
        if named or model != served:
            raise SessionUnknownError(f"{fault}; GET /v1/models names those of this key") from None
        raise RequestError(
            f"{model!r} is what answers; of which session, say by its name as model, or in the "
            f"header {protocol.SESSION_HEADER}: GET /v1/models names those of this key",
            "model",
        ) from None
    if wanted.question.history in ("auto", "always") and not session.settings.has_history:
        raise RequestError("this server keeps no history (--history)", "stream_vlm.history")
    return session


class _Growing:
    """An answer on its way from the engine's thread to the event loop.

    However slowly it is read, no more of it waits than the text there is.
    """

    def __init__(self) -> None:
        self.text = ""
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._outcome: Future[Outcome] = Future()

    def follow(self, ticket: Ticket) -> None:
        """Until its outcome is there."""
        self._outcome = ticket.future
        self._outcome.add_done_callback(lambda _: self._tell())

    def progress(self, state: str, text: str) -> None:
        """Called in the engine's thread."""
        if state == WRITING:
            self.text = text
            self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
            self._loop.call_soon_threadsafe(self._news.set)

    async def news(self) -> Outcome | None:
        """Wait until the text has grown, or for the outcome, which is returned."""
        await self._news.wait()
        self._news.clear()
        return self._outcome.result() if self._outcome.done() else None


async def _answered(request: Request, wanted: ChatRequest, session: Session) -> Response:
    growing = _Growing()
    ticket = session.ask(wanted.question, growing.progress)
    growing.follow(ticket)
    watch = asyncio.create_task(_cancel_when_gone(request, ticket))
    passed_on = False
    try:
        outcome = await growing.news()  # a refusal has a status of its own: none is sent before
        while outcome is None and not wanted.stream:
            outcome = await growing.news()
        if outcome is not None and outcome.error is not None:
            raise outcome.error
        said = _Completion(wanted, session.id)
        if wanted.stream:
            passed_on = True
            events = _events(said, growing, outcome, ticket, watch)
            return StreamingResponse(events, media_type="text/event-stream", headers=LIVE)
        assert outcome is not None
        return JSONResponse(said.whole(outcome))
    finally:
        if not passed_on:
            watch.cancel()
            ticket.cancel()


async def _cancel_when_gone(request: Request, ticket: Ticket) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.cancel()


async def _events(
    said: _Completion,
    growing: _Growing,
    outcome: Outcome | None,
    ticket: Ticket,
    watch: asyncio.Task[None],
) -> AsyncIterator[bytes]:
    try:
        shown = 0
        yield said.piece({"role": "assistant", "content": ""})
        while True:
            text = growing.text if outcome is None else outcome.answer
            if len(text) > shown:
                yield said.piece({"content": text[shown:]})
                shown = len(text)
            if outcome is not None:
                break
            outcome = await growing.news()
        if outcome.error is not None:
            yield _event(body_of(outcome.error))
            return
        for end in said.ends(outcome):
            yield end
        yield b"data: [DONE]\n\n"
    finally:
        watch.cancel()
        ticket.cancel()


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(told) + b"\n\n"


class _Completion:
    """One answer in OpenAI's form, whole or in pieces."""

    def __init__(self, wanted: ChatRequest, session: str) -> None:
        self._wanted, self._session = wanted, session
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._head = {
            "id": self._id,
            "created": int(time.time()),
            "model": wanted.model,
        }

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """The answer to who did not want it streamed."""
        message = {"role": "assistant", "content": outcome.answer, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _why(outcome)}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(outcome),
            "stream_vlm": self._extension(outcome),
        }

    def piece(self, delta: dict[str, Any], why: str | None = None, **more: Any) -> bytes:
        """An event of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}
        return self._chunk([choice], **more)

    def ends(self, outcome: Outcome) -> list[bytes]:
        """The last events of a stream."""
        last = [self.piece({}, _why(outcome), stream_vlm=self._extension(outcome))]
        if self._wanted.include_usage:
            last.append(self._chunk([], usage=_usage(outcome)))
        return last

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": None} if self._wanted.include_usage else {}
        head = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        return _event({**head, **usage, **more})

    def _extension(self, outcome: Outcome) -> dict[str, Any]:
        """What OpenAI has no name for: `stream_vlm_ros.remote.protocol.Response`, without what is
        told by OpenAI's names."""
        rest: dict[str, Any] = msgspec.to_builtins(response_of(self._id, outcome))
        for name in ("id", "status", "text", "finish_reason", "prompt_tokens", "answer_tokens"):
            rest.pop(name, None)
        return {"session": self._session, **rest}


def _why(outcome: Outcome) -> str:
    return FINISH.get(outcome.finish_reason, outcome.finish_reason)


def _usage(outcome: Outcome) -> dict[str, Any]:
    """What was read and written. Of what was read the memory was computed before: it is cached."""
    read = outcome.cache_length + outcome.fetched_tokens + outcome.prompt_tokens
    written = outcome.answer_tokens
    if outcome.choice_tokens:
        written = outcome.choice_tokens[outcome.choice_index] - 1  # without the end of the turn
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": outcome.cache_length},
    }
