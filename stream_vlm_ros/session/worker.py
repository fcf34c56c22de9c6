# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One thread that owns the engine, and the queue in front of it.

Callbacks put commands into the queue and return; only this thread touches the engine. Commands are
carried out in the order of their arrival, so a question sees every chunk delivered before it.
Chunks and kept pictures alone may overtake: those that wait have their turns between the tokens of
an answer.
At most ``queue_size`` chunks wait: a further one pushes out the oldest waiting chunk, since new
pictures are worth more than old ones. Questions are never dropped: beyond ``max_questions``
waiting ones, a new one is refused at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

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
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.turns import Turns

if TYPE_CHECKING:  # torch takes seconds to import: the node is on the graph before that
    from stream_vlm_ros.engine import AnswerMetrics, ChoiceMetrics, InferenceEngine
    from stream_vlm_ros.engine.results import EvidenceEpisode, LevelInfo, SavedMemory, TimeSpans
    from stream_vlm_ros.engine.saving.memory_copy import MemoryCopy
    from stream_vlm_ros.history.poses import Pose, PoseTrack
    from stream_vlm_ros.history.results import TierInfo


class NotActiveError(StreamVlmError):
    """A question to a node that is not active, or ceased to be while it waited."""

    code = "NOT_ACTIVE"


class QueueFullError(StreamVlmError):
    """Too many questions are waiting already."""

    code = "QUEUE_FULL"


class CancelledError(StreamVlmError):
    """A question that was cancelled."""

    code = "CANCELLED"


class EngineEndedError(StreamVlmError):
    """The engine's thread has ended by a fault: nothing is taken any more."""


@dataclass(frozen=True)
class Question:
    """What was asked, with every setting decided."""

    text: str
    choices: tuple[str, ...] = ()
    max_new_tokens: int = 128
    temperature: float = 0.0  # 0: greedy
    keep_exchange: bool = False
    about_ns: tuple[int, int] | None = None  # stamps from and to; 0: no limit on that side
    refuse_forgotten: bool = True  # if nothing of that time is held; else answered anyway
    history: str = ""  # never, auto or always; "": as the engine was built
    thumbnails: int = 0  # pictures with each episode that the answer names


LEVELS = ("sink", "sampled", "important", "window")  # of the memory, oldest frames first


@dataclass(frozen=True)
class LevelState:
    """What one level of the memory holds: frames, tokens of these frames, and from when they are.

    ``spans_ns`` are unbroken stretches of the source's time, oldest first.
    """

    name: str
    frames: int = 0
    tokens: int = 0
    spans_ns: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class TierState:
    """What one tier of the history holds. Stamps in nanoseconds of the source, None when empty."""

    name: str
    grids: int
    frames: int
    bytes: int
    max_bytes: int
    where: str
    oldest_ns: int | None
    newest_ns: int | None
    error: str = ""  # why it did not take the newest of what was seen
    left_out: int = 0  # further grids that its grids stand for


@dataclass(frozen=True)
class EpisodeState:
    """An episode that an answer rests on. Stamps in nanoseconds of the source.

    Attributes:
        thumbnails: JPEGs with their stamps.
        poses: of the robot at those of the stamps for which it is known.
    """

    start_ns: int
    end_ns: int
    score: float
    tier: str
    stamps_ns: tuple[int, ...]
    thumbnails: tuple[tuple[int, bytes], ...] = ()
    poses: tuple[Pose, ...] = ()


@dataclass(frozen=True)
class MemorySummary:
    """The engine's memory at one moment. Stamps in nanoseconds of the source, None when empty."""

    length: int = 0
    cap: int = 0
    sink: int = 0
    window: int = 0
    memory_bytes: int = 0
    chunks: int = 0
    frames: int = 0
    evictions: int = 0
    evicted_tokens: int = 0
    closed_pauses: int = 0
    closed_seconds: float = 0.0
    oldest_ns: int | None = None
    newest_ns: int | None = None
    spans_ns: tuple[tuple[int, int], ...] = ()  # unbroken stretches of time, oldest first
    levels: tuple[LevelState, ...] = tuple(LevelState(name) for name in LEVELS)
    tiers: tuple[TierState, ...] = ()  # of the history behind it
    header: Any = None  # of the newest frame

    @property
    def history_ns(self) -> tuple[int, int] | None:
        """From when to when the history reaches; None: there is none, or it is empty."""
        oldest = [tier.oldest_ns for tier in self.tiers if tier.oldest_ns is not None]
        newest = [tier.newest_ns for tier in self.tiers if tier.newest_ns is not None]
        return (min(oldest), max(newest)) if oldest and newest else None

    @property
    def history_fault(self) -> str:
        """Why the history did not take the newest of what was seen; "" if it did."""
        return "; ".join(sorted({tier.error for tier in self.tiers if tier.error}))

    @property
    def latest_ns(self) -> int | None:
        """Of the newest frame, be it in memory or, as at a start, in the history alone."""
        ends = [self.newest_ns, self.history_ns and self.history_ns[1]]
        return max((end for end in ends if end is not None), default=None)


@dataclass(frozen=True)
class Outcome:
    """What came of a question: an answer, or an error. Times in seconds.

    ``memory`` is what the answer was read from, whatever came while it was written.
    """

    question: Question
    answer: str = ""
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    choice_tokens: tuple[int, ...] = ()
    error: StreamVlmError | None = None
    waiting: float = 0.0
    ttft: float = 0.0
    latency: float = 0.0
    prompt_tokens: int = 0
    fetched_tokens: int = 0
    answer_tokens: int = 0
    finish_reason: str = ""
    memory: MemorySummary = MemorySummary()
    evidence: tuple[EpisodeState, ...] = ()  # at most MAX_EPISODES


MAX_EPISODES = 3  # that an answer names
MAX_THUMBNAILS, THUMBNAIL_SIZE = 6, 320  # an episode; pixels of the longer side
MAX_PICTURES, MAX_PICTURE_SIZE = 16, 1280  # that may wait; pixels of the longer side
READING = "reading"
WRITING = "writing"
Progress = Callable[[str, str], None]  # (READING or WRITING, the answer so far)


@dataclass
class Ticket:
    """A question on its way. ``future`` is always given an :class:`Outcome`, never an exception."""

    question: Question
    progress: Progress | None = None
    future: Future[Outcome] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _why: StreamVlmError = field(
        default_factory=lambda: CancelledError("the question was cancelled")
    )

    def cancel(self, why: StreamVlmError | None = None) -> None:
        """Ask for an early end; the future still gets its outcome."""
        if why is not None and not self.cancelled:
            self._why = why
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether an early end was asked for."""
        return self._cancelled.is_set()

    @property
    def why(self) -> StreamVlmError:
        """The reason for the early end."""
        return self._why


@dataclass(frozen=True)
class CopiedMemory:
    """The memory, copied from the engine, and what a file of it also says.

    Attributes:
        memory: what was copied.
        origin_ns: the source's time at the engine's second 0.
        frame_id: of the newest frame.
    """

    copy: MemoryCopy
    memory: MemorySummary
    origin_ns: int
    frame_id: str


@dataclass
class _Append:
    frames: list[TimedFrame]


@dataclass
class _Reset:
    cause: Drop
    future: Future[None] = field(default_factory=Future)


@dataclass
class _CopyMemory:
    future: Future[CopiedMemory] = field(default_factory=Future)


@dataclass
class _LoadMemory:
    path: Path
    future: Future[SavedMemory] = field(default_factory=Future)


@dataclass
class _Picture:
    stamp_ns: int
    within_ns: int | None
    max_size: int
    future: Future[tuple[int, bytes] | None] = field(default_factory=Future)


_Waited = _Reset | _CopyMemory | _LoadMemory | _Picture  # somebody waits for their future
_Command = _Append | Ticket | _Waited
_Early = TypeVar("_Early", _Append, _Picture)  # what may come before it is its turn


class EngineWorker:
    """Loads the engine in a thread of its own and serves the queue there.

    Args:
        load: builds the engine; called once, in the thread.
        counters: where the end of every frame is counted.
        queue_size, max_questions: bounds of the queue; both may be changed at any time.
        ingest_share: share of an answer's time for chunks that wait meanwhile, 0 to 1, see
            :class:`Turns`; 0: they wait until it is complete. May be changed at any time.
        changed: called in the thread after each command.
        report: called for each chunk that the engine refused, and for every error, also for what
            ends the thread (``ended`` says so then).
        why_empty: says, for a question to an empty memory, why it is empty.
        pause_closed: called in the thread when a chunk came after so many seconds that the model
            does not see.
        make_header: from a stamp and a frame_id, for the newest frame of a loaded memory.
    """

    def __init__(
        self,
        load: Callable[[], InferenceEngine],
        counters: FrameCounters,
        queue_size: int,
        max_questions: int,
        ingest_share: float = 0.5,
        changed: Callable[[], None] = lambda: None,
        report: Callable[[BaseException], None] = lambda fault: None,
        why_empty: Callable[[], str] = lambda: "images come first",
        pause_closed: Callable[[float], None] = lambda seconds: None,
        make_header: Callable[[int, str], Any] = lambda stamp_ns, frame_id: None,
    ) -> None:
        self.queue_size = queue_size
        self.max_questions = max_questions
        self.ingest_share = ingest_share
        self.loaded: Future[str] = Future()  # what the engine's memory takes, in one line
        self.device = ""  # where the engine runs; "" until it is loaded
        self.memory = MemorySummary()
        self.resets = 0
        self.last_fault: str = ""  # of the last chunk, empty when it went well
        self.ended: EngineEndedError | None = None  # what every question is answered from then on
        self.poses: PoseTrack | None = None  # where the robot was, told with evidence
        self._load = load
        self._counters = counters
        self._changed = changed
        self._report = report
        self._why_empty = why_empty
        self._pause_closed = pause_closed
        self._make_header = make_header
        self._queue: deque[_Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._current: Ticket | None = None
        self._taken: _Command | None = None  # what the thread is at
        self._max_pixels: int | None = None  # None: as the engine was loaded
        self._limited: int | None = None  # what the engine was given of it
        self._min_pixels = 0  # below which the engine takes no bound; 0: not yet loaded
        self._epoch_ns = 0  # stamp of the memory's first frame
        self._newest_header: Any = None
        # A daemon: a model that is being loaded cannot be interrupted, and must not keep a
        # process alive that was told to end.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; :attr:`loaded` is done when the engine is there."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End the thread and drop what waits; True if it ended within ``timeout`` seconds."""
        self.abandon(Drop.RESET, NotActiveError("the engine was stopped before the answer came"))
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # What callbacks call. All return at once.

    def append(self, frames: list[TimedFrame]) -> None:
        """Queue a chunk. Its frames are pending in the counters until it is appended or dropped."""
        with self._wake:
            if self._stopping or self.ended is not None:
                cause = Drop.RESET if self._stopping else Drop.ERROR
                self._counters.drop(cause, len(frames))
                return
            while self.waiting_chunks >= self.queue_size:
                oldest = next(c for c in self._queue if isinstance(c, _Append))
                self._queue.remove(oldest)
                self._counters.drop(Drop.OVERFLOW, len(oldest.frames))
            self._queue.append(_Append(frames))
            self._wake.notify()

    def ask(self, question: Question, progress: Progress | None = None) -> Ticket:
        """Queue a question; ``progress`` is called in the worker's thread."""
        ticket = Ticket(question, progress)
        with self._wake:
            refusal: StreamVlmError | None = None
            if self._stopping:
                refusal = NotActiveError("the engine is being stopped")
            elif self.ended is not None:
                refusal = self.ended
            elif self.waiting_questions >= self.max_questions:
                refusal = QueueFullError(
                    f"{self.waiting_questions} questions are waiting already (max_questions); "
                    "ask again when one has been answered"
                )
            else:
                self._queue.append(ticket)
                self._wake.notify()
        if refusal is not None:
            ticket.future.set_result(self._failed(ticket, refusal))
        return ticket

    def reset(self, cause: Drop) -> Future[None]:
        """Drop the waiting chunks for ``cause``, then empty the memory when its turn comes.

        After a time jump an engine that keeps frames on disk begins a new epoch there and deletes
        none of them. For any other cause the history is forgotten, too, with the poses.
        """
        command = _Reset(cause)
        with self._wake:
            self._drop_chunks(cause)
            if self._stopping or self.ended is not None:
                stopped = NotActiveError("the engine is being stopped")
                command.future.set_exception(self.ended or stopped)
                return command.future
            self._queue.append(command)
            self._wake.notify()
        return command.future

    def copy_memory(self) -> Future[CopiedMemory]:
        """Copy the memory when its turn comes: behind the answer that is being written."""
        return self._put(_CopyMemory())

    def load_memory(self, path: Path) -> Future[SavedMemory]:
        """Put a saved memory in the place of the present one when its turn comes."""
        return self._put(_LoadMemory(path))

    def picture_near(
        self, stamp_ns: int, within_ns: int | None = None, max_size: int = THUMBNAIL_SIZE
    ) -> Future[tuple[int, bytes] | None]:
        """The kept picture next to a time, as a JPEG with its stamp, when its turn comes: also
        between two tokens of an answer.

        Args:
            within_ns: at most so far from that time; None: however far.
            max_size: pixels of the longer side.

        None: no such picture is kept. A further one than `MAX_PICTURES` pushes out the oldest that
        waits, which ends with QueueFullError: the newest is what somebody looks for now.
        """
        with self._wake:
            waiting = [command for command in self._queue if isinstance(command, _Picture)]
            if len(waiting) >= MAX_PICTURES:
                self._queue.remove(waiting[0])
                waiting[0].future.set_exception(QueueFullError("newer pictures were asked for"))
        return self._put(_Picture(stamp_ns, within_ns, max_size))

    def _put(self, command: _CopyMemory | _LoadMemory | _Picture) -> Future[Any]:
        with self._wake:
            if self._stopping or self.ended is not None:
                stopped = NotActiveError("the engine is being stopped")
                command.future.set_exception(self.ended or stopped)
            else:
                self._queue.append(command)
                self._wake.notify()
        return command.future

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

    def abandon(self, cause: Drop, why: StreamVlmError) -> None:
        """Drop the waiting chunks for ``cause`` and end all questions early with ``why``."""
        with self._wake:
            self._drop_chunks(cause)
            tickets = [c for c in self._queue if isinstance(c, Ticket)]
            self._queue = deque(c for c in self._queue if not isinstance(c, Ticket))
            current = self._current
        for ticket in tickets:
            ticket.future.set_result(self._failed(ticket, why))
        if current is not None:
            current.cancel(why)

    @property
    def depth(self) -> int:
        """Commands waiting."""
        return len(self._queue)

    @property
    def waiting_chunks(self) -> int:
        """Chunks waiting."""
        with self._wake:
            return sum(isinstance(command, _Append) for command in self._queue)

    @property
    def waiting_questions(self) -> int:
        """Questions waiting."""
        with self._wake:
            return sum(isinstance(command, Ticket) for command in self._queue)

    def _drop_chunks(self, cause: Drop) -> None:
        for command in self._queue:
            if isinstance(command, _Append):
                self._counters.drop(cause, len(command.frames))
        self._queue = deque(c for c in self._queue if not isinstance(c, _Append))

    # What runs in the thread.

    def _run(self) -> None:
        try:
            engine = self._load()
            self.memory = self._snapshot(engine)
            self._min_pixels = engine.min_pixels
            self.device = str(getattr(engine, "device", ""))
        except BaseException as fault:
            # What is no Exception would end the thread that asks for the result.
            ended = StreamVlmError(f"loading the model was ended by {fault!r}; see the log")
            self.loaded.set_exception(fault if isinstance(fault, Exception) else ended)
            return
        self.loaded.set_result(engine.memory_plan)
        try:
            try:
                self._serve(engine)
            finally:
                engine.close()
        except BaseException as fault:  # a user's function may raise anything, SystemExit too
            self._end(fault)

    def _serve(self, engine: InferenceEngine) -> None:
        while (command := self._next()) is not None:
            if isinstance(command, _Append):
                self._append(engine, command)
            elif isinstance(command, Ticket):
                self._answer(engine, command)
            elif isinstance(command, _Reset):
                self._reset(engine, command)
            elif isinstance(command, _Picture):
                self._show(engine, command)
                continue  # nothing has changed
            else:
                self._copy_or_load(engine, command)
            self._tell()

    def _end(self, fault: BaseException) -> None:
        """The thread ends by a fault: nobody is left waiting, and the fault is reported."""
        ended = EngineEndedError(
            f"the engine's thread has ended by {fault!r}: start it again (a node is cleaned up and "
            "configured, or restarted); see the log"
        )
        with self._wake:
            self.ended = ended
            self._drop_chunks(Drop.ERROR)
            waiting, self._queue = self._queue, deque()
            taken, self._taken, self._current = self._taken, None, None
        if taken is not None and not isinstance(taken, _Append) and not taken.future.done():
            waiting.appendleft(taken)
        for command in waiting:
            if isinstance(command, Ticket):
                command.future.set_result(self._failed(command, ended))
            elif isinstance(command, _Waited):
                command.future.set_exception(ended)
        self._report(fault)
        self._tell()

    def _next(self) -> _Command | None:
        with self._wake:
            self._taken = self._current = None
            while not self._queue and not self._stopping:
                self._wake.wait()
            if self._stopping:
                # Resets are left, and what came just behind the call of abandon() in stop().
                self._drop_chunks(Drop.RESET)
                why = NotActiveError("the engine was stopped")
                for command in self._queue:
                    if isinstance(command, _Waited):
                        command.future.set_exception(why)
                    elif isinstance(command, Ticket):
                        command.future.set_result(self._failed(command, why))
                self._queue.clear()
                return None
            command = self._taken = self._queue.popleft()
            if isinstance(command, Ticket):
                self._current = command
            return command

    def _tell(self, listener: Callable[[], None] | None = None) -> None:
        """Tell a listener; None: the one who hears that something changed."""
        try:
            (listener or self._changed)()
        except Exception as fault:  # the thread lives on, whatever its listeners do
            self._report(fault)

    def _limit_pixels(self, engine: InferenceEngine) -> None:
        """Pass a changed bound on pixels on."""
        if (wanted := self._max_pixels) != self._limited:
            self._limited = wanted  # even if it fails: reported once, not at every command
            try:
                engine.limit_pixels(wanted or None)
            except Exception as fault:  # the bound stays as it was
                self._report(fault)

    def _append(self, engine: InferenceEngine, command: _Append) -> bool:
        """Append a chunk; False if an answer being written is in its way."""
        frames = command.frames
        if self.memory.newest_ns is None and not engine.keeps_source_time:
            self._epoch_ns = frames[0].stamp_ns
        # Relative to the first frame: a float of seconds since 1970 does not hold nanoseconds. But
        # what outlives this process must be stamped in a time that does, too.
        times = [(frame.stamp_ns - self._epoch_ns) / SECOND for frame in frames]
        try:
            self._limit_pixels(engine)
            done = engine.append_video_chunk([frame.image for frame in frames], timestamps=times)
            self._newest_header = frames[-1].header
            self.memory = self._snapshot(engine)
        except Exception as fault:  # the stream continues with the next chunk
            if isinstance(fault, StreamBusyError) and self._current is not None:
                return False
            self.last_fault = str(fault) or type(fault).__name__
            self._counters.drop(Drop.ERROR, len(frames))
            self._report(fault)
            return True
        except BaseException:  # ends the thread
            self._counters.drop(Drop.ERROR, len(frames))
            raise
        self.last_fault = ""
        self._counters.ingest(len(frames))
        if done.closed_seconds:
            self._tell(lambda: self._pause_closed(done.closed_seconds))
        return True

    def _reset(self, engine: InferenceEngine, command: _Reset) -> None:
        try:
            self._limit_pixels(engine)
            forget = engine.reset
            if command.cause is Drop.TIME_JUMP:
                forget = getattr(engine, "start_epoch", engine.reset)
            elif self.poses is not None:
                self.poses.clear()
            forget()
            self._newest_header = None
            self.memory = self._snapshot(engine)
        except Exception as fault:
            self._report(fault)
            command.future.set_exception(fault)
            return
        self.last_fault = ""
        self.resets += 1
        command.future.set_result(None)

    def _copy_or_load(self, engine: InferenceEngine, command: _CopyMemory | _LoadMemory) -> None:
        done: CopiedMemory | SavedMemory
        try:
            if isinstance(command, _CopyMemory):
                frame_id = getattr(self._newest_header, "frame_id", "")
                copy = engine.copy_memory()
                done = CopiedMemory(copy, self.memory, self._epoch_ns, frame_id)
            else:
                done = self._load_memory(engine, command.path)
        except Exception as fault:  # for the one who asked
            command.future.set_exception(fault)
            return
        cast("Future[Any]", command.future).set_result(done)

    def _load_memory(self, engine: InferenceEngine, path: Path) -> SavedMemory:
        # What the history holds is stamped from where the engine's second 0 is now.
        stays = engine.keeps_source_time or self.memory.history_ns is not None
        origin_ns = self._epoch_ns if stays else None
        saved = engine.load_memory(path, origin_ns=origin_ns, check=self._check_saved)
        self._epoch_ns = saved.origin_ns
        self._newest_header = None
        self.memory = self._snapshot(engine)
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

    def _answer(self, engine: InferenceEngine, ticket: Ticket) -> None:
        started = time.monotonic()
        question, asked = ticket.question, self.memory
        progress = ticket.progress or _no_progress
        if ticket.cancelled:
            ticket.future.set_result(self._failed(ticket, ticket.why))
            return
        try:
            self._limit_pixels(engine)
            progress(READING, "")
            try:
                answer, metrics = self._ask(engine, ticket, progress, self._about(question))
            except OutOfHorizonError:
                if question.refuse_forgotten:
                    raise
                answer, metrics = self._ask(engine, ticket, progress, None)
            except EmptyMemoryError:  # the engine speaks to who appends frames by hand
                why = self._why_empty()
                raise EmptyMemoryError(f"the memory holds no image yet: {why}") from None
            outcome = self._outcome(ticket, answer, metrics, started, asked)
            outcome = replace(outcome, evidence=self._evidence(engine, ticket, metrics.episodes))
        except OutOfHorizonError:  # said again in the source's time, not in the engine's
            spans = self.memory.spans_ns
            held = ", ".join(
                f"{first / SECOND:.3f} to {last / SECOND:.3f} s" for first, last in spans[-3:]
            )
            if len(spans) > 3:
                held += f", and {len(spans) - 3:,} more before"
            said = f"nothing of that time is remembered; in memory is {held or 'nothing'}"
            if (reach := self.memory.history_ns) is not None:
                said += f"; the history holds {reach[0] / SECOND:.3f} to {reach[1] / SECOND:.3f} s"
            fault = OutOfHorizonError(said)
            outcome = self._failed(ticket, fault, started)
        except StreamVlmError as fault:
            outcome = self._failed(ticket, fault, started)
        except Exception as fault:
            self._report(fault)
            words = StreamVlmError(f"internal error: {fault!r}; see the log")
            outcome = self._failed(ticket, words, started)
        ticket.future.set_result(outcome)

    def _ask(
        self,
        engine: InferenceEngine,
        ticket: Ticket,
        progress: Progress,
        about: tuple[float, float] | None,
    ) -> tuple[str, AnswerMetrics | ChoiceMetrics]:
        """Answer and metrics of the engine, asked about that time in its own seconds."""
        question = ticket.question
        recall: dict[str, Any] = {"history": question.history} if question.history else {}
        if question.choices:
            return engine.ask_choice(question.text, list(question.choices), about=about, **recall)
        turns = Turns()
        written = engine.ask_stream(
            question.text,
            max_new_tokens=question.max_new_tokens,
            do_sample=question.temperature > 0,
            temperature=question.temperature or 1.0,
            update_state=question.keep_exchange,
            cancel=lambda: ticket.cancelled,
            about=about,
            **recall,
        )
        try:
            for _ in written:  # an empty piece, too, between two steps of fetching
                progress(WRITING if written.text else READING, written.text)
                self._append_between(engine, turns)
        finally:
            written.close()
            if turns.chunks or question.keep_exchange:
                self.memory = self._snapshot(engine)
        assert written.metrics is not None  # it has ended
        return written.text, written.metrics

    def _evidence(
        self, engine: InferenceEngine, ticket: Ticket, episodes: tuple[EvidenceEpisode, ...]
    ) -> tuple[EpisodeState, ...]:
        """The episodes of an answer, with what was asked for of them."""
        turns = Turns()
        return tuple(
            EpisodeState(
                self._to_ns(episode.start),
                self._to_ns(episode.end),
                episode.score,
                episode.tier,
                stamps_ns := tuple(self._to_ns(stamp) for stamp in episode.stamps),
                tuple(self._thumbnails(engine, ticket, episode, turns)),
                tuple(self._poses_at(stamps_ns)),
            )
            for episode in episodes[:MAX_EPISODES]
        )

    def _thumbnails(
        self, engine: InferenceEngine, ticket: Ticket, episode: EvidenceEpisode, turns: Turns
    ) -> Iterator[tuple[int, bytes]]:
        """As many as were asked for; chunks have their turns between them."""
        for stamp in episode.spread(ticket.question.thumbnails):
            if ticket.cancelled:
                return
            try:
                data = engine.thumbnail(stamp, THUMBNAIL_SIZE)
            except StreamVlmError as fault:  # the answer is there all the same
                self._report(fault)
                return
            if data is not None:  # else the frame was forgotten meanwhile
                yield self._to_ns(stamp), data
            self._append_between(engine, turns)

    def _poses_at(self, stamps_ns: Iterable[int]) -> Iterator[Pose]:
        if (track := self.poses) is not None:
            for stamp_ns in stamps_ns:
                if (pose := track.at(stamp_ns)) is not None:
                    yield pose

    def _show(self, engine: InferenceEngine, command: _Picture) -> None:
        wanted = (command.stamp_ns - self._epoch_ns) / SECOND
        try:
            found = None
            if (stamp := engine.kept_stamp(wanted)) is not None:
                stamp_ns = self._to_ns(stamp)
                apart = abs(stamp_ns - command.stamp_ns)
                if command.within_ns is None or apart <= command.within_ns:
                    data = engine.thumbnail(stamp, command.max_size)
                    found = None if data is None else (stamp_ns, data)
        except Exception as fault:  # for the one who asked
            command.future.set_exception(fault)
            return
        command.future.set_result(found)

    def _append_between(self, engine: InferenceEngine, turns: Turns) -> None:
        """Between two tokens of an answer: show the oldest picture that is waited for, and append
        the oldest waiting chunk if it is its turn."""
        if (picture := self._take(_Picture)) is not None:
            self._show(engine, picture)
        if not turns.is_chunks(self.ingest_share) or (command := self._take(_Append)) is None:
            return
        with turns.chunk():
            done = self._append(engine, command)
        if done:
            self._tell()
        else:
            turns.closed = True  # there will be no more room until the answer ends
            self._put_back(command)

    def _take(self, kind: type[_Early]) -> _Early | None:
        """The oldest of a kind that waits, unless another memory begins before its turn."""
        with self._wake:
            for command in self._queue:
                if isinstance(command, _Reset | _LoadMemory):
                    return None
                if isinstance(command, kind):
                    self._queue.remove(command)
                    return command
            return None

    def _put_back(self, command: _Append) -> None:
        """Let a chunk wait on, as the oldest."""
        with self._wake:
            if self._stopping:
                self._counters.drop(Drop.RESET, len(command.frames))
            elif self.waiting_chunks >= self.queue_size:
                self._counters.drop(Drop.OVERFLOW, len(command.frames))
            else:
                self._queue.appendleft(command)

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

    def _snapshot(self, engine: InferenceEngine) -> MemorySummary:
        info = engine.get_cache_info()
        oldest, newest = info.oldest_timestamp, info.newest_timestamp
        return MemorySummary(
            length=info.cache_seq_length,
            cap=info.max_cache_tokens or 0,
            sink=info.sink_size or 0,
            window=info.window_size or 0,
            memory_bytes=info.cache_memory_bytes,
            chunks=info.chunks,
            frames=info.frames,
            evictions=info.eviction_stats.total_evictions,
            evicted_tokens=info.eviction_stats.total_tokens_evicted,
            closed_pauses=info.closed_pauses,
            closed_seconds=info.closed_seconds,
            oldest_ns=None if oldest is None else self._to_ns(oldest),
            newest_ns=None if newest is None else self._to_ns(newest),
            spans_ns=self._spans_ns(info.time_spans),
            levels=tuple(self._level(name, info.levels.get(name)) for name in LEVELS),
            tiers=tuple(self._tier(tier) for tier in getattr(info, "tiers", ())),
            header=self._newest_header,
        )

    def _level(self, name: str, held: LevelInfo | None) -> LevelState:
        if held is None:
            return LevelState(name)
        return LevelState(name, held.frames, held.tokens, self._spans_ns(held.time_spans))

    def _spans_ns(self, spans: TimeSpans) -> tuple[tuple[int, int], ...]:
        return tuple((self._to_ns(first), self._to_ns(last)) for first, last in spans)

    def _tier(self, tier: TierInfo) -> TierState:
        oldest, newest = (
            None if seconds is None else self._to_ns(seconds)
            for seconds in (tier.oldest, tier.newest)
        )
        return TierState(
            tier.name, tier.grids, tier.frames, tier.bytes, tier.max_bytes, tier.where,
            oldest, newest, tier.error, tier.left_out,
        )  # fmt: skip

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
