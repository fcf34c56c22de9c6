# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm ask --node``, ``watch`` and ``node ...``: a node that runs, from a terminal."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.console import plural, printable
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError, below, runs_here
from stream_vlm_ros.forgotten import GUESS
from stream_vlm_ros.processes.children import run_until_told

if TYPE_CHECKING:
    from stream_vlm_ros.client import StreamVlmClient

T = TypeVar("T")
NODE_NAME = re.compile(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
LOOK = 1.0  # s between two looks whether a node that is watched is there
MAX_STAMP = 2**31 - 1  # s, of ROS
LEFT_OUT = ("data",)  # of JSON: pictures


def node_names(incomplete: str) -> list[str]:
    """Names of the nodes that run, for a shell's completion; none where ROS cannot be asked."""
    try:
        names = find()
    except Exception:  # a shell that completes a word shows no errors
        return []
    return sorted({name for name in names if name.startswith(incomplete)})


def _setting_names(incomplete: str) -> list[str]:
    rows = Settings.table().values()
    return [row.name for row in rows if NODE in row.takers and row.name.startswith(incomplete)]


NODE_OPTION = typer.Option(
    "--node",
    metavar="NAME",
    help="Which node that runs; without a name the only one: three seconds to be sure.",
    autocompletion=node_names,
)
NodeName = Annotated[str, NODE_OPTION]
Wait = Annotated[
    float, typer.Option(min=0.1, max=3600, help="Seconds to wait for the node to be there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


# Options of ask: what a node that runs takes, and what nothing else does.
ONLY_WITH_NODE = {"source_name", "cancel_after", "wait"}
WITH_NODE = ONLY_WITH_NODE | {
    "video", "questions", "node", "choice", "choices", "about", "as_json", "max_new_tokens",
    "history",
}  # fmt: skip


class AskCommand(TyperCommand):
    """``stream-vlm ask``, of a source or, with ``--node``, of a node that runs.

    ``--node`` may stand without a name: what follows is one only where it looks like one. The
    callback then finds an `Ask` in the context.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(named(args)))

    def invoke(self, ctx: Any) -> Any:
        origins = {name: ctx.get_parameter_source(name) for name in ctx.params}
        given = {name for name, origin in origins.items() if origin.name == "COMMANDLINE"}
        if ctx.params["node"] is None:
            self._refuse(given & ONLY_WITH_NODE, "of use only with --node")
            return super().invoke(ctx)
        self._refuse(given - WITH_NODE, "of no use with --node")
        values = {name: ctx.params[name] for name in given}
        node = values["node"]
        if "about" in values:
            check_about(values["about"])
        if "cancel_after" in values:
            within("--cancel-after", values["cancel_after"], 0, MAX_STAMP)
        first = [values["video"]] if "video" in values else []  # of the questions
        ctx.obj = Ask(
            questions_of(f"--node {node}", [*first, *values.get("questions", [])]),
            choices_of(values.get("choice"), values.get("choices")),
            values.get("about"),
            _names(values.get("source_name")),
            values.get("max_new_tokens", 0),
            values.get("history", ""),
            values.get("cancel_after"),
            values.get("as_json", False),
        )
        # What of it is allowed is for the node to say, not for the other settings here.
        defaults = Settings()
        ctx.params |= {name: getattr(defaults, name) for name in ("max_new_tokens", "history")}
        return super().invoke(ctx)

    def _refuse(self, names: set[str], why: str) -> None:
        options = [p.opts[0] for p in self.params if p.name in names]
        if options:
            are = "is" if len(options) == 1 else "are"
            raise InvalidParameterError(f"{', '.join(options)} {are} {why}.")


def questions_of(asked: str, questions: list[str] | None) -> list[str]:
    """``questions``, if there are any to ask what ``asked`` names."""
    if not questions:
        place = asked.strip() or "VIDEO"
        raise InvalidParameterError(f'Say what to ask: stream-vlm ask {place} "What is there?"')
    if not all(question.strip() for question in questions):
        raise InvalidParameterError("A question is empty.")
    return questions


def choices_of(one_by_one: list[str] | None, together: str | None) -> list[str]:
    """The choices of ``--choice``, given once for each, and of ``--choices``."""
    return [*(one_by_one or []), *map(str.strip, together.split(",") if together else ())]


def within(option: str, seconds: float, least: float, most: float) -> None:
    """Raise InvalidParameterError for seconds outside of this, such as nan, which typer lets by."""
    if not least <= seconds <= most:
        raise InvalidParameterError(
            f"{option} must be from {least:.0f} to {most:.0f} s, not {seconds:g}."
        )


def check_about(about: tuple[float, float]) -> None:
    """Raise InvalidParameterError for what is no stretch of time."""
    for end in about:
        within("--about", end, -MAX_STAMP, MAX_STAMP)
    if about[0] > about[1]:
        raise InvalidParameterError(
            f"--about ends at {about[1]:g} s, before it begins at {about[0]:g} s."
        )


def named(args: list[str]) -> Iterator[str]:
    """Arguments in which ``--node`` has a name, be it ""."""
    for argument, following in zip(args, [*args, ""][1:], strict=True):
        yield argument
        if argument == "--":
            yield from args[args.index("--") + 1 :]
            return
        if argument == "--node" and not NODE_NAME.fullmatch(following):
            yield ""


def find() -> list[str]:
    """Full names of the nodes that run; one is in it twice where two bear it."""
    from stream_vlm_ros.processes.graph import check_ros

    check_ros()
    from stream_vlm_ros.client import StreamVlmClient

    return run_until_told(StreamVlmClient.find())


def _looking() -> AbstractContextManager[object]:
    return Console(stderr=True).status("Looking for the node")  # on terminals alone


def with_node(name: str, wait: float, use: Callable[[StreamVlmClient], Awaitable[T]]) -> T:
    """What ``use`` makes of a client of that node."""
    from stream_vlm_ros.processes.graph import check_ros

    within("--wait", wait, 0, 3600)
    check_ros()
    from stream_vlm_ros.client import StreamVlmClient

    async def run() -> T:
        async with AsyncExitStack() as steps:
            with _looking():
                client = await steps.enter_async_context(StreamVlmClient(name, patience=wait))
            return await use(client)

    return run_until_told(run())


def if_a_topic(text: str, question: str) -> str:
    """What to do where ``text`` names no file, but may name a topic; "" where it cannot."""
    if not text.startswith("/") or text.startswith("/dev/") or not NODE_NAME.fullmatch(text):
        return ""
    from stream_vlm_ros.processes.graph import node_command

    ask = runs_here(f"stream-vlm ask --node {shlex.quote(printable(question))}")
    start = node_command(text)
    return "\nA topic is watched by a node. These start one and ask it:" + below(start, ask)


# ask --node ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """What ``stream-vlm ask --node`` is to ask, and how."""

    questions: list[str]
    choices: list[str] = field(default_factory=list)
    about: tuple[float, float] | None = None
    source: str = ""
    max_new_tokens: int = 0
    history: str = ""
    cancel_after: float | None = None
    as_json: bool = False


def ask_node(name: str, wait: float, ask: Ask) -> bool:
    """Ask a node that runs, and print its answers; whether all of them are whole.

    Where JSON is wanted, an error of the node is in its answer; else it is raised.
    """
    out = Console(highlight=False)

    async def use(client: StreamVlmClient) -> bool:
        from stream_vlm_ros.client import AskError
        from stream_vlm_ros.plain_messages import to_dict

        answers = []
        for question in ask.questions:
            try:
                answers += await ask_one(client, question, ask, out)
            except AskError as refusal:
                if not ask.as_json:
                    raise
                answers += refusal.answers or [refusal.answer]
        try:
            await client.is_there()
        except StreamVlmError as second:  # it turned up meanwhile
            print(f"stream-vlm: which node answered is not known: {second}", file=sys.stderr)
        if ask.as_json:
            told = [to_dict(answer, LEFT_OUT) for answer in answers]
            print(json.dumps({"node": client.name, "answers": told}))
        return not any(one.error_code or one.finish_reason == "cancelled" for one in answers)

    return with_node(name, wait, use)


async def ask_one(client: StreamVlmClient, question: str, ask: Ask, out: Console) -> list[Any]:
    """The answer, or each camera's."""

    def say(text: str, style: str = "") -> None:
        if not ask.as_json:
            out.print(Text(text, style=style), soft_wrap=True)

    say(printable(question), "bold")
    about_ns = await _about_ns(client, ask.about, ask.source)
    asked = client.stream(
        question,
        ask.choices,
        about_ns=about_ns,
        source=ask.source,
        max_new_tokens=ask.max_new_tokens,
        history=ask.history,
    )
    async with asked as stream:
        timer = asyncio.ensure_future(_cancel_after(stream, ask.cancel_after))
        try:
            async for piece in stream:
                if not ask.as_json:
                    out.file.write(printable(piece))
                    out.file.flush()
            answer = await stream.answer()
        finally:
            timer.cancel()
            with suppress(asyncio.CancelledError, StreamVlmError):  # the answer says so itself
                await timer
            if stream.text:
                say("")
    answers = stream.answers or [answer]
    for one in answers:
        if len(answers) > 1:
            say(one.source, "bold")
        if not ask.as_json:
            for line in end_of(one):
                out.print(line, soft_wrap=True)
    return answers


def end_of(answer: Any) -> Iterator[Text]:
    """What follows the text of an answer, as where a source is asked."""
    from stream_vlm_ros.client.messages import is_a_guess, seconds
    from stream_vlm_ros.replay.terminal import choice_lines, end_of_answer

    scores, tokens = answer.choice_scores, answer.choice_tokens
    means = [score / max(1, count) for score, count in zip(scores, tokens, strict=True)]
    yield from choice_lines(answer.choices, scores, means, answer.choice_index)
    yield from end_of_answer(
        answer.text,
        [
            (seconds(one.span.start), seconds(one.span.end), one.tier, one.score)
            for one in answer.evidence
        ],
        seconds(answer.newest_stamp),
        (seconds(answer.ttft), seconds(answer.latency), answer.answer_tokens),
        ending="; cancelled" if answer.finish_reason == "cancelled" else "",
        guess=is_a_guess(answer),
    )


async def _cancel_after(stream: Any, seconds: float | None) -> None:
    if seconds is not None:
        await asyncio.sleep(seconds)
        await stream.cancel()


async def _about_ns(
    client: StreamVlmClient, about: tuple[float, float] | None, source: str
) -> tuple[int, int] | None:
    """Stamps from seconds; those that are not above zero count from the newest frame."""
    if about is None:
        return None
    from stream_vlm_ros.client.messages import nanoseconds

    await client.until_ready()
    newest = await client.first_status()
    newest = client.statuses.get(source, newest)
    return stamps_about(about, nanoseconds(newest.newest_stamp))


def stamps_about(about: tuple[float, float], newest: int) -> tuple[int, int]:
    """Nanoseconds that a stamp can be, of seconds of which those not above zero count from
    ``newest``."""
    last = 2**31 - 1  # s that a stamp can have
    near = (min(max(s, -float(last)), last) for s in about)
    begin, end = (round(1e9 * s) + (newest if s <= 0 else 0) for s in near)
    return max(begin, 1), max(end, 1)


def _clock(seconds: float) -> str:
    """A stamp as the time of day here, with the date where it is not today; one that is no date of
    ours in seconds."""
    if seconds < 1e9:
        return f"{seconds:.1f} s"
    then = time.localtime(seconds)
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)


# watch --------------------------------------------------------------------------------------------


class Watching:
    """Turns what a node says into lines: what is new, and not the same again."""

    LEVELS = ("OK", "WARN", "ERROR", "STALE")

    def __init__(self, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._told: dict[str, tuple[str, str, float]] = {}  # of each camera: state, counts, when
        self._health: dict[str, tuple[int, str]] = {}

    def line(self, event: Any) -> str:
        """For a CacheStatus, Answer or DiagnosticStatus; "" where there is nothing new."""
        kind = type(event).__name__
        if kind == "CacheStatus":
            return self._status(event)
        return self._answer(event) if kind == "Answer" else self._diagnostic(event)

    def _status(self, status: Any) -> str:
        from stream_vlm_ros.session.counters import ON_PURPOSE

        state = "paused" if status.paused else status.state
        dropped = sum(
            getattr(status, name)
            for name in status.get_fields_and_field_types()
            if name.startswith("dropped_") and name.removeprefix("dropped_") not in ON_PURPOSE
        )
        counted = (
            f"{status.length:,} of {status.cap:,} tokens, {plural(status.frames, 'frame')}; "
            f"{plural(status.frames_received, 'image')}, {dropped:,} dropped"
        )
        now = self._clock()
        before, counts, told_at = self._told.get(status.source, ("", "", -self._every))
        if state == before and (counted == counts or now - told_at < self._every):
            return ""
        self._told[status.source] = state, counted, now
        return _of(status.source, f"{state}: {counted}")

    def _answer(self, answer: Any) -> str:
        from stream_vlm_ros.client.errors import code_name
        from stream_vlm_ros.client.messages import is_a_guess, seconds

        if answer.error_code:
            came = f"{code_name(answer)}: {answer.error_message}"
        else:
            came = f"({GUESS}) " * is_a_guess(answer)
            came += f"{answer.text} ({seconds(answer.latency):.2f} s)"
        return _of(answer.source, f"{answer.question} -> {came}")

    def _diagnostic(self, status: Any) -> str:
        level = status.level[0]
        # The same again, but for its figures; of what is well only that it is so again.
        words = re.sub(r"\d+(\.\d+)?", "#", status.message) if level else ""
        before = self._health.get(status.name, (0, ""))
        self._health[status.name] = (level, words)
        if (level, words) == before:
            return ""
        name = self.LEVELS[level] if level < len(self.LEVELS) else str(level)
        return f"{name}: {status.name}: {status.message}"


def _of(source: str, words: str) -> str:
    """Words about one of several cameras."""
    return f"{source}: {words}" if source else words


def watch(
    node: NodeName = "",
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="End after this many seconds; else by Ctrl-C.")
    ] = None,
    every: Annotated[
        float, typer.Option(min=0, help="Seconds between two lines about its counters.")
    ] = 5.0,
    wait: Wait = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every message as a line of JSON.")
    ] = False,
) -> None:
    """Print what a node says: its status, answers, health."""
    if seconds is not None:
        within("--seconds", seconds, 0, MAX_STAMP)
    watching = Watching(every)

    def say(words: str, when: str = "") -> None:
        if words and not as_json:
            when = when or time.strftime("%H:%M:%S")
            print(when, printable(words.replace("\n", " ")), flush=True)

    async def use(client: StreamVlmClient) -> None:
        say(f"watching {client.name}")
        tasks = [asyncio.ensure_future(c) for c in (follow(client), attend(client))]
        try:
            done, _ = await asyncio.wait(
                tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def follow(client: StreamVlmClient) -> None:
        from stream_vlm_ros.plain_messages import to_dict

        async for event in client.watch():
            before = client.earlier_at(event)
            if as_json:
                told = {"kind": type(event).__name__, **to_dict(event, LEFT_OUT)}
                print(json.dumps(told | ({"earlier": True} if before else {})), flush=True)
            elif before:
                say(f"earlier: {watching.line(event)}", _clock(before / 1e9))
            else:
                say(watching.line(event))

    async def attend(client: StreamVlmClient) -> None:
        before = ""
        while True:
            try:
                now = "" if await client.is_there() else f"{client.name} has left the graph"
            except StreamVlmError as second:
                now = str(second)
            if now != before:
                words = now or f"{client.name} is there again"
                if as_json:
                    told = {
                        "kind": "Graph",
                        "node": client.name,
                        "there": not now,
                        "message": words,
                    }
                    print(json.dumps(told), flush=True)
                say(words)
                before = now
            await asyncio.sleep(LOOK)

    with_node(node, wait, use)


# node ... -----------------------------------------------------------------------------------------

node_app = typer.Typer(no_args_is_help=True, help="Set and steer a node that runs.")


@node_app.command("list")
def list_nodes(as_json: Json = False) -> None:
    """List the nodes that run, with their state."""
    with _looking():
        found = find()
    nodes = [one for name in sorted(set(found)) for one in _about(name, found.count(name))]
    if as_json:
        print(json.dumps(nodes))
        return
    if not nodes:
        from stream_vlm_ros.client.stream_vlm_client import graph_text, where_nodes_are

        print(f"No node of stream_vlm is {graph_text()}.\n{where_nodes_are()}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    columns = ["name", "camera", "state", "memory"]
    if not any(one["camera"] for one in nodes):
        columns.remove("camera")
    for column in columns:
        table.add_column(column.replace("name", "node"))
    for one in nodes:
        table.add_row(*(Text(one[key]) for key in columns))
    Console(highlight=False).print(table)


def _about(name: str, times: int) -> list[dict[str, Any]]:
    """What is known of a node, of each of its cameras."""
    if times > 1:
        known = [("", f"{times} nodes of this name: each would answer", "")]
    else:
        try:
            known = with_node(name, 5.0, _states_and_memories)
        except StreamVlmError as fault:
            known = [("", str(fault).partition("\n")[0], "")]
    return [
        {"name": name, "camera": camera, "state": state, "memory": memory}
        for camera, state, memory in known
    ]


async def _states_and_memories(client: StreamVlmClient) -> list[tuple[str, str, str]]:
    """Of each camera its name, state and memory."""
    state = await client.state()
    if state not in ("active", "inactive"):
        return [("", state, "")]
    await client.first_status()
    cameras = await client.cameras() or [""]
    until = time.monotonic() + 5.0
    while not client.statuses.keys() >= set(cameras) and time.monotonic() < until:
        await asyncio.sleep(0.05)  # each comes a moment after the other
    found = []
    for camera in cameras:
        if (status := client.statuses.get(camera)) is None:
            found.append((camera, state, ""))
            continue
        memory = f"{status.length:,} of {status.cap:,} tokens, {plural(status.frames, 'frame')}"
        found.append((camera, "paused" if status.paused else state, memory))
    return found


@node_app.command("get")
def get_settings(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SETTINGS", help="Names; all without.", autocompletion=_setting_names
        ),
    ] = None,
    node: NodeName = "",
    wait: Wait = 10.0,
    as_json: Json = False,
) -> None:
    """Print settings of a node."""
    values = with_node(node, wait, lambda client: client.get(*settings or ()))
    if as_json:
        print(json.dumps(values, default=list))
        return
    for name, value in values.items():
        print(f"{name}: {printable(json.dumps(value, default=list, ensure_ascii=False))}")


@node_app.command("set")
def set_setting(
    setting: Annotated[str, typer.Argument(metavar="SETTING", autocompletion=_setting_names)],
    value: Annotated[str, typer.Argument(metavar="VALUE")],
    node: NodeName = "",
    wait: Wait = 10.0,
) -> None:
    """Change a setting of a node.

    Such as: stream-vlm node set sample_fps 4
    """

    async def use(client: StreamVlmClient) -> None:
        before = (await client.get(setting))[setting]
        await client.set(**{setting: _like(before, setting, value)})
        after = (await client.get(setting))[setting]
        print(f"{setting}: {json.dumps(before)} -> {json.dumps(after)}")

    with_node(node, wait, use)


def _like(before: Any, name: str, text: str) -> Any:
    """``text`` as a value of the kind that the setting has."""
    if isinstance(before, str):
        return text
    if isinstance(before, Sequence):  # of texts: as YAML or JSON writes a list, or without that
        return [one.strip().strip("\"'") for one in text.strip().strip("[]").split(",")]
    words = {"true": True, "yes": True, "false": False, "no": False}
    try:
        return words[text.lower()] if isinstance(before, bool) else type(before)(text)
    except (KeyError, TypeError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}
        wanted = kind.get(type(before), "what can be given here")
        raise InvalidParameterError(f"{name} must be {wanted}, got {text!r}") from None


def _names(source: list[str] | None) -> str:
    """Of an option that may be given several times, each time with one name or several."""
    return ",".join(source or ())


def _order(order: Callable[[StreamVlmClient], Awaitable[str]], node: str, wait: float) -> None:
    print(printable(with_node(node, wait, order)))


SourceName = Annotated[
    list[str] | None,
    typer.Option(
        "--source", help="One of several cameras, or some: a,b; without it all there are."
    ),
]


@node_app.command("reset")
def reset(source: SourceName = None, node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node forget everything it has seen."""
    _order(lambda client: client.reset(_names(source)), node, wait)


@node_app.command("pause")
def pause(source: SourceName = None, node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node stop watching; it goes on answering."""
    _order(lambda client: client.pause(_names(source)), node, wait)


@node_app.command("resume")
def resume(source: SourceName = None, node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node watch again."""
    _order(lambda client: client.resume(_names(source)), node, wait)


@node_app.command("configure")
def configure(node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node load its model; then activate it."""
    _order(lambda client: client.transition("configure"), node, wait)


@node_app.command("activate")
def activate(node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node that is configured watch and answer."""
    _order(lambda client: client.transition("activate"), node, wait)


@node_app.command("deactivate")
def deactivate(node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node neither watch nor answer; it keeps its memory."""
    _order(lambda client: client.transition("deactivate"), node, wait)


@node_app.command("cleanup")
def cleanup(node: NodeName = "", wait: Wait = 10.0) -> None:
    """Let a node that is not active give its model and memory back."""
    _order(lambda client: client.transition("cleanup"), node, wait)


MemoryName = Annotated[
    str,
    typer.Argument(
        metavar="[MEMORY]", help="Name in the node's memory_folder; without one its memory_name."
    ),
]


@node_app.command("save")
def save(
    memory: MemoryName = "", source: SourceName = None, node: NodeName = "", wait: Wait = 10.0
) -> None:
    """Let a node save its memory (docs/saving.md)."""
    _order(lambda client: client.save(memory, _names(source)), node, wait)


@node_app.command("load")
def load(
    memory: MemoryName = "", source: SourceName = None, node: NodeName = "", wait: Wait = 10.0
) -> None:
    """Let a node take up a saved memory instead of its present one."""
    _order(lambda client: client.load(memory, _names(source)), node, wait)


@node_app.command("answers")
def answers(
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="Is in question or answer.")] = "",
    last: Annotated[
        float | None, typer.Option(min=0, help="Of the last so many minutes alone.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 100,
    node: NodeName = "",
    wait: Wait = 10.0,
    as_json: Json = False,
) -> None:
    """Print what a node was asked before, and what it answered."""
    if last is not None:
        within("--last", 60 * last, 0, MAX_STAMP)

    async def use(client: StreamVlmClient) -> list[Any]:
        begin = 0
        if last is not None:  # 0, as long ago as there is a clock: no limit
            begin = max(0, await client.now_ns() - round(last * 60e9))
        past = await client.past_answers(begin, 0, text, limit)
        if "; " in client.answers_kept:  # some are lost, or cannot be read
            print(f"stream-vlm: {client.answers_kept}", file=sys.stderr)
        return past

    found = with_node(node, wait, use)
    if as_json:
        from stream_vlm_ros.plain_messages import to_dict

        print(json.dumps([to_dict(one, LEFT_OUT) for one in found]))
        return
    from stream_vlm_ros.client.messages import seconds

    watching = Watching(0.0)
    for one in found:
        print(_clock(seconds(one.answered)), printable(watching.line(one.answer)))
    if not found:
        print("none", file=sys.stderr)
