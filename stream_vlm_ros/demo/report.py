# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the demo prints: each question with its answer as it comes, and a summary. No ROS here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.status import Status
from rich.text import Text

from stream_vlm_ros.console import (
    bytes_text,
    duration_text,
    make_console,
    one_line,
    plural,
    printable,
)
from stream_vlm_ros.forgotten import GUESS
from stream_vlm_ros.session.counters import ON_PURPOSE

MARGIN = 10  # columns in front of questions and answers, where the time stands


Stretches = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Memory:
    """The memory after an answer, as ``CacheStatus`` tells it."""

    length: int
    cap: int
    memory_bytes: int = 0
    chunks: int = 0
    frames: int = 0
    evictions: int = 0
    evicted_tokens: int = 0


@dataclass(frozen=True)
class Exchange:
    """One question and what came of it. Times in seconds; ``at`` since the first frame."""

    at: float
    question: str
    choices: tuple[str, ...]
    answer: str
    error: str
    ttft: float
    latency: float
    seen_ago: Stretches  # of time in memory: begin, end
    memory: Memory
    right: bool | None = None
    truth: str = ""
    judged: bool = False  # the truth is known; ``right`` is None where the memory had moved on
    typed: bool = False  # by somebody at the terminal, who sees what comes of it
    forgotten: bool = False  # it is about a time of which nothing is held: the answer is a guess


@dataclass
class Frames:
    """The way of the frames: received = ingested + pending + every cause of dropping."""

    received: int = 0
    ingested: int = 0
    pending: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return self.received == self.ingested + self.pending + sum(self.dropped.values())


# Words for the counters dropped_* of CacheStatus; one not named here is shown by its own name.
CAUSES = {
    "sampling": "between two samples",
    "inactive": "before the node was active",
    "paused": "while it was paused",
    "invalid_image": "unusable pictures",
    "invalid_stamp": "unusable stamps",
    "time_jump": "at a jump of time",
    "overflow": "too many for the model",
    "reset": "at a reset",
    "error": "refused by the engine",
}


class Spinning(Status):
    """A line that spins; its texts hold no markup, and steer nothing."""

    def __init__(self, console: Console, text: str) -> None:
        super().__init__(Text(one_line(text)), console=console, spinner="dots")

    def say(self, text: str) -> None:
        """Show another text."""
        self.update(Text(one_line(text)))


class Report:
    """Prints to ``console`` and remembers what the summary needs."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self.exchanges: list[Exchange] = []
        self.frames = Frames()
        self.longest = 0  # tokens, the most the memory ever held
        self.cap = 0
        self.last: Memory | None = None
        self.failures: list[str] = []

    def note_memory(self, memory: Memory, frames: Frames) -> None:
        """Take in a status message; what must always hold is checked on each."""
        self.last, self.frames = memory, frames
        self.longest, self.cap = max(self.longest, memory.length), memory.cap
        if memory.length > memory.cap:
            self.fail(f"the memory held {memory.length} tokens, above its bound of {memory.cap}")
        if not frames.balanced:
            self.fail(f"the frames do not add up: {frames}")

    def fail(self, reason: str) -> None:
        """Remember a reason why the demo failed; each is told once."""
        if reason not in self.failures:
            self.failures.append(reason)

    def spinning(self, text: str) -> Spinning:
        """A line that spins while its block waits, with ``text`` as it is."""
        return Spinning(self.console, text)

    def add(self, exchange: Exchange) -> None:
        """Print one exchange."""
        self.exchanges.append(exchange)
        out = self.console
        time = f"{exchange.at:6.1f} s  "
        question = Text(one_line(exchange.question), style="bold")
        if exchange.choices:
            choices = printable(" / ".join(exchange.choices))
            question.append(f"  ({choices})", style="not bold dim")
        self._print(Text(time, style="dim"), question)
        if exchange.error:
            if not exchange.typed:
                asked = one_line(exchange.question)
                self.fail(f"the question {asked!r} was not answered: {exchange.error}")
            error = printable(exchange.error)
            self._print(Text(" " * MARGIN), Text(f"not answered: {error}", style="red"))
        else:
            marks = {True: Text("right  ", "green"), False: Text("wrong  ", "red"), None: Text("")}
            if exchange.judged:
                marks[None] = Text("not judged, more was seen meanwhile  ", "yellow")
            answer = Text(one_line(exchange.answer) or "(no words)", style="cyan")
            if exchange.right is False:
                answer.append(f"   it was: {printable(exchange.truth)}", style="not bold dim")
            guess = Text(f"{GUESS}  " * exchange.forgotten, "yellow")
            self._print(Text(" " * MARGIN), Text.assemble(marks[exchange.right], guess, answer))
            self._print(Text(" " * MARGIN), Text(self._figures(exchange), style="dim"))
        out.print()

    def _figures(self, exchange: Exchange) -> str:
        memory = exchange.memory
        cap = f"{memory.cap:,}"
        full = bar(memory.length, memory.cap, ascii_only=not self.unicode)
        return (
            f"first token {exchange.ttft:.2f} s, answer {exchange.latency:.2f} s   "
            f"{full} {memory.length:>{len(cap)},}/{cap} tokens   {seen_text(exchange.seen_ago)}"
        )

    @property
    def unicode(self) -> bool:
        return self.console.encoding.lower().startswith("utf")

    def _print(self, margin: Text, text: Text) -> None:
        """``text`` behind ``margin``, wrapped inside its own column."""
        room = max(20, self.console.width - MARGIN)
        for index, line in enumerate(text.wrap(self.console, room)):
            line.rstrip()
            self.console.print(
                Text.assemble(margin if index == 0 else Text(" " * MARGIN), line), soft_wrap=True
            )

    def summary(self) -> None:
        """Print what came of it all."""
        self.console.print(Text("Summary", style="bold"))
        for label, text in self.summary_rows():
            self._print(Text(f"{label:<{MARGIN}}"), Text(text))
        for reason in self.failures:
            self.console.print(Text(f"Failed: {printable(reason)}", style="red"), soft_wrap=True)

    def summary_rows(self) -> list[tuple[str, str]]:
        """The summary as (label, sentence)."""
        done = [e for e in self.exchanges if not e.error]
        judged = [e for e in done if e.right is not None]
        rows = [("Answers", f"{len(done)} of {plural(len(self.exchanges), 'question')} answered")]
        if judged:
            right = sum(bool(e.right) for e in judged)
            rows[0] = ("Answers", f"{rows[0][1]}; {right} of {len(judged)} right")
            if missed := sum(e.judged and e.right is None for e in done):
                rows[0] = (rows[0][0], f"{rows[0][1]}, {missed} not judged")
        if done:
            first, whole = [e.ttft for e in done], [e.latency for e in done]
            rows.append(
                (
                    "Speed",
                    f"first token after {mean(first):.2f} s on average ({min(first):.2f} to "
                    f"{max(first):.2f} s), whole answer after {mean(whole):.2f} s",
                )
            )
        if self.last is not None:
            rows += [("Memory", self._memory_row(self.last)), ("Frames", self._frames_row())]
            lost = {c: n for c, n in self.frames.dropped.items() if n and c not in ON_PURPOSE}
            text = ", ".join(f"{n:,} {CAUSES.get(c, c)}" for c, n in lost.items())
            rows.append(("Lost", text or "none"))
        return rows

    def _memory_row(self, memory: Memory) -> str:
        held = "the bound held" if self.longest <= self.cap else "the bound was broken"
        text = (
            f"{held}: never more than {self.longest:,} of {self.cap:,} tokens "
            f"({bytes_text(memory.memory_bytes)} now)"
        )
        if memory.evictions:
            text += (
                f"; {memory.evicted_tokens:,} old tokens forgotten in "
                f"{plural(memory.evictions, 'eviction')}"
            )
        elif room := self._room():
            text += f"; at this pace it is full after {duration_text(room)} and then forgets"
        return text

    def _room(self) -> float:
        """Seconds of video that the bound holds, by the last answer's; 0 where nobody can tell."""
        told = [e for e in self.exchanges if e.seen_ago and e.memory.length]
        if not told:
            return 0.0
        span = told[-1].seen_ago[0][0] - told[-1].seen_ago[-1][1]
        return span * told[-1].memory.cap / told[-1].memory.length

    def _frames_row(self) -> str:
        frames = self.frames
        parts = [f"{frames.ingested:,} taken into memory"]
        if self.last is not None and self.last.chunks:
            parts[0] += f" in {plural(self.last.chunks, 'chunk')}"
        if frames.pending:
            parts.append(f"{frames.pending:,} waiting")
        parts += [f"{n:,} {CAUSES.get(c, c)}" for c, n in frames.dropped.items() if n]
        return f"{frames.received:,} received: {', '.join(parts)}"


def bar(length: int, cap: int, width: int = 10, ascii_only: bool = False) -> str:
    """How full the memory is: ``[####......]``."""
    full = 0 if cap <= 0 else min(width, round(width * length / cap))
    if ascii_only:
        return "[" + "#" * full + "." * (width - full) + "]"
    return "█" * full + "░" * (width - full)


def seen_text(seen_ago: Stretches) -> str:
    """Stretches of time in memory, in seconds before now: ``seen 18.1 to 16.6 and 12.0 to 0.4 s
    ago``. Of many the oldest and the newest, and how many lie between."""
    if not seen_ago:
        return "nothing seen"
    told = [f"{begin:.1f} to {end:.1f}" for begin, end in seen_ago]
    if len(told) > 3:
        return f"seen {told[0]} s ago, {len(told) - 2} stretches between, and {told[-1]} s ago"
    return f"seen {' and '.join(told)} s ago"


def mean(values: list[float]) -> float:
    """The arithmetic mean of at least one value."""
    return sum(values) / len(values)
