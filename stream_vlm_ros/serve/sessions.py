# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The table of a server's sessions: which there are, how many there may be, and when they end."""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stream_vlm_ros.config import Settings, check_memory_name
from stream_vlm_ros.errors import InvalidParameterError, MemoryFileError, StreamVlmError, cut
from stream_vlm_ros.factory import build_engine, card_of, group_of, load_model
from stream_vlm_ros.serve.calls import Call
from stream_vlm_ros.serve.ending import END_TIMEOUT, end, stop
from stream_vlm_ros.serve.frames import PictureBounds
from stream_vlm_ros.serve.life_cycle import Phase
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.session import BROKEN, Session, SessionContext
from stream_vlm_ros.serve.session_errors import (
    FolderError,
    NotSavedError,
    ServerEndingError,
    SessionLimitError,
    SessionUnknownError,
)
from stream_vlm_ros.serve.session_file import SessionFile
from stream_vlm_ros.session.counters import FrameCounters
from stream_vlm_ros.session.engine_thread import (
    EngineThread,
    Spent,
    together_appender,
    write_together,
)
from stream_vlm_ros.session.question import NotActiveError, Outcome
from stream_vlm_ros.session.worker import EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.engine import Checkpoint, InferenceEngine
    from stream_vlm_ros.engine.together import EngineGroup

log = logging.getLogger(__name__)

_Told = TypeVar("_Told")

MAX_HELD_BYTES = 4 << 30  # of all sessions' frames on their way into the memory: an equal part each
TICK = 0.25  # s
EMPTY = 60.0  # s that a session stays that has seen nothing, without a connection


class Sessions:
    """All sessions of a server, by owner and name.

    Args:
        settings: of each session, but for its name.
        limits: how many there are, and for how long.
        keys: how many keys there are, each with sessions of its own; 0: none is needed.
        server: the name of this server, for those that share its memory_folder.
        load: gives the model.

    Attributes:
        when_answered: called with the outcome of each question, in the thread of the engines.
        when_closed: called with each session that has ended.
        connections: that have not come to their end.
        model: what answers, in words.
    """

    def __init__(
        self,
        settings: Settings,
        limits: Limits | None = None,
        *,
        keys: int = 0,
        server: str = "",
        load: Callable[[Settings], Checkpoint] = load_model,
    ) -> None:
        if not settings.max_cache_tokens:
            raise InvalidParameterError(
                "max_cache_tokens must be said, as each of several sessions takes so many"
            )
        if settings.frame_store:
            raise InvalidParameterError("frame_store is of one camera; a server has many")
        if settings.memory_folder:
            settings = replace(settings, save_memory_on_shutdown=True)
        self.settings, self.limits, self.server = settings, limits or Limits(), server
        self.model = str(card_of(settings))
        self._keys = keys
        self.began = time.time()
        self.when_answered: list[Callable[[Outcome], None]] = []
        self.when_closed: list[Callable[[Session], None]] = []
        self.connections: set[Any] = set()
        self.draining = False
        self._table: dict[tuple[str, str], Session] = {}
        self._lock = threading.Lock()
        self._load_model = load
        self._checkpoint: Checkpoint | None = None
        self._group: EngineGroup | None = None
        self._thread = EngineThread(
            settings.ingest_share,
            together_appender(),
            write_together=write_together,
            lasting=True,
        )
        # Whoever waits for another server keeps nobody else from beginning.
        self._beginning = ThreadPoolExecutor(
            self.limits.max_sessions, thread_name_prefix="sessions that begin"
        )
        self._closing = ThreadPoolExecutor(8, thread_name_prefix="sessions that are closed")
        self._context: SessionContext | None = None  # once the model is there
        self._ended = threading.Event()
        self._keeping = self._thread_that_looks(self._look_after, "sessions")
        self._giving_up = self._thread_that_looks(self._give_up_if_wanted, "wanted sessions")

    def load(self) -> str:
        """Load the model, take the memory that a GPU's sessions share, and begin; what they take,
        in one line. Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError."""
        self._checkpoint = self._load_model(self.settings)
        self._group = group_of([self.settings] * self.limits.max_sessions, self._checkpoint)
        self._context = self._context_of(self._checkpoint)
        for pool in (self._beginning, self._closing):
            pool.submit(int)  # one thread that there is, whatever comes
        self._thread.start()
        trial = EngineWorker(
            lambda: self._build(self.settings), FrameCounters(), 1, 1, thread=self._thread
        )
        try:
            return trial.loaded.result()
        finally:
            trial.stop(END_TIMEOUT)
            self._giving_up.start()
            self._keeping.start()

    def _context_of(self, checkpoint: Checkpoint) -> SessionContext:
        images = checkpoint.processor.image_settings
        factor = images.patch_size * images.merge_size
        return SessionContext(
            self._build,
            self._thread,
            self.answered,
            self.model,
            self.server,
            self.limits.drain_seconds,
            PictureBounds(factor, images.min_pixels, images.max_pixels),
            MAX_HELD_BYTES // self.limits.max_sessions,
            self.limits.max_memories_per_key,
        )

    @property
    def is_loaded(self) -> bool:
        """Whether sessions can be opened."""
        return self._keeping.ident is not None and not self.draining

    @property
    def is_alive(self) -> bool:
        """Whether the engines' thread runs, once they are loaded and until `drain`."""
        return self._thread.is_alive

    @property
    def spent(self) -> dict[str, Spent]:
        """What the engines' thread did with its time, by kind of work."""
        return dict(self._thread.spent)

    def _build(self, settings: Settings) -> InferenceEngine:
        assert self._checkpoint is not None
        if (group := self._group) is not None and not group.has_room:
            gc.collect()  # sessions that have ended may still be somewhere in a cycle
        return build_engine(settings, self._checkpoint, group)

    # -- which there are ---------------------------------------------------------------------

    def open(self, id: str, owner: str) -> Session:
        """The session of that name, which is there or begins; it may still be loading
        (`Session.ready`).

        Raises:
            InvalidParameterError: a name that is none.
            SessionLimitError: there are too many.
            NotActiveError: the server, or the session, is just being ended.
        """
        check_session_id(id)
        with self._lock:
            self._check_open()
            assert self._context is not None
            if (found := self._table.get((owner, id))) is not None:
                if found.is_broken:
                    raise ServerEndingError(BROKEN)
                if not found.life.takes_frames:
                    raise ServerEndingError(f"session {id} is being ended: try again in a moment")
                found.touch()
                return found
            self._make_room(owner)
            session = Session(id, owner, self._settings_of(id, owner), self._context)
            self._table[owner, id] = session
            try:
                self._beginning.submit(self._begin, session)
            except RuntimeError as fault:  # there are too many threads: one that there is has it
                log.warning("session %s may begin late: %s", id, fault)
        return session

    def find_or_restore(self, id: str, owner: str) -> Session:
        """A session that there is, or of which something is saved: that one begins again.

        Raises as `open`, and SessionUnknownError.
        """
        try:
            return self.find(id, owner)
        except SessionUnknownError:
            if not self._is_saved(id, owner):
                raise
        return self.open(id, owner)

    def _is_saved(self, id: str, owner: str) -> bool:
        try:
            check_session_id(id)
        except InvalidParameterError:
            return False
        return SessionFile(self._settings_of(id, owner)).is_there

    def find(self, id: str, owner: str) -> Session:
        """A session that there is. Raises SessionUnknownError."""
        with self._lock:
            if (found := self._table.get((owner, id))) is None:
                raise SessionUnknownError(f"there is no session {cut(id)!r}")
            return found

    def all(self, owner: str | None = None) -> list[Session]:
        """Those of an owner; None: all."""
        with self._lock:
            return [one for one in self._table.values() if owner in (None, one.owner)]

    def close(self, id: str, owner: str, *, forget: bool = True) -> None:
        """End a session; with ``forget`` what was saved of it by itself is deleted, too. Raises
        SessionUnknownError."""
        try:
            session = self.find(id, owner)
        except SessionUnknownError:
            if not forget or not self._is_saved(id, owner):
                raise
            self._delete_saved(self._settings_of(id, owner))
            return
        if forget:
            session.life.forget()
        self._end(session)
        if forget and session.life.phase is not Phase.FORGOTTEN:
            self._delete_saved(session.settings)

    def begin_to_close(self, id: str, owner: str) -> Future[None]:
        """`close`, and forget, in another thread; done, or raising as that, when it has ended."""
        closing = Call(self.close, id, owner)
        try:
            self._closing.submit(closing)
        except RuntimeError as fault:  # there are too many threads: one that there is has it
            log.warning("session %s may be closed late: %s", id, fault)
        return closing.done

    def _delete_saved(self, settings: Settings) -> None:
        """Delete what is saved of a session by itself, also where another server has it at first.
        Raises SessionElsewhereError, FolderError."""
        patience = min(END_TIMEOUT, self.limits.drain_seconds)  # others want to delete, too
        try:
            SessionFile(settings, self.server, patience).delete()
        except (OSError, MemoryFileError) as fault:  # of what is mended without us
            log.warning("session %s: what is saved of it stays: %s", settings.memory_name, fault)
            raise FolderError(
                "what is saved of the session cannot be deleted: the server's memory_folder cannot "
                "be written now"
            ) from None

    def hand_over(self, sessions: Sequence[Session], timeout: float = 30.0) -> None:
        """End some in order: chunks that wait come to their end, memories are saved, then answers
        end, and connections are told. Another server may go on with them."""
        until = time.monotonic() + timeout
        begun = [one.begin_end() for one in sessions]  # none takes a frame from here on
        how: dict[str, Any] = {"unsaved": self.draining, "until": until}
        ending = []
        for one, its in zip(sessions, begun, strict=True):
            try:
                ending.append(_in_thread(self._end, one, begun=its, **how))
            except RuntimeError:  # there are too many threads
                self._end(one, begun=its, **how)
        wait(ending)

    def drain(self, timeout: float = 30.0) -> None:
        """Hand all over, and take nothing new."""
        with self._lock:
            self.draining = True
            sessions = list(self._table.values())
        self.hand_over(sessions, timeout)
        self._ended.set()
        self._thread.stop(END_TIMEOUT)
        self._beginning.shutdown(wait=False)

    def _check_open(self) -> None:
        if self.draining:
            raise ServerEndingError("the server is being stopped")
        if not self.is_loaded:
            raise NotActiveError("the model is being loaded: try again in a moment")
        if not self.is_alive:
            raise NotActiveError("the thread of the engines has ended: start the server again")

    def _make_room(self, owner: str) -> None:
        """For one more of an owner's. Raises SessionLimitError."""
        limits = self.limits
        held = Counter(one for one, _ in self._table)
        why = limits.why_not_one_more(owner, held, self._keys)
        if why and not self._end_an_empty_one(owner):
            raise SessionLimitError(why)
        if len(self._table) >= limits.max_sessions and not self._end_an_empty_one():
            raise SessionLimitError(
                f"{limits.max_sessions} sessions are served already (--max-sessions)"
            )

    def _end_an_empty_one(self, owner: str | None = None) -> bool:
        """End a session that has seen nothing and is not connected, of an owner's or of all;
        whether there is one."""
        for key, one in self._table.items():
            if (
                owner in (None, one.owner)
                and one.connection is None
                and one.ready.done()
                and one.is_empty
                and one.begin_end()
            ):
                try:
                    _in_thread(self._end, one, begun=True)
                except RuntimeError as fault:  # there are too many threads
                    log.warning("session %s cannot make room: %s", one.id, fault)
                    one.go_on()
                    return False
                one.worker.begin_to_stop()  # before the next one's engine is built
                del self._table[key]
                return True
        return False

    def _settings_of(self, id: str, owner: str) -> Settings:
        if not self.settings.memory_folder:
            return self.settings
        folder = Path(os.path.expanduser(self.settings.memory_folder)) / owner
        return replace(self.settings, memory_folder=str(folder), memory_name=id)

    # -- their lives -------------------------------------------------------------------------

    def answered(self, outcome: Outcome) -> None:
        """A question has come to its end."""
        _tell_each(self.when_answered, outcome)

    def _begin(self, session: Session) -> None:
        try:
            session.begin()
        except Exception as fault:
            if isinstance(fault, OSError | MemoryFileError):  # of what is mended without us
                log.warning("session %s could not be begun: %s", session.id, fault)
                fault = FolderError("the server's memory_folder cannot be written now")
            elif not isinstance(fault, StreamVlmError):
                log.error("session %s could not be begun", session.id, exc_info=fault)
            try:
                is_ours = session.begin_end()  # else somebody ends it already
                forgotten = _stop(session)
                if is_ours:
                    self._leave(session, forgotten)
            finally:
                session.ready.set_exception(fault)
            return
        session.ready.set_result(None)

    def _end(
        self,
        session: Session,
        *,
        unsaved: bool = True,
        until: float = 0.0,
        begun: bool = False,
    ) -> None:
        """End a session, or wait for who ends it; where that one lets it go on, end it again.

        Args:
            unsaved: it ends also where it cannot be saved.
            until: by `time.monotonic`, at least `END_TIMEOUT` from now.
            begun: the session's `begin_end` was true.
        """
        longest = max(END_TIMEOUT, self.limits.drain_seconds) + END_TIMEOUT
        while not (begun or session.begin_end()):
            if not session.life.wait_for_end(longest):
                log.error("session %s is being ended for too long", session.id)
                return
            if session.life.is_over:
                return
        try:
            forgotten = end(
                session, timeout=max(END_TIMEOUT, until - time.monotonic()), unsaved=unsaved
            )
        except NotSavedError as fault:
            log.warning("session %s: %s", session.id, fault)
            if (connection := session.connection) is not None:
                connection.session_ended(False, str(fault))  # it sends again what came
            return
        except Exception as fault:
            log.error("session %s did not end well", session.id, exc_info=fault)
            forgotten = _stop(session)
        self._leave(session, forgotten)
        if (connection := session.connection) is not None:
            ended = "saved and ended" if session.is_in_its_file else "ended"
            words = BROKEN if session.is_broken else f"the session was {ended}"
            connection.session_ended(session.life.forgets, words)

    def _leave(self, session: Session, forgotten: bool) -> None:
        """Its engine is gone."""
        _tell_each(self.when_closed, session)
        with self._lock:
            if self._table.get((session.owner, session.id)) is session:
                del self._table[session.owner, session.id]
        session.life.finish(forgotten=forgotten)

    def _thread_that_looks(self, look: Callable[[Session], None], name: str) -> threading.Thread:
        """Looks at each session every now and then, until all have ended."""

        def run() -> None:
            while not self._ended.wait(TICK):
                for session in self.all():
                    try:
                        look(session)
                    except Exception as fault:  # the next one may go well
                        log.error("session %s: internal error", session.id, exc_info=fault)

        return threading.Thread(target=run, name=name, daemon=True)

    def _look_after(self, session: Session) -> None:
        session.tick()
        if session.is_broken:
            self._start_to_end(session)
        elif self._is_idle(session):
            self._start_to_end(session, unsaved=False)

    def _give_up_if_wanted(self, session: Session) -> None:
        """In a thread of its own: it asks the disk, which may be stuck."""
        if session.is_wanted:
            until = time.monotonic() + self.limits.drain_seconds
            self._start_to_end(session, unsaved=False, until=until)

    def _start_to_end(self, session: Session, **how: Any) -> None:
        """End it in a thread of its own: no session's end waits for others that wait."""
        if session.begin_end():
            try:
                _in_thread(self._end, session, begun=True, **how)
            except RuntimeError:  # there are too many threads: try again
                session.go_on()
                raise

    def _is_idle(self, session: Session) -> bool:
        period = 60.0 * self.limits.idle_minutes or math.inf
        if session.is_empty:
            period = min(period, EMPTY)
        if session.connection is not None or not session.ready.done():
            return False
        return time.monotonic() - session.touched > period and not session.is_busy


def _tell_each(listeners: Sequence[Callable[[_Told], None]], what: _Told) -> None:
    """Tell all of them, also where one raises."""
    for listener in listeners:
        try:
            listener(what)
        except Exception as fault:
            log.error("a listener failed", exc_info=fault)


def _stop(session: Session) -> bool:
    """`stop`, whatever went wrong before; whether nothing saved of the session has stayed."""
    try:
        return stop(session)
    except Exception as fault:
        log.error("session %s was not stopped well", session.id, exc_info=fault)
        return False


def _in_thread(do: Callable[..., None], *given: Any, **named: Any) -> Future[None]:
    done: Future[None] = Future()

    def run() -> None:
        try:
            do(*given, **named)
            done.set_result(None)
        except BaseException as fault:
            log.error("internal error", exc_info=fault)
            done.set_exception(fault)

    threading.Thread(target=run, name="session that ends").start()
    return done


def check_session_id(id: str) -> None:
    """Raise InvalidParameterError for what is no name of a session."""
    try:
        check_memory_name(id)
    except InvalidParameterError:
        raise InvalidParameterError(
            f"{cut(id)!r} names no session: up to 100 letters, digits, '_', '-' and '.', not "
            "beginning with '.' or '-'"
        ) from None
