# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One engine, and what it is told in the thread that owns it."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stream_vlm_ros.console import span_text
from stream_vlm_ros.engine.inputs.stamp_check import check_stamp
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    InvalidParameterError,
    OutOfHorizonError,
    StreamBusyError,
    StreamVlmError,
)
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.memory_summary import (
    CopiedMemory,
    EpisodeState,
    MemorySummary,
    summarize,
)
from stream_vlm_ros.session.question import (
    MAX_EPISODES,
    READING,
    THUMBNAIL_SIZE,
    WRITING,
    Outcome,
    Progress,
    Question,
    Ticket,
)
from stream_vlm_ros.session.timed_frame import TimedFrame

if TYPE_CHECKING:  # torch takes seconds to import: the node is on the graph before that
    from stream_vlm_ros.engine import AnswerMetrics, ChoiceMetrics, InferenceEngine
    from stream_vlm_ros.engine.decoding import Answer
    from stream_vlm_ros.engine.results import ChunkResult, EvidenceEpisode, SavedMemory
    from stream_vlm_ros.engine.saving.memory_copy import ReadMemory
    from stream_vlm_ros.history.poses import Pose, PoseTrack


@dataclass
class Append:
    """Frames of one chunk."""

    frames: list[TimedFrame]
    is_ahead: bool = False  # its pictures are encoded already

    @cached_property
    def images(self) -> list[Any]:
        """Their pictures: one list, by which they are known again."""
        return [frame.image for frame in self.frames]


@dataclass(frozen=True)
class ChunkEnd:
    """How a chunk came to its end.

    Attributes:
        cause: why it did not get into the memory; None: it did.
        words: of that.
        closed_seconds: of a pause before it, which the model does not see.
    """

    frames: Sequence[TimedFrame]
    cause: Drop | None = None
    words: str = ""
    closed_seconds: float = 0.0


@dataclass
class Reset:
    """Forget what was seen."""

    cause: Drop
    future: Future[None] = field(default_factory=Future)


@dataclass
class CopyMemory:
    """Give a copy of the memory."""

    future: Future[CopiedMemory] = field(default_factory=Future)


@dataclass
class LoadMemory:
    """Put a saved memory in the place of the present one.

    Attributes:
        read: what another thread reads of it; None: it is not its turn yet, or no other does.
        over: nobody wants that any more.
    """

    path: Path
    future: Future[SavedMemory] = field(default_factory=Future)
    read: Future[ReadMemory] | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_being_read(self) -> bool:
        """Whether that goes on."""
        return self.read is not None and not self.read.done()


@dataclass
class ShowPicture:
    """Give the kept picture next to a time, with its stamp."""

    stamp_ns: int
    within_ns: int | None
    max_size: int
    future: Future[tuple[int, bytes] | None] = field(default_factory=Future)


class EngineSession:
    """What is in one engine's memory, and how it gets there and is asked.

    Args:
        counters: where the end of every frame is counted.
        report: called for each chunk that the engine refused, and for every error.
        why_empty: says, for a question to an empty memory, why it is empty.
        pause_closed: called in the thread when a chunk came after so many seconds that the model
            does not see.
        make_header: from a stamp and a frame_id, for the newest frame of a loaded memory.
        chunk_ended: called for every chunk once, in any thread; must return at once.
    """

    def __init__(
        self,
        counters: FrameCounters,
        report: Callable[[BaseException], None] = lambda fault: None,
        why_empty: Callable[[], str] = lambda: "images come first",
        pause_closed: Callable[[float], None] = lambda seconds: None,
        make_header: Callable[[int, str], Any] = lambda stamp_ns, frame_id: None,
        chunk_ended: Callable[[ChunkEnd], None] = lambda end: None,
    ) -> None:
        self.device = ""  # where the engine runs; "" until it is loaded
        self.memory = MemorySummary()
        self.resets = 0
        self.last_fault: str = ""  # of the last chunk, empty when it went well
        self.poses: PoseTrack | None = None  # where the robot was, told with evidence
        self.written: Answer | None = None  # the answer under way, while its text grows
        self._engine: InferenceEngine  # from `_open` to `_close`
        self._counters = counters
        self._report = report
        self._why_empty = why_empty
        self._pause_closed = pause_closed
        self._make_header = make_header
        self._chunk_ended = chunk_ended
        self._max_pixels: int | None = None  # None: as the engine was loaded
        self._limited: int | None = None  # what the engine was given of it
        self._min_pixels = 0  # below which the engine takes no bound; 0: not yet loaded
        self._epoch_ns = 0  # stamp of the memory's first frame
        self._newest_header: Any = None
        self._appended_to = False  # since the answer under way was begun

    def limit_pixels(self, name: str, max_pixels: int) -> None:
        """Reduce larger pictures to this many pixels from the next command on.

        ``name`` is that of the parameter; 0 stands for the model's own bound. What is in memory
        stays as it is. Raises InvalidParameterError for a bound that the engine would refuse.
        """
        if not self._min_pixels:
            raise InvalidParameterError(
                f"{name} cannot be changed yet: the model is still being loaded"
            )
        if 0 < max_pixels < self._min_pixels:
            raise InvalidParameterError(
                f"{name} ({max_pixels}) is below min_pixels ({self._min_pixels}), to which this "
                "model's smaller pictures are enlarged"
            )
        self._max_pixels = max_pixels

    # What runs in the thread.

    @property
    def group(self) -> Any:
        """What its engine has in common with those that it computes together with; None: nothing,
        or it was not loaded."""
        return getattr(getattr(self, "_engine", None), "group", None)

    def _open(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self.memory = self._snapshot()
        self._min_pixels = engine.min_pixels
        self.device = str(getattr(engine, "device", ""))

    def _call(self, listener: Callable[[], None]) -> None:
        """Tell a listener."""
        try:
            listener()
        except Exception as fault:  # the thread lives on, whatever its listeners do
            self._report(fault)

    def _limit_pixels(self) -> None:
        """Pass a changed bound on pixels on."""
        if (wanted := self._max_pixels) != self._limited:
            self._limited = wanted  # even if it fails: reported once, not at every command
            try:
                self._engine.limit_pixels(wanted or None)
            except Exception as fault:  # the bound stays as it was
                self._report(fault)

    def _times(self, frames: list[TimedFrame]) -> list[float]:
        """When the frames of the next chunk are, in the engine's seconds."""
        if self.memory.newest_ns is None and not self._engine.keeps_source_time:
            self._epoch_ns = frames[0].stamp_ns
        # Relative to the first frame: a float of seconds since 1970 does not hold nanoseconds. But
        # what outlives this process must be stamped in a time that does, too.
        return [(frame.stamp_ns - self._epoch_ns) / SECOND for frame in frames]

    def _append(self, frames: list[TimedFrame], *, answering: bool = False) -> bool:
        """Append a chunk; False if an answer being written is in its way."""
        done: ChunkResult | Exception
        try:
            self._limit_pixels()
            images = [frame.image for frame in frames]
            done = self._engine.append_video_chunk(images, timestamps=self._times(frames))
        except Exception as fault:
            if answering and isinstance(fault, StreamBusyError):
                return False
            done = fault
        except BaseException as fault:  # ends the session
            self._drop(frames, Drop.ERROR, repr(fault))
            raise
        self._appended(frames, done)
        return True

    def _appended(self, frames: list[TimedFrame], done: ChunkResult | Exception) -> None:
        """What came of a chunk: the stream continues with the next one, whatever it was."""
        self._appended_to = True
        try:
            if isinstance(done, Exception):
                raise done
            self._newest_header = frames[-1].header
            self.memory = self._snapshot()
        except Exception as fault:
            self.last_fault = str(fault) or type(fault).__name__
            self._drop(frames, Drop.ERROR, self.last_fault)
            self._report(fault)
            return
        self.last_fault = ""
        self._counters.ingest(len(frames))
        end = ChunkEnd(frames, closed_seconds=done.closed_seconds)
        self._call(lambda: self._chunk_ended(end))
        if closed := done.closed_seconds:
            self._call(lambda: self._pause_closed(closed))

    def _drop(self, frames: Sequence[TimedFrame], cause: Drop, words: str = "") -> None:
        """A chunk comes to its end without having been appended."""
        self._counters.drop(cause, len(frames))
        end = ChunkEnd(frames, cause, words)
        self._call(lambda: self._chunk_ended(end))

    def _reset(self, command: Reset) -> None:
        try:
            self._limit_pixels()
            forget = self._engine.reset
            if command.cause is Drop.TIME_JUMP:
                forget = getattr(self._engine, "start_epoch", self._engine.reset)
            elif self.poses is not None:
                self.poses.clear()
            forget()
            self._newest_header = None
            self.memory = self._snapshot()
        except Exception as fault:
            self._report(fault)
            command.future.set_exception(fault)
            return
        self.last_fault = ""
        self.resets += 1
        command.future.set_result(None)

    def _copy_or_load(self, command: CopyMemory | LoadMemory) -> None:
        done: CopiedMemory | SavedMemory
        read: Path | ReadMemory | None = None
        try:
            if isinstance(command, CopyMemory):
                frame_id = getattr(self._newest_header, "frame_id", "")
                copy = self._engine.copy_memory()
                done = CopiedMemory(copy, self.memory, self._epoch_ns, frame_id)
            else:
                read = command.path if command.read is None else command.read.result()
                done = self._load_memory(read)
        except Exception as fault:  # for the one who asked
            # Frames that are named in it would hold all that was read of a memory, in a circle.
            traceback.clear_frames(fault.__traceback__)
            command.future.set_exception(fault)
            return
        finally:
            read = None
            if isinstance(command, LoadMemory):
                command.read = None
        cast("Future[Any]", command.future).set_result(done)

    def _load_memory(self, read: Path | ReadMemory) -> SavedMemory:
        # What the history holds is stamped from where the engine's second 0 is now.
        stays = self._engine.keeps_source_time or self.memory.history_ns is not None
        origin_ns = self._epoch_ns if stays else None
        saved = self._engine.load_memory(read, origin_ns=origin_ns, check=self._check_saved)
        self._epoch_ns = saved.origin_ns
        self._newest_header = None
        self.memory = self._snapshot()
        assert self.memory.newest_ns is not None  # no empty memory is saved
        self._newest_header = self._make_header(self.memory.newest_ns, saved.frame_id)
        self.memory = replace(self.memory, header=self._newest_header)
        self.last_fault = ""
        return saved

    @staticmethod
    def _check_saved(saved: SavedMemory) -> None:
        """Raise InvalidTimestampError for stamps that no message can hold."""
        for seconds in (saved.oldest_timestamp, saved.newest_timestamp):
            check_stamp(saved.origin_ns + round((seconds or 0.0) * SECOND))

    def _answer(self, ticket: Ticket) -> Generator[None, None, None]:
        """Answer in pieces, between which chunks may be appended; its future gets the outcome."""
        started = time.monotonic()
        question, asked = ticket.question, self.memory
        progress = ticket.progress or _no_progress
        if ticket.cancelled:
            ticket.future.set_result(self._failed(ticket, ticket.why))
            return
        try:
            self._limit_pixels()
            progress(READING, "")
            try:
                answer, metrics = yield from self._ask(ticket, progress, self._about(question))
            except OutOfHorizonError:
                if question.refuse_forgotten:
                    raise
                answer, metrics = yield from self._ask(ticket, progress, None)
            except EmptyMemoryError:  # the engine speaks to who appends frames by hand
                why = self._why_empty()
                raise EmptyMemoryError(f"the memory holds no image yet: {why}") from None
            outcome = self._outcome(ticket, answer, metrics, started, asked)
            evidence = yield from self._evidence(ticket, metrics.episodes)
            outcome = replace(outcome, evidence=evidence)
        except OutOfHorizonError:  # said again in the source's time, not in the engine's
            outcome = self._failed(ticket, OutOfHorizonError(self._held()), started)
        except StreamVlmError as fault:
            outcome = self._failed(ticket, fault, started)
        except Exception as fault:
            self._report(fault)
            words = StreamVlmError(f"internal error: {fault!r}; see the log")
            outcome = self._failed(ticket, words, started)
        ticket.future.set_result(outcome)

    def _held(self) -> str:
        """Which times are remembered, for who asked about another."""
        spans = self.memory.spans_ns
        held = ", ".join(_stretch(*span) for span in spans[-3:])
        if len(spans) > 3:
            held += f", and {len(spans) - 3:,} more before"
        said = f"nothing of that time is remembered; in memory is {held or 'nothing'}"
        if (reach := self.memory.history_ns) is not None:
            said += f"; the history holds {_stretch(*reach)}"
        return said

    def _ask(
        self, ticket: Ticket, progress: Progress, about: tuple[float, float] | None
    ) -> Generator[None, None, tuple[str, AnswerMetrics | ChoiceMetrics]]:
        """Answer and metrics of the engine, asked about that time in its own seconds."""
        question = ticket.question
        recall: dict[str, Any] = {"history": question.history} if question.history else {}
        if question.choices:
            choices = list(question.choices)
            return self._engine.ask_choice(question.text, choices, about=about, **recall)
        self._appended_to = False
        written = self._engine.ask_stream(
            question.text,
            max_new_tokens=question.max_new_tokens,
            do_sample=question.temperature > 0,
            temperature=question.temperature or 1.0,
            update_state=question.keep_exchange,
            cancel=lambda: ticket.cancelled,
            about=about,
            earlier=question.earlier,
            top_p=question.top_p,
            stop=question.stop,
            seed=question.seed,
            **recall,
        )
        self.written = written
        try:
            for _ in written:  # an empty piece, too, between two steps of fetching
                progress(WRITING if written.text else READING, written.text)
                yield
        finally:
            self.written = None
            written.close()
            if self._appended_to or question.keep_exchange:
                self.memory = self._snapshot()
        assert written.metrics is not None  # it has ended
        return written.text, written.metrics

    def _evidence(
        self, ticket: Ticket, episodes: tuple[EvidenceEpisode, ...]
    ) -> Generator[None, None, tuple[EpisodeState, ...]]:
        """The episodes of an answer, with what was asked for of them."""
        evidence = []
        for episode in episodes[:MAX_EPISODES]:
            stamps_ns = tuple(self._to_ns(stamp) for stamp in episode.stamps)
            thumbnails = yield from self._thumbnails(ticket, episode)
            evidence.append(
                EpisodeState(
                    self._to_ns(episode.start),
                    self._to_ns(episode.end),
                    episode.score,
                    episode.tier,
                    stamps_ns,
                    tuple(thumbnails),
                    tuple(self._poses_at(stamps_ns)),
                )
            )
        return tuple(evidence)

    def _thumbnails(
        self, ticket: Ticket, episode: EvidenceEpisode
    ) -> Generator[None, None, list[tuple[int, bytes]]]:
        """As many as were asked for."""
        thumbnails: list[tuple[int, bytes]] = []
        for stamp in episode.spread(ticket.question.thumbnails):
            if ticket.cancelled:
                break
            try:
                data = self._engine.thumbnail(stamp, THUMBNAIL_SIZE)
            except StreamVlmError as fault:  # the answer is there all the same
                self._report(fault)
                break
            if data is not None:  # else the frame was forgotten meanwhile
                thumbnails.append((self._to_ns(stamp), data))
            yield
        return thumbnails

    def _show(self, command: ShowPicture) -> None:
        try:
            wanted = (command.stamp_ns - self._epoch_ns) / SECOND
            found = None
            if (stamp := self._engine.kept_stamp(wanted)) is not None:
                stamp_ns = self._to_ns(stamp)
                apart = abs(stamp_ns - command.stamp_ns)
                if command.within_ns is None or apart <= command.within_ns:
                    data = self._engine.thumbnail(stamp, command.max_size)
                    found = None if data is None else (stamp_ns, data)
        except Exception as fault:  # for the one who asked
            command.future.set_exception(fault)
            return
        command.future.set_result(found)

    def _poses_at(self, stamps_ns: Iterable[int]) -> Iterator[Pose]:
        if (track := self.poses) is not None:
            for stamp_ns in stamps_ns:
                if (pose := track.at(stamp_ns)) is not None:
                    yield pose

    def _outcome(
        self,
        ticket: Ticket,
        answer: str,
        metrics: AnswerMetrics | ChoiceMetrics,
        started: float,
        asked: MemorySummary,
    ) -> Outcome:
        """The outcome of an answer that the engine gave, read from the memory ``asked``."""
        outcome = Outcome(
            question=ticket.question,
            answer=answer,
            waiting=started - ticket.arrived,
            ttft=metrics.ttft,
            latency=metrics.latency,
            prompt_tokens=metrics.prompt_tokens,
            cache_length=metrics.cache_length,
            fetched_tokens=metrics.fetched_tokens,
            memory=asked,
        )
        if ticket.question.choices:
            chosen = cast("ChoiceMetrics", metrics)
            return replace(
                outcome,
                choice_index=chosen.choice_index,
                choice_scores=chosen.scores,
                choice_tokens=chosen.choice_tokens,
                finish_reason="choice",
            )
        written = cast("AnswerMetrics", metrics)
        return replace(
            outcome,
            error=ticket.why if written.finish_reason == "cancelled" else None,
            answer_tokens=written.answer_tokens,
            finish_reason=written.finish_reason,
        )

    def _failed(
        self, ticket: Ticket, error: StreamVlmError, started: float | None = None
    ) -> Outcome:
        waited = (started or time.monotonic()) - ticket.arrived
        return Outcome(ticket.question, error=error, waiting=waited, memory=self.memory)

    def _snapshot(self) -> MemorySummary:
        return summarize(self._engine.get_cache_info(), self._epoch_ns, self._newest_header)

    def _about(self, question: Question) -> tuple[float, float] | None:
        """The time a question is about, in the engine's seconds; infinite where it has no limit."""
        if question.about_ns is None:
            return None
        first, last = question.about_ns
        return (
            (first - self._epoch_ns) / SECOND if first else -math.inf,
            (last - self._epoch_ns) / SECOND if last else math.inf,
        )

    def _to_ns(self, seconds: float) -> int:
        return self._epoch_ns + round(seconds * SECOND)


def _no_progress(state: str, text: str) -> None:
    """For a question whose answer nobody follows."""


def _stretch(first_ns: int, last_ns: int) -> str:
    return span_text(first_ns / SECOND, last_ns / SECOND)
