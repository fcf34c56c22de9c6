# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session: an engine, and the queue in front of it.

Callbacks put commands into the queue and return; only the thread of the engines touches the engine.
Commands are carried out in the order of their arrival, so a question sees every chunk delivered
before it. Chunks and kept pictures alone may overtake: those that wait have their turns between the
tokens of an answer.
At most ``queue_size`` chunks wait: a further one pushes out the oldest waiting chunk, since new
pictures are worth more than old ones. Questions are never dropped: beyond ``max_questions``
waiting ones, a new one is refused at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.engine_session import (
    Append,
    CopyMemory,
    EngineSession,
    LoadMemory,
    Reset,
    ShowPicture,
)
from stream_vlm_ros.session.engine_thread import EngineThread
from stream_vlm_ros.session.memory_summary import CopiedMemory
from stream_vlm_ros.session.question import (
    MAX_PICTURES,
    THUMBNAIL_SIZE,
    EngineEndedError,
    NotActiveError,
    Progress,
    Question,
    QueueFullError,
    Ticket,
)
from stream_vlm_ros.session.scheduler import Wants
from stream_vlm_ros.session.timed_frame import TimedFrame

if TYPE_CHECKING:  # torch takes seconds to import: the node is on the graph before that
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.engine.results import ChunkResult, SavedMemory
    from stream_vlm_ros.engine.saving.memory_copy import ReadMemory

_Changing = Append | Reset | CopyMemory | LoadMemory  # what listeners are told of
_Waited = Reset | CopyMemory | LoadMemory | ShowPicture  # somebody waits for their future
_Command = Append | Ticket | _Waited
_Early = TypeVar("_Early", Append, ShowPicture)  # what may come before it is its turn


class EngineWorker(EngineSession):
    """The queue of one engine, which a thread loads and works through.

    Args:
        load: builds the engine; called once, in the thread.
        counters: where the end of every frame is counted.
        queue_size, max_questions: bounds of the queue; both may be changed at any time.
        ingest_share: share of an answer's time for chunks that wait meanwhile, 0 to 1, see
            :class:`Scheduler`; 0: they wait until it is complete. May be changed at any time. It is
            the thread's: where that is given, all its sessions' alike.
        changed: called in the thread after each command.
        report: called for each chunk that the engine refused, and for every error, also for what
            ends the session (``ended`` says so then).
        failed: called, before anybody is told so, when a fault ends the session; it takes no time.
        thread: shared with other sessions; None: one of its own.
        weight: share of the thread's time under load, compared with the others'.
        callbacks: see :class:`EngineSession`.
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
        failed: Callable[[], None] = lambda: None,
        *,
        thread: EngineThread | None = None,
        weight: float = 1.0,
        **callbacks: Any,
    ) -> None:
        super().__init__(counters, report, **callbacks)
        self.queue_size = queue_size
        self.max_questions = max_questions
        self.weight = weight
        self.loaded: Future[str] = Future()  # what the engine's memory takes, in one line
        self.ended: EngineEndedError | None = None  # what every question is answered from then on
        self.over = threading.Event()  # the thread has let the engine go
        self._load = load
        self._changed, self._failed_for_good = changed, failed
        self._queue: deque[_Command] = deque()
        self._stopping = False
        self._current: Ticket | None = None
        self._taken: _Command | None = None  # what the thread is at
        self._answering: Generator[None, None, None] | None = None
        self._no_room = False  # for a chunk next to what the answer reads
        self._thread = thread or EngineThread(ingest_share)
        self._wake = self._thread.wake
        self._thread.add(self)

    def start(self) -> None:
        """Start the thread; :attr:`loaded` is done when the engine is there."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End the session and drop what waits; True if it ended within ``timeout`` seconds."""
        self.begin_to_stop()
        return self._thread.has_ended(self, timeout)

    def begin_to_stop(self) -> None:
        """Drop what waits, and end as soon as the piece of work under way is done."""
        self.abandon(Drop.RESET, NotActiveError("the engine was stopped before the answer came"))
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    @property
    def ingest_share(self) -> float:
        """Of an answer's time, for chunks."""
        return self._thread.scheduler.share

    @ingest_share.setter
    def ingest_share(self, share: float) -> None:
        self._thread.scheduler.share = share

    # What callbacks call. All return at once.

    def append(self, frames: list[TimedFrame]) -> None:
        """Queue a chunk. Its frames are pending in the counters until it is appended or dropped."""
        with self._wake:
            if self._stopping or self.ended is not None:
                self._drop(
                    frames, Drop.RESET if self._stopping else Drop.ERROR, str(self.ended or "")
                )
                return
            while self.waiting_chunks >= self.queue_size:
                waiting = [c for c in self._queue if isinstance(c, Append)]
                oldest = next((c for c in waiting if not c.is_ahead), waiting[0])
                self._queue.remove(oldest)
                self._drop(oldest.frames, Drop.OVERFLOW)
            self._queue.append(Append(frames))
            self._wake.notify()

    def ask(self, question: Question, progress: Progress | None = None) -> Ticket:
        """Queue a question; ``progress`` is called in the thread."""
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
        with self._wake:
            self._drop_chunks(cause)
            return self._put(Reset(cause))

    def copy_memory(self) -> Future[CopiedMemory]:
        """Copy the memory when its turn comes: behind the answer that is being written."""
        return self._put(CopyMemory())

    def load_memory(self, path: Path) -> Future[SavedMemory]:
        """Put a saved memory in the place of the present one when its turn comes. What was queued
        behind it waits. Where there are other sessions these go on: another thread reads the
        file, and holds all of it on the host meanwhile."""
        return self._put(LoadMemory(path))

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
            waiting = [command for command in self._queue if isinstance(command, ShowPicture)]
            if len(waiting) >= MAX_PICTURES:
                self._queue.remove(waiting[0])
                waiting[0].future.set_exception(QueueFullError("newer pictures were asked for"))
        return self._put(ShowPicture(stamp_ns, within_ns, max_size))

    def _put(self, command: _Waited) -> Future[Any]:
        with self._wake:
            if self._stopping or self.ended is not None:
                stopped = NotActiveError("the engine is being stopped")
                command.future.set_exception(self.ended or stopped)
            else:
                self._queue.append(command)
                self._wake.notify()
        return command.future

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

    def drop_chunks(self, cause: Drop) -> None:
        """Drop the waiting chunks for ``cause``."""
        with self._wake:
            self._drop_chunks(cause)

    @property
    def depth(self) -> int:
        """Commands waiting."""
        return len(self._queue)

    @property
    def waiting_chunks(self) -> int:
        """Chunks waiting."""
        with self._wake:
            return sum(isinstance(command, Append) for command in self._queue)

    @property
    def waiting_questions(self) -> int:
        """Questions waiting."""
        with self._wake:
            return sum(isinstance(command, Ticket) for command in self._queue)

    def _drop_chunks(self, cause: Drop) -> None:
        for command in self._queue:
            if isinstance(command, Append):
                self._drop(command.frames, cause)
        self._queue = deque(c for c in self._queue if not isinstance(c, Append))

    # What the thread calls: `take` and `wants` while it holds the lock.

    def open(self) -> None:
        """Load the engine; where that fails, the session ends."""
        try:
            engine = self._load()
            self._open(engine)
        except BaseException as fault:
            # What is no Exception would end the thread that asks for the result.
            ended = StreamVlmError(f"loading the model was ended by {fault!r}; see the log")
            self.loaded.set_exception(fault if isinstance(fault, Exception) else ended)
            self._dismiss(Drop.ERROR, EngineEndedError(str(ended)))
            self._let_go()
            return
        self.loaded.set_result(engine.memory_plan)

    def give_up(self) -> None:
        """It was told to stop before its engine was loaded."""
        stopped = NotActiveError("the engine was stopped before it was loaded")
        self.loaded.set_exception(stopped)
        self._dismiss(Drop.RESET, stopped)
        self._let_go()

    @property
    def is_to_stop(self) -> bool:
        """Whether it is to be closed: nothing is under way."""
        return self._stopping and self._answering is None and not self.over.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether it wants nothing."""
        return self._answering is None and not self._queue

    @property
    def wants(self) -> Wants:
        """What it could do now."""
        if self._answering is not None:
            return Wants(
                answer=True,
                joins=None if self.written is None else self.group,
                chunk=self._oldest_chunk() is not None,
                weight=self.weight,
            )
        if self._is_reading:
            return Wants(weight=self.weight)
        awaited = [command for command in self._queue if not isinstance(command, Append)]
        return Wants(
            answer=bool(awaited),
            begins=any(isinstance(command, Ticket) for command in awaited),
            chunk=bool(self._queue) and not awaited,
            weight=self.weight,
        )

    @property
    def _is_reading(self) -> bool:
        """Whether the memory that is to be next is being read."""
        first = self._queue[0] if self._queue else None
        return isinstance(first, LoadMemory) and first.is_being_read

    def take(self, *, is_chunk: bool) -> None:
        """Take what `work` or `append_taken` is to do."""
        if is_chunk:
            chunk = self._oldest_chunk()
            assert chunk is not None
            self._queue.remove(chunk)
            self._taken = chunk
        elif self._answering is None:
            self._taken = self._queue.popleft()
            if isinstance(self._taken, Ticket):
                self._current = self._taken
        elif (picture := self._oldest(ShowPicture)) is not None:
            self._queue.remove(picture)
            self._taken = picture

    def _oldest_chunk(self) -> Append | None:
        """The oldest that may be appended now, unless an answer has left no room."""
        return None if self._no_room else self._oldest(Append)

    def _oldest(self, kind: type[_Early]) -> _Early | None:
        """The oldest of a kind that waits, unless another memory begins before its turn."""
        for command in self._queue:
            if isinstance(command, Reset | LoadMemory):
                return None
            if isinstance(command, kind):
                return command
        return None

    def work(self) -> tuple[bool, bool]:
        """Do what was taken; whether an answer was begun, and whether one came to its end."""
        command, began, answered = self._taken, False, False
        try:
            if isinstance(command, Append):
                if not self._append(command.frames, answering=self._answering is not None):
                    self._put_back(command)  # there will be no more room until the answer ends
                    return False, False
            elif isinstance(command, Reset):
                self._reset(command)
            elif isinstance(command, LoadMemory) and self._is_read_aside(command):
                self._begin_to_read(command)
            elif isinstance(command, CopyMemory | LoadMemory):
                self._copy_or_load(command)
            else:
                if isinstance(command, ShowPicture):
                    self._show(command)
                ticket = command if isinstance(command, Ticket) else None
                if ticket is not None or self._answering is not None:
                    began, answered = ticket is not None, self._write(ticket)
            if answered or isinstance(command, _Changing):
                self._call(self._changed)
        except BaseException as fault:  # a user's function may raise anything, SystemExit too
            self.end(fault)
        self._taken = None
        return began, answered

    def _is_read_aside(self, command: LoadMemory) -> bool:
        """Whether its file is to be read in another thread first. With nobody to wait for that it
        is read piece by piece: the whole of it may not fit beside the memory."""
        return self._thread.is_shared and command.read is None

    def _begin_to_read(self, command: LoadMemory) -> None:
        """Read a memory in a thread of its own; meanwhile it is the next to be done."""
        reading: Future[ReadMemory] = Future()

        def read() -> None:
            try:
                with self._thread.reading(command.over):
                    reading.set_result(reader.read(command.path, command.over))
                    self._wake_up()
                    wait([command.future])  # until then it is on the host
            except BaseException as fault:  # for the one who asked
                reading.set_exception(fault)
                self._wake_up()

        try:
            reader = self._engine.memory_reader()
            # A daemon: who ends the session does not wait for it.
            threading.Thread(target=read, name="memory that is read", daemon=True).start()
        except Exception as fault:  # there may be too many threads
            command.future.set_exception(fault)
            return
        with self._wake:
            command.read = reading
            self._taken = None
            self._queue.appendleft(command)

    def _wake_up(self) -> None:
        with self._wake:
            self._wake.notify()

    def _write(self, ticket: Ticket | None) -> bool:
        """Begin an answer, or go on with the one that was begun; whether it has ended."""
        if ticket is not None:
            self._answering = self._answer(ticket)
        assert self._answering is not None
        try:
            next(self._answering)
        except StopIteration:
            with self._wake:
                self._answering = self._current = None
                self._no_room = False
            return True
        return False

    def prepared_chunk(self) -> tuple[InferenceEngine, list[Any], list[float]] | None:
        """The chunk that was taken, for who appends those of several sessions together: the engine,
        images and their times."""
        assert isinstance(self._taken, Append)
        frames = self._taken.frames
        try:
            self._limit_pixels()
        except BaseException as fault:
            self.appended(fault)
            return None
        return self._engine, self._taken.images, self._times(frames)

    @property
    def is_chunk_next(self) -> bool:
        """Whether a chunk is next unless somebody wants something."""
        return bool(self._queue) and isinstance(self._queue[0], Append) and not self.over.is_set()

    @property
    def coming_chunk(self) -> tuple[InferenceEngine, list[Any]] | None:
        """The engine and the images of the chunk that is next, which are to be encoded now; None:
        there is none."""
        if not self.is_chunk_next:
            return None
        command = self._queue[0]
        assert isinstance(command, Append)
        command.is_ahead = True
        return self._engine, command.images

    def appended(self, done: ChunkResult | BaseException) -> None:
        """What came of the chunk that was taken."""
        assert isinstance(self._taken, Append)
        frames = self._taken.frames
        try:
            if isinstance(done, BaseException) and not isinstance(done, Exception):
                self._drop(frames, Drop.ERROR, repr(done))
                raise done
            self._appended(frames, done)
            self._call(self._changed)
        except BaseException as fault:
            self.end(fault)
        self._taken = None

    def _put_back(self, command: Append) -> None:
        """Let a chunk wait on, as the oldest, until the answer has ended."""
        with self._wake:
            self._taken, self._no_room = None, True
            if self._stopping:
                self._drop(command.frames, Drop.RESET)
            elif self.waiting_chunks >= self.queue_size:
                self._drop(command.frames, Drop.OVERFLOW)
            else:
                self._queue.appendleft(command)

    def close(self) -> None:
        """It was told to stop: give the engine back."""
        # What came just behind the call of abandon() in begin_to_stop(), and what others wait for.
        self._dismiss(Drop.RESET, NotActiveError("the engine was stopped"))
        try:
            self._engine.close()
        except BaseException as fault:
            self.end(fault)
        self._let_go()

    def end(self, fault: BaseException) -> None:
        """The session ends by a fault: nobody is left waiting, and the fault is reported."""
        try:
            try:
                if self._answering is not None:
                    self._answering.close()
            finally:
                self._engine.close()
        except BaseException as another:
            fault = another
        ended = EngineEndedError(
            f"the engine has ended by {fault!r}: start it again (a node is cleaned up and "
            "configured, or restarted); see the log"
        )
        self._dismiss(Drop.ERROR, ended)
        self._report(fault)
        self._call(self._changed)
        self._let_go()

    def _dismiss(self, cause: Drop, why: StreamVlmError) -> None:
        """Drop the waiting chunks for ``cause``, and tell who waits why it is in vain."""
        with self._wake:
            if isinstance(why, EngineEndedError):
                self.ended = why
                self._call(self._failed_for_good)
            self._drop_chunks(cause)
            waiting, self._queue = [self._current, self._taken, *self._queue], deque()
            self._answering = self._current = self._taken = None
        for command in waiting:
            if isinstance(command, LoadMemory):
                command.over.set()
            if isinstance(command, Ticket) and not command.future.done():
                command.future.set_result(self._failed(command, why))
            elif isinstance(command, _Waited) and not command.future.done():
                command.future.set_exception(why)

    def _let_go(self) -> None:
        with self._wake:
            self.__dict__.pop("_engine", None)
            self.over.set()
