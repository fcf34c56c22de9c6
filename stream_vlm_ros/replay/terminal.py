# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the commands show while they work: progress, and an answer as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text

from stream_vlm_ros.console import (
    CLOCK,
    bytes_text,
    duration_text,
    plural,
    printable,
    say,
    span_text,
)
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.forgotten import GUESS, is_forgotten
from stream_vlm_ros.progress import TimeLeft, make_bar
from stream_vlm_ros.replay.ages import age_text, correction
from stream_vlm_ros.replay.feeding import Fed
from stream_vlm_ros.replay.records import history_reach
from stream_vlm_ros.sources import Source

if TYPE_CHECKING:
    from stream_vlm_ros.engine import (
        AnswerMetrics,
        CacheInfo,
        ChoiceMetrics,
        InferenceEngine,
    )


MAX_STRETCHES = 4  # of time, of what the memory holds, that are told one by one


class WatchingBar:
    """A bar over the source's seconds, on terminals only; called with the sums after each chunk."""

    def __init__(self, console: Console, source: Source, until: float | None) -> None:
        ends = [end for end in (source.duration, until) if end is not None]
        seen = TextColumn("{task.completed:.0f} s, {task.fields[frames]} frames")
        self._bar = make_bar(console, seen, TimeLeft())
        self._task = self._bar.add_task(
            f"Watching {printable(source.name)}", total=min(ends) if ends else None, frames=0
        )

    def __enter__(self) -> WatchingBar:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def __call__(self, fed: Fed) -> None:
        seconds = ((fed.last_ns or 0) - (fed.first_ns or 0)) / SECOND
        self._bar.update(self._task, completed=seconds, frames=fed.frames)


class Dialogue:
    """Asks an engine and prints question, answer and times; with no console it prints nothing.

    Args:
        start: the source's time from which the seconds that are shown count.
    """

    def __init__(self, engine: InferenceEngine, out: Console | None, start: float = 0.0) -> None:
        self._engine = engine
        self._out = out
        self._start = start
        self._shown = ""  # of the answer that is being written

    def ask(
        self,
        question: str,
        choices: list[str] | None,
        max_new_tokens: int,
        about: tuple[float, float] | None = None,
    ) -> dict[str, Any]:
        """Ask one question; it, the answer, the choices and the metrics."""
        metrics: AnswerMetrics | ChoiceMetrics
        self._print(Text(printable(question), style="bold"))
        if choices:
            answer, metrics = self._engine.ask_choice(question, choices, about=about)
            for line in choice_lines(
                choices, metrics.scores, metrics.mean_scores, metrics.choice_index
            ):
                self._print(line)
        else:
            self._shown = ""
            answer, metrics = self._engine.ask(
                question, max_new_tokens, on_token=self._grow, about=about
            )
            self._grow(answer)
            self._print(Text("" if self._live else printable(answer)))
        for line in end_of_answer(
            answer,
            [(one.start, one.end, one.tier, one.score) for one in metrics.episodes],
            metrics.newest_timestamp or 0.0,
            (metrics.ttft, metrics.latency, metrics.get("answer_tokens")),
            self._start,
            guess=self._is_a_guess(question, metrics.newest_timestamp or 0.0),
        ):
            self._print(line)
        return {
            "question": question,
            "answer": answer,
            "choices": choices or [],
        } | metrics.as_dict()

    def _is_a_guess(self, question: str, newest: float) -> bool:
        info = self._engine.get_cache_info()
        spans = [*info["time_spans"]]
        # As of a node's answer, see `is_a_guess` of the client.
        for tier in info.get("tiers", ()):
            if tier.name == "pictures" and tier.oldest is not None:
                spans.append((tier.oldest, tier.newest))
        return is_forgotten(question, [(newest - begin, newest - end) for begin, end in spans])

    @property
    def _live(self) -> bool:
        return self._out is not None and self._out.is_terminal

    def _grow(self, text: str) -> None:
        """Print what is new of an answer, on a terminal."""
        text = printable(text)
        if self._live and self._out is not None and text.startswith(self._shown):
            self._out.file.write(text[len(self._shown) :])
            self._out.file.flush()
            self._shown = text

    def _print(self, text: Text) -> None:
        if self._out is not None:
            say(self._out, text)


def choice_lines(
    choices: Sequence[str], scores: Sequence[float], means: Sequence[float], chosen: int
) -> Iterator[Text]:
    """Each choice with its log-probability, and that of a token of it on average."""
    for index, (choice, score, mean) in enumerate(zip(choices, scores, means, strict=True)):
        figures = f"(log-probability {score:.2f}, {mean:.2f} a token)"
        yield Text(f"{'> '[index != chosen]} {printable(choice)}  {figures}")


def end_of_answer(
    answer: str,
    episodes: Sequence[tuple[float, float, str, float]],
    at: float,
    cost: tuple[float, float, int | None],
    start: float | None = None,
    ending: str = "",
    guess: bool = False,
) -> Iterator[Text]:
    """What follows an answer: what the stamps correct in it, what it rests on, what it cost.

    Args:
        episodes: of each from when to when, in seconds of the source, its tier and its score.
        at: when it was asked.
        cost: seconds to the first token and to the last, and the tokens.
        start: the source's time from which seconds count; None: they have no start that is known.
        ending: a word on how it ended.
        guess: nothing is held of the time that the question is about.
    """
    if guess:
        yield Text(f"  {GUESS}", style="yellow")
    if told := correction(answer, [(begin, end) for begin, end, *_ in episodes], at):
        yield Text(f"  {told}.", style="yellow")
    for begin, end, tier, score in episodes:
        words = f"{tier}, score {score:.2f}"
        if start is not None:  # the time of day, too, where the stamps are those of a clock
            when = f"at {begin - start:.1f}-{end - start:.1f} s"
            words = f"{span_text(begin, end)}, {words}" if begin >= CLOCK else words
        else:
            when = span_text(begin, end)
        yield Text(f"  seen {when}, {age_text(end, at)}\n  ({words})", style="dim")
    ttft, latency, tokens = cost
    length = "" if tokens is None else f", {plural(tokens, 'token')}"
    yield Text(
        f"first token after {ttft:.2f} s, answer after {latency:.2f} s{length}{ending}\n",
        style="dim",
    )


def memory_text(info: CacheInfo, fed: Fed) -> str:
    """What the memory holds after a source was fed, and what that took: two lines, or three."""
    start = (fed.first_ns or 0) / SECOND
    stretches = [f"{a - start:.1f}-{b - start:.1f} s" for a, b in info["time_spans"]]
    if len(stretches) > MAX_STRETCHES:
        between = len(stretches) - MAX_STRETCHES
        stretches[1 : between + 1] = [f"{between} more"]
    spans = ", ".join(stretches)
    speed = fed.frames / max(fed.seconds, 1e-9)
    if kept := info.get("frame_memory"):  # of the delayed batch engine
        encoded, stored = kept["frames_encoded"], kept["stored_frames"]
        # The model sees pairs: a frame without a partner is shown to it twice.
        padded = "padded to pairs, " if encoded > stored else ""
        return (
            f"{plural(stored, 'frame')} kept ({bytes_text(kept['stored_bytes'])}): "
            f"{spans} of the source; {encoded} encoded for the last question "
            f"({padded}{info['cache_seq_length']:,} tokens).\n"
            f"{plural(fed.frames, 'frame')} seen in {fed.seconds:.1f} s ({speed:.1f} frames/s)."
        )
    held = (
        f"The memory holds {info['cache_seq_length']:,} of {info['max_cache_tokens']:,} tokens "
        f"({bytes_text(info['cache_memory_bytes'])}): {spans} of the source."
    )
    if (reach := history_reach(info)) is not None:
        frames = max(tier.frames for tier in info["tiers"])
        taken = sum(tier.bytes for tier in info["tiers"])
        held += (
            f"\nIts history holds {plural(frames, 'frame')} ({bytes_text(taken)}): "
            f"{reach[0] - start:.1f}-{reach[1] - start:.1f} s."
        )
    if not fed.frames:  # a loaded memory alone
        return held
    return (
        f"{held}\n{plural(fed.frames, 'frame')} in {plural(fed.chunks, 'chunk')} encoded in "
        f"{fed.seconds:.1f} s ({speed:.1f} frames/s); {fed.evicted_tokens:,} tokens forgotten."
        + (
            f"\nPauses of {duration_text(fed.closed_seconds)} are left out for the model."
            if fed.closed_seconds
            else ""
        )
    )
