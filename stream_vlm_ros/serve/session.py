# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session: the memory of one camera.

Without a network: frames and questions come by calls, from any thread, and events go to listeners.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.config import Settings, check_memory_name
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.events import Events, FrameEnd, Listener, Sent
from stream_vlm_ros.serve.frames import Frames, PictureBounds
from stream_vlm_ros.serve.life_cycle import LifeCycle, Phase
from stream_vlm_ros.serve.notes import NoteWriter
from stream_vlm_ros.serve.session_errors import MemoryLimitError, ServerEndingError
from stream_vlm_ros.serve.session_file import SessionFile, gap_between
from stream_vlm_ros.serve.telling import memory_of, saved_of
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.memory_keeper import SUFFIX, Done, MemoryKeeper, memory_path
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.news import News
from stream_vlm_ros.session.question import NotActiveError, Outcome, Progress, Question, Ticket
from stream_vlm_ros.session.worker import EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.session.engine_thread import EngineThread

log = logging.getLogger(__name__)

SAVES_AT_ONCE = 8  # of all sessions: each has a copy of its memory on the host
END_AGAIN = 5.0  # s until another server is let in, where saving has failed
BROKEN = (
    "the session's engine has ended by a fault: in a moment the session begins again from what was "
    "saved of it"
)


@dataclass(frozen=True)
class SessionContext:
    """What the sessions of a server have in common.

    Attributes:
        load: builds an engine, in ``thread``.
        answered: called with what came of each question, in that thread.
        model: what answers, in words.
        server: the name of the server, for those that share its memory_folder.
        patience: seconds that one of those has to let a session go.
        bounds: of pictures.
        max_held_bytes: of a session's frames on their way into its memory.
        max_memories: that are saved of one key; 0: without a limit.
        saving: who saves as it ends holds one of these.
        notes: writes how far frames were accepted.
    """

    load: Callable[[Settings], InferenceEngine]
    thread: EngineThread
    answered: Callable[[Outcome], None]
    model: str
    server: str
    patience: float
    bounds: PictureBounds
    max_held_bytes: int
    max_memories: int
    saving: threading.Semaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(SAVES_AT_ONCE)
    )
    notes: NoteWriter = field(default_factory=NoteWriter)


class Session:
    """One memory. How it ends is in `stream_vlm_ros.serve.ending`.

    Args:
        id, owner: its name, and whose it is.
        settings: of its engine, and of the way of its frames.

    Attributes:
        life: where it is, from loading to its end.
        frames: the way of frames into its memory.
        events: tell what becomes of them.
        worker: its engine, and the queue in front of it.
        keeper: saves and loads its memory.
        file: where it is saved.
        ready: done when its memory can be asked; raises why there is none.
        restored: it was begun from a saved memory.
        gap: what was lost with a server that ended, in words; "" if nothing.
        asked: questions under way.
        bounds: of pictures, as its engine takes them.
        connection: by whom it is fed and asked at the moment; None: nobody is connected.
        was_connected: somebody is, or was before.
    """

    def __init__(self, id: str, owner: str, settings: Settings, context: SessionContext) -> None:
        self.id, self.owner, self.context = id, owner, context
        self.ready: Future[None] = Future()
        self.ready.set_running_or_notify_cancel()  # who waits for it and goes does not cancel it
        self.restored, self.gap = False, ""
        self.connection: Any = None
        self.was_connected = False
        self.began = time.time()
        self.touched = time.monotonic()
        self.asked = 0
        self.bounds = context.bounds
        self._counting = threading.Lock()  # of what is asked
        self._not_saved_at = -END_AGAIN
        self._news = News()  # of refused chunks and frames
        self.life, self.events, self.counters = LifeCycle(), Events(), FrameCounters()
        self.file = SessionFile(settings, context.server, context.patience, context.notes)
        self.worker = EngineWorker(
            lambda: self._make_engine(settings),
            self.counters,
            settings.queue_size,
            settings.max_questions,
            changed=self.events.status_changed,
            report=self._report,
            failed=self.life.fail,
            thread=context.thread,
            chunk_ended=self.events.chunk_ended,
        )
        self.frames = Frames(
            name=id,
            settings=settings,
            life=self.life,
            worker=self.worker,
            counters=self.counters,
            events=self.events,
            news=self._news,
            touch=self.touch,
            bounds=lambda: self.bounds,
            max_held_bytes=context.max_held_bytes,
        )
        self.keeper = MemoryKeeper(
            self.worker, lambda: self.settings, time.time_ns, lambda words: log.warning("%s", words)
        )

    @property
    def settings(self) -> Settings:
        """Those that hold now."""
        return self.frames.settings

    # -- questions, and what else is asked ---------------------------------------------------

    def ask(self, question: Question, progress: Progress | None = None) -> Ticket:
        """Queue a question; its ticket's future always gets an outcome. ``progress`` is called in
        the thread of the engines."""
        self.touch()
        if question.history and not self.settings.has_history:
            question = replace(question, history="")
        if (refusal := self._refusal) is not None:
            ticket = Ticket(question, progress)
            ticket.future.set_result(Outcome(question, error=refusal, memory=self.memory))
        else:
            ticket = self.worker.ask(question, progress)
        with self._counting:
            self.asked += 1
        ticket.future.add_done_callback(self._on_outcome)
        return ticket

    @property
    def _refusal(self) -> StreamVlmError | None:
        """Why nothing can be asked now."""
        if self.is_broken:
            return ServerEndingError(BROKEN)
        if not self.life.takes_questions:
            return ServerEndingError("the session is being ended: ask again in a moment")
        if not self.ready.done():
            return NotActiveError("the session is being begun: ask again in a moment")
        return None

    def _on_outcome(self, done: Future[Outcome]) -> None:
        with self._counting:
            self.asked -= 1
        self.touch()
        self.context.answered(done.result())

    def reset(self, *, time_jump: bool = False) -> Future[None]:
        """Forget what was seen, and unless time jumped also what was saved of it by itself, with
        which the session would begin again."""
        self.gap = ""
        resetting, accepted = self.frames.reset(Drop.TIME_JUMP if time_jump else Drop.RESET)
        if time_jump or self.file.path is None:
            return resetting
        forgotten: Future[None] = Future()
        resetting.add_done_callback(lambda done: self._forget_saved(done, accepted, forgotten))
        return forgotten

    def _forget_saved(
        self, resetting: Future[None], accepted: Sent | None, forgotten: Future[None]
    ) -> None:
        """In the thread of the engines, which waits for no file."""

        def end(done: Future[Any]) -> None:
            if (fault := done.exception()) is not None:
                forgotten.set_exception(fault)
            else:
                forgotten.set_result(None)

        if resetting.exception() is not None:
            end(resetting)
            return
        try:
            forgetting = self.keeper.forget(lambda: self.file.forget_note(accepted))
        except RuntimeError:  # it is being ended
            forgotten.set_exception(ServerEndingError("the session is being ended"))
        else:
            forgetting.add_done_callback(end)

    def save(self, name: str = "") -> Future[Done]:
        """Save the memory; "": under the session's name. Raises StreamVlmError."""
        self.touch()
        if name and self.context.max_memories:
            self._check_memories(name)
        return self.keeper.save(name)

    def _check_memories(self, name: str) -> None:
        check_memory_name(name)
        file = memory_path(self.settings, name)
        if file is None or name == self.settings.memory_name or os.path.lexists(file):
            return
        limit = self.context.max_memories
        if len([*file.parent.glob(f"*{SUFFIX}")]) >= limit:
            raise MemoryLimitError(
                f"this key has {limit} saved memories already (--max-memories-per-key):"
                " save under a name that there is, or DELETE /v1/sessions/NAME one"
            )

    def load(self, name: str = "") -> Future[Done]:
        """Put a saved memory in the place of the present one; frames that come meanwhile are
        dropped. Raises StreamVlmError."""
        self.touch()
        loading = self.frames.load(lambda: self.keeper.load(name))
        loading.add_done_callback(self._on_loaded)
        return loading

    def _on_loaded(self, loading: Future[Done]) -> None:
        if not loading.cancelled() and loading.exception() is None:
            self.gap = ""

    # -- what is told ------------------------------------------------------------------------

    @property
    def memory(self) -> MemorySummary:
        """What is in it."""
        return self.worker.memory

    @property
    def status(self) -> protocol.Status:
        """Its state at this moment."""
        worker, state = self.worker, self.keeper.state
        more = {"resets": worker.resets, "time_jumps": self.frames.time_jumps}
        return protocol.Status(
            memory=memory_of(worker.memory),
            saved=saved_of(replace(state, error=self.file.without_folder(state.error))),
            counters=self.counters.snapshot() | more,
            queue_depth=worker.depth,
            fault=str(worker.ended or "") or worker.last_fault,
            gap=self.gap,
        )

    def described(self, *, resumed: bool = False) -> protocol.Session:
        """What it is, for who connects."""
        accepted, bounds = self.frames.accepted, self.bounds
        newest_ns = self.memory.latest_ns
        return protocol.Session(
            id=self.id,
            resumed=resumed,
            restored=self.restored,
            accepted_ns=newest_ns if accepted is None else accepted.stamp_ns,
            accepted_sequence=0 if accepted is None else accepted.sequence,
            model=self.context.model,
            device=self.worker.device,
            plan=self.worker.loaded.result() if self.worker.loaded.done() else "",
            factor=bounds.factor,
            min_pixels=bounds.min_pixels,
            max_pixels=bounds.max_pixels,
            settings=self.frames.clients_settings,
        )

    def connect(self, listener: Listener) -> list[FrameEnd]:
        """Tell a listener, in any thread, what becomes of frames, and None when the status has
        changed. How the newest chunks ended, which a connection before it may not have been told.
        """
        self.touch()
        self.was_connected = True
        self.frames.begin_connection()
        return self.events.add(listener)

    def disconnect(self, listener: Listener) -> None:
        """Tell it nothing more."""
        self.events.remove(listener)
        self.touch()

    def touch(self) -> None:
        """Something came for it."""
        self.touched = time.monotonic()

    def _report(self, fault: BaseException) -> None:
        if isinstance(fault, StreamVlmError):
            self._news.tell(fault.code, f"session {self.id}: {fault}", log.warning)
        else:
            log.error("session %s: internal error", self.id, exc_info=fault)

    # -- its life ----------------------------------------------------------------------------

    def _make_engine(self, settings: Settings) -> InferenceEngine:
        engine = self.context.load(settings)
        high = getattr(engine, "max_pixels", None) or self.bounds.max_pixels
        self.bounds = replace(self.bounds, min_pixels=engine.min_pixels, max_pixels=high)
        return engine

    def begin(self) -> None:
        """Wait for the engine, and go on from the saved memory of its name, if there is one.

        Raises SessionElsewhereError where another server has it, and does not let it go;
        ServerEndingError where the session was ended meanwhile.
        """
        self.worker.loaded.result()
        self.file.own(lambda: not self.life.takes_frames)
        self._check_begins()
        if self.file.path is not None:
            noted = self.file.noted()
            if os.path.lexists(self.file.path):
                words = self.keeper.load_at_start()
                self.restored = not self.keeper.state.error
                log.info("session %s: %s", self.id, words)
            self.gap = gap_between(noted, self.memory.latest_ns, self.file.killed)
        self.frames.begin(self.memory.latest_ns)
        if not self.life.serve():
            self.frames.stop()
            self._check_begins()

    def _check_begins(self) -> None:
        if self.life.phase is Phase.BROKEN:
            raise ServerEndingError(BROKEN)
        if self.life.phase is not Phase.LOADING:
            raise ServerEndingError("the session was ended before it had begun: try again")

    def tick(self) -> None:
        """What is done every now and then."""
        if self.life.phase is not Phase.SERVING:
            return
        self._news.tell_rest()
        self.frames.flush_overdue()
        if self.file.path is not None:
            self.keeper.save_when_due()
            if self.file.is_note_due:
                self.file.note(self.frames.accepted)

    @property
    def has_begun(self) -> bool:
        """Whether it had a memory, that of its file included."""
        return self.ready.done() and self.ready.exception() is None

    @property
    def is_saved(self) -> bool:
        """Whether all that is in memory is saved, in a file of its own."""
        return self.has_begun and self.file.path is not None and self.keeper.is_saved

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is worth keeping."""
        return not self.is_busy and not self.counters.received and self.memory.latest_ns is None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way, or a chunk waits."""
        return self.asked > 0 or self.worker.depth > 0 or self.counters.pending > 0

    @property
    def is_broken(self) -> bool:
        """Whether its engine has ended by a fault, be it that it is ended for that."""
        return self.ready.done() and self.worker.ended is not None

    @property
    def is_wanted(self) -> bool:
        """Whether another server waits for it."""
        is_due = time.monotonic() - self._not_saved_at >= END_AGAIN
        return is_due and self.file.is_wanted

    @property
    def is_in_its_file(self) -> bool:
        """Whether all that it has seen, and something, is saved and stays."""
        has_file = self.file.path is not None and not self.life.forgets
        return has_file and self.memory.chunks > 0 and self.keeper.is_saved

    def begin_end(self) -> bool:
        """Accept no frame more; those that were accepted end in their own time. Questions are still
        answered. Whether it is the caller who ends the session: by `stream_vlm_ros.serve.ending`.
        """
        if not self.life.begin_end():
            return False
        self.frames.stop()
        return True

    def go_on(self) -> None:
        """Take frames and questions again, after `begin_end`."""
        self._not_saved_at = time.monotonic()
        self.frames.go_on()
        self.life.go_on()
        if self.worker.ended is not None:
            self.life.fail()
        self.touch()
