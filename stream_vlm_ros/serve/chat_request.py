# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From the body of a chat completion to a question: what of OpenAI's API is honoured here.

Whatever would change the answer and is not honoured is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.remote.protocol import Integer
from stream_vlm_ros.session.question import MAX_THUMBNAILS, Question

MAX_STOPS = 4  # as OpenAI's
# Values that ask for nothing but what is done here anyway; any other value is refused.
PLAIN: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
# They name who asks, and change no answer.
LABELS = ("metadata", "prompt_cache_key", "safety_identifier", "user")
# They shape how an answer is written: of choices none is.
OF_WRITING = ("max_tokens", "max_completion_tokens", "top_p", "stop", "seed")

# Of the source's time, as far as 64 bits of nanoseconds reach.
_End = Annotated[float, msgspec.Meta(ge=-9.2e9, le=9.2e9)] | None
_EndNs = Integer | None


class RequestError(StreamVlmError):
    """What is wrong with a request; ``param`` names where."""

    code = "INVALID_REQUEST"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Extension(msgspec.Struct, forbid_unknown_fields=True):
    """The field ``stream_vlm`` of a request.

    Attributes:
        choices: the answer is the likeliest of these.
        about: the source's time that the question is about, from and to, in seconds; null: no
            limit on that side. ``about_ns``: the same in nanoseconds.
        keep_exchange: question and answer stay in the memory.
        refuse_forgotten: if nothing of that time is held; else answered anyway.
        history: whether to look back behind the memory; "": as the session has it.
        thumbnails: pictures with each episode that the answer names.
    """

    choices: tuple[str, ...] = ()
    about: tuple[_End, _End] | None = None
    about_ns: tuple[_EndNs, _EndNs] | None = None
    keep_exchange: bool = False
    refuse_forgotten: bool = True
    history: Literal["", "never", "auto", "always"] = ""
    thumbnails: Annotated[int, msgspec.Meta(ge=0, le=MAX_THUMBNAILS)] = 0


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    stop: str | list[str] = []
    seed: int | None = None
    stream_vlm: Extension = msgspec.field(default_factory=Extension)


@dataclass(frozen=True)
class ChatRequest:
    """What a client wants.

    Attributes:
        model: as it was named: a session, or the model that is served.
        question: with every setting decided.
        stream: the answer is wanted as it grows; ``include_usage``: and what it cost, behind it.
    """

    model: str
    question: Question
    stream: bool
    include_usage: bool

    @classmethod
    def of(cls, content: bytes, max_new_tokens: int) -> ChatRequest:
        """Of a request's body; ``max_new_tokens`` where it does not say. Raises RequestError."""
        body = _body(content)
        earlier, text = _turns(body.messages)
        stops = [body.stop] if isinstance(body.stop, str) else body.stop
        if len(stops) > MAX_STOPS or not all(stops):
            raise RequestError(f"stop takes up to {MAX_STOPS} texts, none empty", "stop")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise RequestError(
                "max_tokens is the older name of max_completion_tokens: give one of them",
                "max_tokens",
            )
        if body.stream_options is not None and not body.stream:
            raise RequestError("stream_options go with stream: true", "stream_options")
        wanted = body.stream_vlm
        if wanted.keep_exchange and earlier:
            raise RequestError(
                "keep_exchange puts the exchange into the session's memory, where later questions "
                "find it: send its question alone, without the earlier turns",
                "stream_vlm.keep_exchange",
            )
        if wanted.choices and earlier:
            raise RequestError(
                "choices are scored without earlier turns: leave them out", "messages"
            )
        question = Question(
            text,
            choices=wanted.choices,
            temperature=body.temperature,
            keep_exchange=wanted.keep_exchange,
            about_ns=_about_ns(wanted),
            refuse_forgotten=wanted.refuse_forgotten,
            history=wanted.history,
            thumbnails=wanted.thumbnails,
            earlier=earlier,
            top_p=body.top_p,
            stop=tuple(stops),
            seed=body.seed,
            max_new_tokens=body.max_tokens or body.max_completion_tokens or max_new_tokens,
        )
        usage = body.stream_options is not None and body.stream_options.include_usage
        return cls(body.model, question, body.stream, usage)


def _body(content: bytes) -> _Body:
    try:
        given = msgspec.json.decode(content)
        if not isinstance(given, dict):
            raise RequestError("the body must be a JSON object")
        said = {name: value for name, value in given.items() if value is not None}
        for name, value in [*said.items()]:
            if name in PLAIN:
                if not any(_is(value, plain) for plain in PLAIN[name]):
                    raise RequestError(
                        f"{name} = {cut(msgspec.json.encode(value).decode(), 80)} is not "
                        f"supported here{_instead(name)}",
                        name,
                    )
                del said[name]
            elif name in LABELS:
                del said[name]
            elif name not in _Body.__struct_fields__:
                raise RequestError(f"{cut(name)} is no parameter that is known here", cut(name))
        body = msgspec.convert(said, _Body)
    except msgspec.ValidationError as fault:  # "Expected `int`, got `str` - at `$.max_tokens`"
        words, _, place = str(fault).partition(" - at `$.")
        place = place.rstrip("`")
        words = f"{place}: {words}" if place else words
        raise RequestError(cut(words), place or None) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise RequestError(f"the body is no JSON: {cut(str(fault))}") from None
    if body.stream_vlm.choices:
        written = [name for name in OF_WRITING if name in said]
        written += ["temperature"] * (body.temperature > 0)
        written += ["stream_vlm.keep_exchange"] * body.stream_vlm.keep_exchange
        if written:
            raise RequestError(
                f"{written[0]} does not go with choices: of these the likeliest is told, and "
                "nothing is written",
                written[0],
            )
    return body


def _is(value: Any, plain: Any) -> bool:
    """Whether they are the same; JSON's true is not 1."""
    return bool(value == plain) and isinstance(value, bool) == isinstance(plain, bool)


def _instead(name: str) -> str:
    if name in ("tools", "functions"):
        return ": the session answers from what it saw, and calls nothing"
    if name == "response_format":
        return ": an answer is text; with stream_vlm.choices it is one of those you give"
    return ""


def _turns(messages: list[dict[str, Any]]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Earlier questions with their answers, and the question."""
    texts = [_text(message, f"messages[{at}]") for at, message in enumerate(messages)]
    if len(texts) % 2 == 0:
        raise RequestError(
            "messages are a user's and the assistant's in turns, of which the last is the question",
            "messages",
        )
    for at, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[at % 2]:
            raise RequestError(
                f"messages[{at}] is {message['role']}'s: they are a user's and the assistant's in "
                "turns, of which the last is the question",
                f"messages[{at}].role",
            )
    return tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1]


def _text(message: dict[str, Any], where: str) -> str:
    role = message.get("role")
    if role in ("system", "developer"):
        raise RequestError(
            f"{where}: a {role} message cannot be given at this server: the system prompt is the "
            "chat template's own, and stands before the session's first frame",
            f"{where}.role",
        )
    if role not in ("user", "assistant"):
        raise RequestError(f"{where}: role must be user or assistant", f"{where}.role")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], {}):
            raise RequestError(
                f"{where}: {cut(name)} is not supported here", f"{where}.{cut(name)}"
            )
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError(f"{where}.content must be text, or a list of parts", f"{where}.content")
    for at, part in enumerate(parts):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{where}.content[{at}] is {cut(str(part.get('type')))}: only text is taken. "
                "Pictures reach the session as frames of its camera",
                f"{where}.content[{at}]",
            )
    return "".join(part["text"] for part in parts)


def _about_ns(wanted: Extension) -> tuple[int, int] | None:
    if wanted.about is not None and wanted.about_ns is not None:
        raise RequestError(
            "about is in seconds, about_ns in nanoseconds: give one of them", "stream_vlm.about"
        )
    if wanted.about is not None:
        begin, end = (None if one is None else round(one * SECOND) for one in wanted.about)
    elif wanted.about_ns is not None:
        begin, end = wanted.about_ns
    else:
        return None
    if begin is not None and end is not None and begin > end:
        raise RequestError("about begins after it ends", "stream_vlm.about")
    return begin or 0, end or 0
