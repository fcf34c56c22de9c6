# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One thread for the engines of several sessions: only it touches them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from stream_vlm_ros.session.scheduler import Choice, Scheduler, Wants

if TYPE_CHECKING:  # torch takes seconds to import: the node is on the graph before that
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.engine.decoding import Answer
    from stream_vlm_ros.engine.results import ChunkResult
    from stream_vlm_ros.engine.together import Together
    from stream_vlm_ros.session.worker import EngineWorker

    # A chunk's engine, its images, and their times in that engine's seconds.
    PreparedChunk = tuple[InferenceEngine, list[Any], list[float]]
    # An engine and the images of its next chunk.
    ComingChunk = tuple[InferenceEngine, list[Any]]
    # What came of each chunk: a fault is its own, and no other's.
    AppendTogether = Callable[
        [Sequence[PreparedChunk], Sequence[ComingChunk]], Sequence[ChunkResult | BaseException]
    ]
    # Goes on with each, up to its next piece.
    WriteTogether = Callable[[Sequence[Answer]], None]

# Seconds that chunks which are appended together may take, so that a question waits no longer.
PATIENCE = 0.04
# Once chunks have waited for BEHIND seconds without a break, or two of one session wait, they come
# faster than they are appended. Together they are quicker, as the device waits less for the host:
# then they may take so long.
BEHIND, PATIENCE_BEHIND = 0.25, 0.15

# Memories that are read from files, and on the host until they are taken over, at a time.
MAX_READ = 4
POLL = 0.1  # s

# Answers that go on together: what one step of the engines takes (`engine.decode_path`).
MAX_ANSWERS = 8


# Kinds of work. ANSWERS is all that somebody waits for: an answer's pieces, a reset, a copy.
CHUNKS, ANSWERS, PREPARING = "chunks", "answers", "preparing"


class Spent(NamedTuple):
    """What one kind of work has taken so far.

    Attributes:
        passes: pieces of work, one after the other.
        parts: sessions that these served, together.
        seconds: by the thread's clock, with what the thread waited for the device.
    """

    passes: int = 0
    parts: int = 0
    seconds: float = 0.0

    def plus(self, parts: int, seconds: float) -> Spent:
        """With one more piece of work."""
        return Spent(self.passes + 1, self.parts + parts, self.seconds + seconds)


def together_appender() -> AppendTogether:
    """What appends chunks of engines of one `EngineGroup` at once. Imports torch when called."""
    kept: list[Together] = []  # the pictures that it has encoded ahead

    def append(
        chunks: Sequence[PreparedChunk], coming: Sequence[ComingChunk]
    ) -> Sequence[ChunkResult | BaseException]:
        from stream_vlm_ros.engine.together import Together, finished

        if not kept:
            kept.append(Together())
        return finished(kept[0].append(cast("Any", chunks), cast("Any", coming)))

    return append


def write_together(answers: Sequence[Answer]) -> None:
    """What goes on with answers of engines of one `EngineGroup` at once."""
    from stream_vlm_ros.engine import together

    together.write_together(answers)


class _Turn(NamedTuple):
    """What is next.

    Attributes:
        wants: what each session could do.
        choice: whose turn it is; None: sessions are to be loaded or closed, if there are any left.
        in_common: the chunks that wait, of whichever sessions, may be appended together.
        prepare: does a piece of what makes something ready, while nobody wants anything.
    """

    wants: dict[EngineWorker, Wants]
    choice: Choice[EngineWorker] | None = None
    in_common: bool = False
    prepare: Callable[[], None] | None = None

    @property
    def appends_together(self) -> bool:
        """Whether its chunks are appended by `AppendTogether`: also one alone, if others wait whose
        pictures can be encoded meanwhile."""
        if self.choice is None or not self.choice.is_chunk or not self.in_common:
            return False
        answering = any(its.answer for its in self.wants.values())
        return not answering and sum(its.chunk for its in self.wants.values()) > 1


class EngineThread:
    """Loads the engines of its sessions, and does what they want, one piece of work after another.

    What a session raises ends that session alone. Sessions come and go while it runs: one that
    is added is loaded between two pieces of work, one that has ended is let go.

    Args:
        ingest_share: see :class:`Scheduler`.
        append_together: appends chunks of several engines at once, given those that come next;
            None: one by one, as while engines that have no ``group`` in common want to append.
        together: of at most so many sessions, see `PATIENCE`.
        write_together: goes on with answers of several engines that have a ``group`` in common;
            None: they are written by turns.
        clock: seconds from any start.
        lasting: go on when no session is left, until `stop`.

    Attributes:
        wake: guards the queues of all sessions; notified when one has something to do.
        scheduler: decides who is next.
        spent: what the thread did with its time since it began, by kind of work.
        is_idle: nobody wants anything, and nothing is left to be made ready.
    """

    def __init__(
        self,
        ingest_share: float = 0.5,
        append_together: AppendTogether | None = None,
        together: int = 8,
        write_together: WriteTogether | None = None,
        clock: Callable[[], float] = time.monotonic,
        lasting: bool = False,
    ) -> None:
        self.wake = threading.Condition()
        answers = 1 if write_together is None else MAX_ANSWERS
        self.scheduler: Scheduler[EngineWorker] = Scheduler(ingest_share, answers=answers)
        self._write_together = write_together
        self._append_together, self._most = append_together, together
        self._chunk_seconds: dict[EngineWorker, float] = {}  # of each one's last chunk
        self.is_idle = False
        self._waiting_since: float | None = None  # by the clock, since when chunks have waited
        self._clock = clock
        self._workers: list[EngineWorker] = []  # that are not over; replaced as a whole
        self._lasting = lasting
        self._may_read = threading.BoundedSemaphore(MAX_READ)
        self.spent = dict.fromkeys((CHUNKS, ANSWERS, PREPARING), Spent())
        # A daemon: a model that is being loaded cannot be interrupted, and must not keep a
        # process alive that was told to end.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def add(self, worker: EngineWorker) -> None:
        """Take on a session; once the thread runs, only where it is ``lasting``."""
        with self.wake:
            self._workers = [*self._workers, worker]
            self.wake.notify()

    def start(self) -> None:
        """Load the engines, in the order in which the sessions were added, and begin."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End all sessions and the thread; True if it ended within ``timeout`` seconds."""
        for worker in self._workers:
            worker.begin_to_stop()
        with self.wake:
            self._lasting = False
            self.wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_shared(self) -> bool:
        """Whether there are several sessions, or may be."""
        return self._lasting or len(self._workers) > 1

    @contextmanager
    def reading(self, over: threading.Event) -> Iterator[None]:
        """One of `MAX_READ` that hold a memory, in another thread. CancelledError once ``over`` is
        set before it is its turn."""
        while not self._may_read.acquire(timeout=POLL):
            if over.is_set():
                raise CancelledError
        try:
            yield
        finally:
            self._may_read.release()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def has_ended(self, worker: EngineWorker, timeout: float) -> bool:
        """Wait so many seconds for the end of a session, and of the thread if it is the last."""
        until = time.monotonic() + timeout
        if self._thread.ident is None:
            return True
        if not worker.over.wait(timeout):
            return False
        if not self._lasting and all(one.over.is_set() for one in self._workers):
            self._thread.join(max(0.0, until - time.monotonic()))
            return not self._thread.is_alive()
        return True

    # What runs in the thread.

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException as fault:  # of this package: no session's own
            for worker in self._workers:
                if not worker.over.is_set():
                    worker.end(fault)

    def _serve(self) -> bool:
        """Do what is next; False when all sessions are over."""
        with self.wake:
            turn = self._choose()
            new = [worker for worker in self._workers if not worker.loaded.done()]
            stopped = [worker for worker in self._workers if worker.is_to_stop]
            if turn.choice is not None:
                for worker in turn.choice.sessions:
                    worker.take(is_chunk=turn.choice.is_chunk)
            elif not new and not stopped and turn.prepare is None:
                return False
        if turn.prepare is not None:
            begin = self._clock()
            turn.prepare()
            self._spend(PREPARING, 1, self._clock() - begin)
        for worker in stopped:
            (worker.give_up if worker in new else worker.close)()
        for worker in new:
            if not worker.over.is_set():
                worker.open()
        if turn.choice is not None:
            self._carry_out(turn, turn.choice)
        return True

    def _choose(self) -> _Turn:
        """Wait until there is something to do, or no session is left."""
        while True:
            self._let_go()
            left = self._workers
            if any(worker.is_to_stop or not worker.loaded.done() for worker in left):
                return _Turn({})
            if not left and not self._lasting:
                return _Turn({})
            wants = {worker: worker.wants for worker in left if not worker.is_idle}
            with_chunks = [worker for worker, its in wants.items() if its.chunk]
            in_common, patience = self._have_in_common(with_chunks), self._patience(with_chunks)
            self.scheduler.together = self._batch(with_chunks, patience) if in_common else 1
            if (choice := self.scheduler.choose(wants)) is not None:
                return _Turn(wants, choice, in_common)
            if (prepare := self._preparing()) is not None:
                return _Turn({}, prepare=prepare)
            self.is_idle = True
            self.wake.wait()
            self.is_idle = False

    def _preparing(self) -> Callable[[], None] | None:
        """What makes something ready that the chunks of a group would wait for; None: there is
        nothing."""
        if self._append_together is None:
            return None
        for group in dict.fromkeys(worker.group for worker in self._workers):
            most = self._most_of(group)
            if hasattr(group, "prepare_next") and not group.is_prepared(most):
                return partial(group.prepare_next, most)
        return None

    def _most_of(self, group: Any) -> int:
        """Of how many of its sessions chunks may come to be appended together, by what they have
        taken: of the quickest, since each may come without those that are slower."""
        its = [worker for worker in self._workers if worker.group is group]
        known = (self._chunk_seconds[one] for one in its if one in self._chunk_seconds)
        fitting = int(PATIENCE_BEHIND / min(known, default=PATIENCE))
        return max(1, min(len(its), self._most, fitting))

    def _let_go(self) -> None:
        """Forget sessions that are over."""
        over = [worker for worker in self._workers if worker.over.is_set()]
        for worker in over:
            self.scheduler.forget(worker)
            self._chunk_seconds.pop(worker, None)
        if over:
            self._workers = [worker for worker in self._workers if worker not in over]

    def _have_in_common(self, with_chunks: Sequence[EngineWorker]) -> bool:
        """Whether there are chunks, all of engines of one group."""
        groups = {worker.group for worker in with_chunks}
        return self._append_together is not None and len(groups) == 1 and None not in groups

    def _patience(self, with_chunks: Sequence[EngineWorker]) -> float:
        """Seconds that chunks may take together now."""
        if not with_chunks:
            self._waiting_since = None
            return PATIENCE
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now
        piled_up = any(worker.waiting_chunks > 1 for worker in with_chunks)
        behind = piled_up or now - self._waiting_since >= BEHIND
        return PATIENCE_BEHIND if behind else PATIENCE

    def _batch(self, with_chunks: Sequence[EngineWorker], patience: float) -> int:
        """Of how many sessions, those that are next, chunks may be appended in so many seconds.

        One whose chunks take long does not keep those before it apart, though it may always wait.
        """
        ordered = self.scheduler.chunks_in_order(with_chunks)
        seconds = accumulate(self._chunk_seconds.get(worker, PATIENCE) for worker in ordered)
        fitting = sum(total <= patience for total in seconds)
        return max(1, min(self._most, fitting))

    def _carry_out(self, turn: _Turn, choice: Choice[EngineWorker]) -> None:
        begin = self._clock()
        began = answered = False
        if turn.appends_together:
            self._append(choice.sessions)
        elif len(choice.sessions) == 1:
            began, answered = choice.sessions[0].work()
        else:
            answered = self._write(choice.sessions)
        seconds = self._clock() - begin
        self._spend(CHUNKS if choice.is_chunk else ANSWERS, len(choice.sessions), seconds)
        if choice.is_chunk:
            each = max(seconds, 1e-6) / len(choice.sessions)
            self._chunk_seconds |= {one: each for one in choice.sessions if not one.last_fault}
        self.scheduler.done(choice, seconds, turn.wants, began=began, answered=answered)

    def _spend(self, kind: str, parts: int, seconds: float) -> None:
        self.spent[kind] = self.spent[kind].plus(parts, seconds)

    def _next(self, workers: Sequence[EngineWorker]) -> list[EngineWorker]:
        """Whose chunks come behind those of ``workers``, as many as are appended at once now: a
        question would wait for more pictures, and long before their turn they would be encoded
        again."""
        waiting = [worker for worker in self._workers if worker.is_chunk_next]
        ordered = self.scheduler.chunks_in_order(waiting)
        ordered.sort(key=lambda worker: worker in workers)  # who is served now is behind
        return ordered[: self.scheduler.together]

    def _append(self, workers: Sequence[EngineWorker]) -> None:
        """Append the chunks that were taken, together."""
        assert self._append_together is not None
        with self.wake:
            coming = [one for worker in self._next(workers) if (one := worker.coming_chunk)]
        prepared = {worker: worker.prepared_chunk() for worker in workers}
        chunks = {worker: chunk for worker, chunk in prepared.items() if chunk is not None}
        done: Sequence[ChunkResult | BaseException]
        try:
            done = self._append_together(list(chunks.values()), coming)
        except BaseException as fault:  # none was appended
            done = [fault] * len(chunks)
        for worker, result in zip(chunks, done, strict=True):
            worker.appended(result)

    def _write(self, workers: Sequence[EngineWorker]) -> bool:
        """Go on with the answers of several sessions; whether one came to its end."""
        assert self._write_together is not None
        self._write_together([one.written for one in workers if one.written is not None])
        ended = [worker.work()[1] for worker in workers]
        return any(ended)
