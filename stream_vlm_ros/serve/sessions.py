# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Sessions: the memories of many cameras over one model, by name and owner.

Without a network: frames and questions come by calls, from any thread, and events go to listeners.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from stream_vlm_ros.config import Settings, check_memory_name
from stream_vlm_ros.console import duration_text
from stream_vlm_ros.engine.inputs.frames import reduced
from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.engine.inputs.stamp_check import check_stamp
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    InvalidTimestampError,
    MemoryFileError,
    StreamBusyError,
    StreamVlmError,
    cut,
)
from stream_vlm_ros.factory import build_engine, card_of, group_of, load_model
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.ownership import Ownership, lock_of
from stream_vlm_ros.serve.telling import memory_of, picture_of, saved_of
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.engine_session import ChunkEnd
from stream_vlm_ros.session.engine_thread import EngineThread, together_appender, write_together
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.memory_keeper import SUFFIX, Done, MemoryKeeper
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.news import News
from stream_vlm_ros.session.question import (
    MAX_PICTURE_SIZE,
    NotActiveError,
    Outcome,
    Progress,
    Question,
    Ticket,
)
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.engine import Checkpoint, InferenceEngine
    from stream_vlm_ros.engine.together import EngineGroup

log = logging.getLogger(__name__)

# What a client may set for its session.
CLIENTS = (
    "sample_fps", "chunk_frames", "max_chunk_delay", "queue_size", "max_pixels", "on_time_jump",
    "time_jump_tolerance", "max_time_gap",
)  # fmt: skip
# Of these no more than the server has.
AT_MOST = ("queue_size", "max_pixels", "chunk_frames", "max_chunk_delay")
COMMITS = ("server", "client")
MAX_OPEN_FRAMES = 64  # of a chunk that is not yet complete
MAX_HELD_BYTES = 4 << 30  # of all sessions' frames on their way into the memory: an equal part each
MAX_STEP = 1 << 32  # from one sequence to the next
KEPT_ENDS = 256  # of chunks and frames, told again to who connects again
TICK = 0.25  # s
POSITION_PERIOD = 2.0  # s between two notes of how far frames were accepted
BROKEN = (
    "the session's engine has ended by a fault: in a moment the session begins again from what was "
    "saved of it"
)
END_TIMEOUT = 5.0  # s, for what the engine is doing at the moment
SAVE_AGAIN = 5.0  # s until another server is let in, where saving has failed
EMPTY = 60.0  # s that a session stays that has seen nothing, without a connection
POSITION = ".accepted.json"  # behind the name of a session's file


class SessionUnknownError(StreamVlmError):
    """There is no such session of this key's."""

    code = "NO_SESSION"


class SessionLimitError(StreamVlmError):
    """There are as many sessions as there may be."""

    code = "TOO_MANY_SESSIONS"
    retry_after = 30.0  # s


class MemoryLimitError(StreamVlmError):
    """There are as many saved memories as there may be."""

    code = "TOO_MANY_MEMORIES"


class ServerEndingError(NotActiveError):
    """The server is being stopped, or this session is."""

    code = "ENDING"
    retry_after = 1.0  # s


class NotSavedError(StreamVlmError):
    """A session cannot be saved, and so does not end."""

    code = "NOT_SAVED"


class FolderError(MemoryFileError):
    """Where sessions are saved, nothing can be written: a full disk, or missing rights."""

    code = "NO_FOLDER"
    retry_after = 10.0  # s


class Sent(NamedTuple):
    """Which frame of a client's it was."""

    sequence: int
    stamp_ns: int


class _Position(msgspec.Struct):
    """How far frames were accepted, as it is noted next to the saved memory."""

    accepted_ns: int
    accepted_sequence: int


class _Arrived:
    """A frame as `FrameIngest` takes it; it is decoded once it is wanted."""

    def __init__(
        self, frame: protocol.FrameMessage, decode: Callable[[protocol.FrameMessage], np.ndarray]
    ) -> None:
        self.sent = Sent(frame.sequence, frame.stamp_ns)
        self.bytes = len(frame.pixels)
        self._frame, self._decode = frame, decode

    @property
    def stamp_ns(self) -> int:
        return self.sent.stamp_ns

    def read(self) -> tuple[Any, np.ndarray]:
        return self.sent, self._decode(self._frame)


class Session:
    """One memory.

    Args:
        id, owner: its name, and whose it is.
        settings: of its engine, and of the way of its frames.
        load: builds its engine, in ``thread``.
        answered: called with what came of each question, in the thread of the engines.
        server: the name of the server, for those that share its memory_folder.
        patience: seconds that one of those has to let the session go.
        max_held_bytes: see below.

    Attributes:
        max_held_bytes: of frames on their way into the memory.
        ready: done when its memory can be asked; raises why there is none.
        commit: "server": it gathers chunks itself; "client": `append` and `commit` say what one is.
        restored: it was begun from a saved memory.
        gap: what was lost with a server that ended, in words; "" if nothing.
        accepted: of the newest frame that is, or was, on its way into the memory.
        connection: by whom it is fed and asked at the moment; None: nobody is connected.
        ending: held by who ends it, one at a time.
        is_over: it has ended.
        forgetting: nothing that is saved of it by itself is to stay.
        is_forgotten: nothing of it has stayed.
    """

    def __init__(
        self,
        id: str,
        owner: str,
        settings: Settings,
        load: Callable[[Settings], InferenceEngine],
        thread: EngineThread,
        answered: Callable[[Outcome], None] = lambda outcome: None,
        model: str = "",
        server: str = "",
        patience: float = 30.0,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.id, self.owner, self.settings, self.model = id, owner, settings, model
        self.ready: Future[None] = Future()
        self.ready.set_running_or_notify_cancel()  # who waits for it and goes does not cancel it
        self.commit = "server"
        self.restored, self.gap = False, ""
        self.accepted: Sent | None = None
        self.connection: Any = None
        self.counters = FrameCounters()
        self.began = time.time()
        self.touched = time.monotonic()
        self.pixels = (0, 0)  # bounds of a picture
        self.factor = 28
        self.max_memories = 0  # of its owner's; 0: without a limit
        self._bounds = settings  # of the server
        self._load, self._answered = load, answered
        self._server, self._patience = server, patience
        self.ending = threading.Lock()
        self.is_over = self.forgetting = self.is_forgotten = False
        self._ownership: Ownership | None = None  # of the memory's file
        self._owning = threading.Lock()
        self._unsaved_at = -SAVE_AGAIN  # when it was to end, and could not be saved
        self._limit = PictureLimit(settings.max_decoded_megapixels)
        self._ending = self._refusing = self._loading = False  # frames, questions
        self._lock = threading.RLock()  # of what is on its way to the worker
        self._open: list[TimedFrame] = []  # sent, and not yet said to be a chunk
        self.max_held_bytes = max_held_bytes
        self._arrived: weakref.WeakSet[_Arrived] = weakref.WeakSet()  # not yet decoded
        self._pictures: weakref.WeakValueDictionary[int, np.ndarray] = (
            weakref.WeakValueDictionary()
        )  # decoded, by sequence
        self._sequence = 0  # of the frame that came last
        self._asked = 0  # questions under way
        self._telling = threading.Lock()
        self._ends: deque[protocol.Ingested | protocol.Dropped] = deque(maxlen=KEPT_ENDS)
        self._listeners: tuple[Callable[[protocol.ServerEvent | None], None], ...] = ()
        self._news = News()  # of refused chunks and frames
        self._noted: Sent | None = None  # how far the note next to the memory's file says
        self._noted_at = 0.0
        self.worker = EngineWorker(
            self._make_engine,
            self.counters,
            settings.queue_size,
            settings.max_questions,
            changed=lambda: self._tell(None),
            report=self._report,
            thread=thread,
            chunk_ended=self._on_chunk_end,
        )
        self.ingest = FrameIngest(
            settings,
            self.counters,
            deliver=self.worker.append,
            restart=lambda: self.worker.reset(Drop.TIME_JUMP),
            report=lambda cause, words: self._news.tell(
                cause.cause, f"session {self.id}: {words}", log.info
            ),
            dropped=self._on_dropped,
            admitted=self._accept,
        )
        self.keeper = MemoryKeeper(
            self.worker, lambda: self.settings, time.time_ns, lambda words: log.warning("%s", words)
        )

    # -- frames ------------------------------------------------------------------------------

    def receive(self, frame: protocol.FrameMessage) -> None:
        """Take a frame in: into the open chunk, by the settings (``commit`` "server"), or to wait
        for `commit_open`. It is decoded here, or not at all.

        Raises ProtocolError for a sequence that is not higher than the last one, or far higher.
        """
        with self._lock:
            self.touch()
            if frame.sequence <= self._sequence:
                raise protocol.ProtocolError(
                    f"frame {frame.sequence} came after frame {self._sequence}: sequences count up "
                    "within a session"
                )
            if frame.sequence > self._sequence + MAX_STEP:
                raise protocol.ProtocolError(
                    f"frame {frame.sequence} came after frame {self._sequence}: a gap in the "
                    f"sequences is of {MAX_STEP:,} at most"
                )
            self._sequence = frame.sequence
            if self._ending:  # not accepted: it is to be sent to who has the session next
                return
            arrived = _Arrived(frame, self._decoded)
            held = self.held_bytes
            if held and held + arrived.bytes > self.max_held_bytes:
                words = f"frames of {held / 1e6:.0f} MB are on their way into the memory already"
                self._refuse(arrived, Drop.OVERFLOW, words)
                return
            self._arrived.add(arrived)
            if self.commit == "server":
                self.ingest.receive(arrived, time.time_ns(), time.monotonic_ns())
            else:
                self._gather(arrived)

    def _gather(self, arrived: _Arrived) -> None:
        """Let a frame wait until it is said to be of a chunk."""
        if len(self._open) >= MAX_OPEN_FRAMES:
            words = f"{len(self._open)} frames wait already for input_frame_buffer.commit"
            self._refuse(arrived, Drop.OVERFLOW, words)
            return
        try:
            check_stamp(arrived.stamp_ns)
            sent, image = arrived.read()
        except InvalidTimestampError as fault:
            self._refuse(arrived, Drop.INVALID_STAMP, str(fault))
        except InvalidImageError as fault:
            self._refuse(arrived, Drop.INVALID_IMAGE, str(fault))
        else:
            self._open.append(TimedFrame(sent.stamp_ns, image, sent))

    def _refuse(self, arrived: _Arrived, cause: Drop, words: str) -> None:
        self.counters.receive()
        self.counters.drop(cause)
        self._on_dropped(arrived, cause, words)

    def _accept(self, arrived: _Arrived) -> None:
        self.accepted = arrived.sent

    def _decoded(self, frame: protocol.FrameMessage) -> np.ndarray:
        """Its picture, no larger than the model takes it."""
        picture = picture_of(frame, self._limit)
        bounds = [bound for bound in (self.pixels[1], self.settings.max_pixels) if bound]
        high = min(bounds, default=picture.size)
        if self.settings.has_history:  # pictures are kept, and shown
            high = max(high, MAX_PICTURE_SIZE**2)
        picture = reduced(picture, self.factor, self.pixels[0], high)
        self._pictures[frame.sequence] = picture
        return picture

    @property
    def held_bytes(self) -> int:
        """Of frames on their way into the memory: as they came, or decoded."""
        with self._lock:
            arrived = sum(one.bytes for one in self._arrived)
        pictures = [reference() for reference in self._pictures.valuerefs()]
        return arrived + sum(one.nbytes for one in pictures if one is not None)

    def commit_open(self) -> None:
        """What was received since the last one is a chunk. Raises ProtocolError where the server
        gathers chunks itself."""
        if self.commit != "client":
            raise protocol.ProtocolError(
                'this session gathers chunks itself; session.update with "commit": "client" '
                "changes that"
            )
        with self._lock:
            if not self._ending:
                self.append(self._take_open())

    def append(self, frames: list[TimedFrame]) -> None:
        """Take a chunk in, as it is; each frame's header is its `Sent`."""
        if not frames:
            return
        with self._lock:
            self.touch()
            for _ in frames:
                self.counters.receive()
            self.accepted = frames[-1].header
            if self._loading or self._ending:
                self._drop(frames, Drop.INACTIVE, "a memory is being loaded")
            else:
                self.worker.append(frames)

    def clear_open(self) -> None:
        """Drop the frames that wait to become a chunk, and the chunks that wait."""
        with self._lock:
            for frame in self._open:
                self.counters.receive()
                self.accepted = frame.header
            if frames := self._take_open():
                self._drop(frames, Drop.RESET)
            self.ingest.clear(Drop.RESET)
            self.worker.drop_chunks(Drop.RESET)

    def _take_open(self) -> list[TimedFrame]:
        frames, self._open = self._open, []
        return frames

    # -- questions, and what else is asked ---------------------------------------------------

    def ask(self, question: Question, progress: Progress | None = None) -> Ticket:
        """Queue a question; its ticket's future always gets an outcome. ``progress`` is called in
        the thread of the engines."""
        self.touch()
        if question.history and not self.settings.has_history:
            question = replace(question, history="")
        if (refusal := self.refusal) is not None:
            ticket = Ticket(question, progress)
            ticket.future.set_result(Outcome(question, error=refusal, memory=self.memory))
        else:
            ticket = self.worker.ask(question, progress)
        with self._telling:
            self._asked += 1
        ticket.future.add_done_callback(self._on_outcome)
        return ticket

    @property
    def refusal(self) -> StreamVlmError | None:
        """Why nothing can be asked now."""
        if self.is_broken:
            return ServerEndingError(BROKEN)
        if self._refusing:
            return ServerEndingError("the session is being ended: ask again in a moment")
        if not self.ready.done():
            return NotActiveError("the session is being begun: ask again in a moment")
        return None

    def reset(self, *, time_jump: bool = False) -> Future[None]:
        """Forget what was seen, and unless time jumped also what was saved of it by itself, with
        which the session would begin again."""
        cause = Drop.TIME_JUMP if time_jump else Drop.RESET
        with self._lock:
            if frames := self._take_open():
                for _ in frames:
                    self.counters.receive()
                self.accepted = frames[-1].header
                self._drop(frames, cause)
            self.ingest.clear(cause)
            self.gap = ""
            resetting = self.worker.reset(cause)
        if time_jump or self._file() is None:
            return resetting
        forgotten: Future[None] = Future()
        resetting.add_done_callback(lambda done: self._forget_saved(done, forgotten))
        return forgotten

    def _forget_saved(self, resetting: Future[None], forgotten: Future[None]) -> None:
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
            self.keeper.forget(self._forget_position).add_done_callback(end)
        except RuntimeError:  # it is being ended
            forgotten.set_exception(ServerEndingError("the session is being ended"))

    def _forget_position(self) -> None:
        with self._owning:
            if (file := self._file()) is not None and self._ownership is not None:
                _position_file(file).unlink(missing_ok=True)
                self._noted = self.accepted

    def save(self, name: str = "") -> Future[Done]:
        """Save the memory; "": under the session's name. Raises StreamVlmError."""
        self.touch()
        if name and self.max_memories:
            self._check_memories(name)
        return self.keeper.save(name)

    def _check_memories(self, name: str) -> None:
        check_memory_name(name)
        file = file_of(replace(self.settings, memory_name=name))
        if file is None or name == self.settings.memory_name or os.path.lexists(file):
            return
        if len([*file.parent.glob(f"*{SUFFIX}")]) >= self.max_memories:
            raise MemoryLimitError(
                f"this key has {self.max_memories} saved memories already (--max-memories-per-key):"
                " save under a name that there is, or DELETE /v1/sessions/NAME one"
            )

    def load(self, name: str = "") -> Future[Done]:
        """Put a saved memory in the place of the present one; frames that come meanwhile are
        dropped. Raises StreamVlmError."""
        with self._lock:
            self.touch()
            if self._loading:
                raise StreamBusyError("a memory is being loaded: try again when that is done")
            loading = self.keeper.load(name)
            self._loading, self.ingest.active = True, False
        loading.add_done_callback(self._on_loaded)
        return loading

    def _on_loaded(self, loading: Future[Done]) -> None:
        with self._lock:
            if not loading.cancelled() and loading.exception() is None:
                self.ingest.go_on_behind(self.worker.memory.latest_ns)
                self.gap = ""
            self._loading, self.ingest.active = False, not self._ending

    def update(self, values: Mapping[str, Any]) -> None:
        """Change settings: those of `CLIENTS`, and ``commit``. Raises InvalidParameterError, having
        changed nothing."""
        changes = dict(values)
        commit = changes.pop("commit", self.commit)
        if commit not in COMMITS:
            raise InvalidParameterError(f"commit must be one of {', '.join(COMMITS)}: {commit!r}")
        if alien := sorted(set(changes) - {*CLIENTS}):
            raise InvalidParameterError(
                f"{cut(', '.join(alien))}: a session takes {', '.join((*CLIENTS, 'commit'))}"
            )
        with self._lock:
            settings = self.settings.changed(changes)
            for name in AT_MOST:
                most, wanted = getattr(self._bounds, name), getattr(settings, name)
                if most and not 0 < wanted <= most:
                    raise InvalidParameterError(f"{name} is at most {most} here, not {wanted}")
            if commit != self.commit and self._open:
                raise InvalidParameterError("commit cannot be changed while frames wait for it")
            if settings.max_pixels != self.settings.max_pixels:
                self.worker.limit_pixels("max_pixels", settings.max_pixels)
            if commit != self.commit:
                self.ingest.deliver_open()
                self.commit = commit
            self.settings = settings
            self.ingest.apply(settings)
            self.worker.queue_size = settings.queue_size

    # -- what is told ------------------------------------------------------------------------

    @property
    def memory(self) -> MemorySummary:
        """What is in it."""
        return self.worker.memory

    @property
    def status(self) -> protocol.Status:
        """Its state at this moment."""
        worker, state = self.worker, self.keeper.state
        more = {"resets": worker.resets, "time_jumps": self.ingest.time_jumps}
        return protocol.Status(
            memory=memory_of(worker.memory),
            saved=saved_of(replace(state, error=self.without_folder(state.error))),
            counters=self.counters.snapshot() | more,
            queue_depth=worker.depth,
            fault=str(worker.ended or "") or worker.last_fault,
            gap=self.gap,
        )

    def described(self, *, resumed: bool = False) -> protocol.Session:
        """What it is, for who connects."""
        accepted = self.accepted
        newest_ns = self.memory.latest_ns
        return protocol.Session(
            id=self.id,
            resumed=resumed,
            restored=self.restored,
            accepted_ns=newest_ns if accepted is None else accepted.stamp_ns,
            accepted_sequence=0 if accepted is None else accepted.sequence,
            model=self.model,
            device=self.worker.device,
            plan=self.worker.loaded.result() if self.worker.loaded.done() else "",
            factor=self.factor,
            min_pixels=self.pixels[0],
            max_pixels=self.pixels[1],
            settings={name: getattr(self.settings, name) for name in CLIENTS}
            | {"commit": self.commit},
        )

    def connect(
        self, listener: Callable[[protocol.ServerEvent | None], None]
    ) -> list[protocol.Ingested | protocol.Dropped]:
        """Tell a listener, in any thread, what becomes of frames, and None when the status has
        changed. How the newest chunks ended, which a connection before it may not have been told.

        Frames that wait to be said to be a chunk are forgotten: they were not accepted.
        """
        with self._lock:
            self.touch()
            self._take_open()
            self._sequence = 0 if self.accepted is None else self.accepted.sequence
            with self._telling:
                self._listeners = (*self._listeners, listener)
                return list(self._ends)

    def disconnect(self, listener: Callable[[protocol.ServerEvent | None], None]) -> None:
        """Tell it nothing more."""
        with self._telling:
            self._listeners = tuple(one for one in self._listeners if one is not listener)
        self.touch()

    def touch(self) -> None:
        """Something came for it."""
        self.touched = time.monotonic()

    def _tell(self, event: protocol.Ingested | protocol.Dropped | None) -> None:
        with self._telling:
            if event is not None:
                self._ends.append(event)
            listeners = self._listeners
        for listener in listeners:
            listener(event)

    def _on_chunk_end(self, end: ChunkEnd) -> None:
        frames: list[Sent] = [frame.header for frame in end.frames]
        first, last = frames[0].sequence, frames[-1].sequence
        if end.cause is None:
            self._tell(
                protocol.Ingested(
                    first=first,
                    last=last,
                    frames=len(frames),
                    newest_ns=frames[-1].stamp_ns,
                    closed_seconds=end.closed_seconds,
                )
            )
            return
        self._tell(
            protocol.Dropped(
                first=first,
                last=last,
                frames=len(frames),
                cause=end.cause.cause,
                message=cut(end.words),
            )
        )

    def _drop(self, frames: list[TimedFrame], cause: Drop, words: str = "") -> None:
        self.counters.drop(cause, len(frames))
        self._on_chunk_end(ChunkEnd(frames, cause, words))

    def _on_dropped(self, what: _Arrived | TimedFrame, cause: Drop, words: str) -> None:
        sent: Sent = what.header if isinstance(what, TimedFrame) else what.sent
        self._tell(
            protocol.Dropped(
                first=sent.sequence,
                last=sent.sequence,
                frames=1,
                cause=cause.cause,
                message=cut(words),
            )
        )

    def _on_outcome(self, done: Future[Outcome]) -> None:
        with self._telling:
            self._asked -= 1
        self.touch()
        self._answered(done.result())

    def _report(self, fault: BaseException) -> None:
        if isinstance(fault, StreamVlmError):
            self._news.tell(fault.code, f"session {self.id}: {fault}", log.warning)
        else:
            log.error("session %s: internal error", self.id, exc_info=fault)

    # -- its life ----------------------------------------------------------------------------

    def _make_engine(self) -> InferenceEngine:
        engine = self._load(self.settings)
        most = getattr(engine, "max_pixels", None) or self.pixels[1]
        self.pixels = engine.min_pixels, most
        return engine

    def begin(self) -> None:
        """Wait for the engine, and take up the saved memory of its name, if there is one.

        Raises SessionElsewhereError where another server has it, and does not let it go.
        """
        self.worker.loaded.result()
        file = self._file()
        if file is not None:
            self._ownership = Ownership(file, self._server, self._patience, lambda: self._ending)
        if self._ending:
            raise ServerEndingError("the session was ended before it had begun: try again")
        if file is not None:
            assert self._ownership is not None
            before = self._ownership.before
            noted = self._read_position()
            if os.path.lexists(file):
                words = self.keeper.load_at_start()
                self.restored = not self.keeper.state.error
                log.info("session %s: %s", self.id, words)
            self.gap = _gap(noted, self.memory.latest_ns, before)
        self.ingest.resume(self.memory.latest_ns)
        self.ingest.active = True

    def tick(self) -> None:
        """What is done every now and then."""
        if not self.ready.done() or self._ending:
            return
        self._news.tell_rest()
        self.ingest.flush_overdue(time.monotonic_ns())
        if self._file() is not None:
            self.keeper.save_when_due()
            if time.monotonic() - self._noted_at >= POSITION_PERIOD:
                self._note_position()

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is worth keeping."""
        return not self.is_busy and not self.counters.received and self.memory.latest_ns is None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way, or a chunk waits."""
        return self._asked > 0 or self.worker.depth > 0 or self.counters.pending > 0

    def stop_taking(self) -> None:
        """Accept no frame more; those that were accepted end in their own time. Questions are still
        answered."""
        with self._lock:
            self._ending = True
            self._take_open()
            self.ingest.pause()
            self.ingest.active = False

    @property
    def is_broken(self) -> bool:
        """Whether its engine has ended by a fault."""
        return self.ready.done() and self.worker.ended is not None

    @property
    def is_ending(self) -> bool:
        """Whether it takes no frame more."""
        return self._ending

    def stop_answering(self) -> None:
        """Accept no question more; those that were accepted are answered."""
        self._refusing = True

    def go_on(self) -> None:
        """Take frames and questions again, after `stop_taking`."""
        with self._lock:
            self._ending = self._refusing = self.ingest.paused = False
            self.ingest.active = not self._loading
        self._unsaved_at = time.monotonic()
        self.touch()

    def end(self, *, timeout: float = END_TIMEOUT, unsaved: bool = True) -> None:
        """Wait for the chunks that wait, save it, and end it; or where it is ``forgetting`` end it
        at once. Questions are answered while it is being saved.

        Args:
            unsaved: it ends also where it cannot be saved.

        Raises NotSavedError; the session goes on.
        """
        until = time.monotonic() + timeout
        self.stop_taking()
        wait([self.ready], END_TIMEOUT)  # who begins it gives up
        if not self.forgetting:
            _wait_while(lambda: self.counters.pending > 0 and not self.forgetting, timeout)
        self.ingest.clear(Drop.RESET)
        self.worker.drop_chunks(Drop.RESET)
        has_begun = self.ready.done() and not self.ready.exception()
        is_saved = has_begun and self._file() is not None

        def save() -> None:
            if not is_saved or self.forgetting or self.worker.ended is not None:
                return
            self.keeper.save_at_end(timeout)
            if unsaved or self.keeper.is_saved or self.forgetting:
                return
            self.go_on()
            raise NotSavedError(
                f"the session goes on, as it cannot be saved: {self.keeper.state.error}"
            )

        save()
        self.stop_answering()
        if not self.forgetting:
            _wait_while(lambda: self._asked > 0 and not self.forgetting, until - time.monotonic())
        self.worker.abandon(Drop.RESET, ServerEndingError("the session was ended"))
        save()  # what was answered may have been kept
        if is_saved and self.keeper.is_saved and (newest_ns := self.memory.latest_ns) is not None:
            self.accepted = Sent(0, newest_ns)
        self._note_position()
        if not self.worker.stop(timeout):
            log.warning("session %s did not end within %g s", self.id, timeout)
        self.keeper.close()
        self.disown()

    @property
    def is_in_its_file(self) -> bool:
        """Whether all that it has seen, and something, is saved and stays."""
        has_file = self._file() is not None and not self.forgetting
        return has_file and self.memory.chunks > 0 and self.keeper.is_saved

    @property
    def is_wanted(self) -> bool:
        """Whether another server waits for it."""
        owned = self._ownership
        is_due = time.monotonic() - self._unsaved_at >= SAVE_AGAIN
        return owned is not None and is_due and owned.is_wanted

    def disown(self) -> None:
        """Let another server have what is saved of it, or nothing where it is ``forgetting``."""
        with self._owning:
            ownership, self._ownership = self._ownership, None
        if ownership is None:
            return
        has_begun = self.ready.done() and not self.ready.exception()
        all_saved = self.keeper.is_saved if has_begun else not ownership.before
        forgets = self.forgetting

        def release() -> None:
            self.keeper.close(wait=True)  # a file is this server's as long as it writes it
            is_forgotten = self.forgetting
            saved = all_saved and not self.keeper.state.error
            _release(ownership, self._file(), saved=saved, forget=is_forgotten)
            self.is_forgotten = is_forgotten

        releasing = threading.Thread(target=release, name="release", daemon=True)
        releasing.start()
        releasing.join(None if forgets else END_TIMEOUT)

    def without_folder(self, words: str) -> str:
        """Words for a client, who does not learn where the server has its files."""
        if (file := self._file()) is None:
            return words
        folder = os.path.abspath(file.parent)
        return words.replace(f"{folder}{os.sep}", "").replace(folder, "there")

    def _file(self) -> Path | None:
        return file_of(self.settings)

    def _note_position(self) -> None:
        """Write down how far frames were accepted: what a server that is killed has lost."""
        with self._owning:
            self._note_accepted()

    def _note_accepted(self) -> None:
        file, accepted = self._file(), self.accepted
        if file is None or self._ownership is None or accepted in (None, self._noted):
            return
        self._noted_at = time.monotonic()
        path = _position_file(file)
        written = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            written.write_bytes(
                msgspec.json.encode(_Position(accepted.stamp_ns, accepted.sequence))
            )
            written.replace(path)
        except OSError as fault:
            log.warning("session %s: its position cannot be noted: %s", self.id, fault)
            return
        self._noted = accepted

    def _read_position(self) -> _Position | None:
        file = self._file()
        assert file is not None
        try:
            data = _position_file(file).read_bytes()
            return msgspec.json.decode(data, type=_Position)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as fault:
            log.warning("session %s: its position cannot be read: %s", self.id, fault)
            return None


def _wait_while(holds: Callable[[], bool], timeout: float) -> bool:
    """Wait so many seconds for it to end; whether it has."""
    until = time.monotonic() + timeout
    while holds() and time.monotonic() < until:
        time.sleep(0.01)
    return not holds()


def file_of(settings: Settings) -> Path | None:
    """Of a session's saved memory; None: it has none."""
    if not settings.memory_folder:
        return None
    folder = Path(os.path.expanduser(settings.memory_folder))
    return folder / f"{settings.memory_name}{SUFFIX}"


def _position_file(file: Path) -> Path:
    return file.with_name(file.name + POSITION)


def _release(
    ownership: Ownership, file: Path | None, *, saved: bool = True, forget: bool = False
) -> None:
    """Let another server have a memory's file, or nothing."""
    assert file is not None
    try:
        if forget:
            file.unlink(missing_ok=True)
            _position_file(file).unlink(missing_ok=True)
    finally:
        ownership.release(saved=saved, forget=not os.path.lexists(file))


def _gap(noted: _Position | None, newest_ns: int | None, killed: str) -> str:
    """What was accepted after what is in memory, in words.

    Args:
        killed: the server that ended without saving; "": it has saved all.
    """
    if noted is None or (newest_ns is not None and noted.accepted_ns <= newest_ns):
        # The note is a few seconds old.
        return killed and (
            f"what {killed} saw in its last seconds may be lost: it ended before it was saved"
        )
    if newest_ns is None:
        return "what was seen before is lost: the server ended before it was saved"
    lost = (noted.accepted_ns - newest_ns) / SECOND
    return (
        f"the last {duration_text(lost)} or so that were seen are lost: the server ended before "
        "they were saved"
    )


class Sessions:
    """All sessions of a server.

    Args:
        settings: of each session, but for its name.
        limits: how many there are, and for how long.
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
        # Apart: a session may begin only when another server's has ended, and the other way round.
        # Whoever waits for another server keeps nobody else from beginning.
        most = self.limits.max_sessions
        self._beginning = ThreadPoolExecutor(most, thread_name_prefix="sessions that begin")
        self._ending = ThreadPoolExecutor(8, thread_name_prefix="sessions that end")
        self._ended = threading.Event()
        self._keeping = threading.Thread(target=self._keep, name="sessions", daemon=True)

    def load(self) -> str:
        """Load the model, take the memory that a GPU's sessions share, and begin; what they take,
        in one line. Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError."""
        self._checkpoint = self._load_model(self.settings)
        self._group = group_of([self.settings] * self.limits.max_sessions, self._checkpoint)
        self._thread.start()
        trial = EngineWorker(
            lambda: self._build(self.settings), FrameCounters(), 1, 1, thread=self._thread
        )
        try:
            return trial.loaded.result()
        finally:
            trial.stop(END_TIMEOUT)
            self._keeping.start()

    @property
    def is_loaded(self) -> bool:
        """Whether sessions can be opened."""
        return self._keeping.ident is not None and not self.draining

    @property
    def is_alive(self) -> bool:
        """Whether the engines' thread runs, once they are loaded and until `drain`."""
        return self._thread.is_alive

    def _build(self, settings: Settings) -> InferenceEngine:
        assert self._checkpoint is not None
        if (group := self._group) is not None and not group.room.has(group.room.longest):
            gc.collect()  # sessions that have ended may still be somewhere in a cycle
        return build_engine(settings, self._checkpoint, group)

    # -- which there are ---------------------------------------------------------------------

    def open(self, id: str, owner: str) -> Session:
        """The session of that name, taken up or begun; it may still be loading (`Session.ready`).

        Raises:
            InvalidParameterError: a name that is none.
            SessionLimitError: there are too many.
            NotActiveError: the server, or the session, is just being ended.
        """
        check_session_id(id)
        with self._lock:
            self._check_open()
            if (found := self._table.get((owner, id))) is not None:
                if found.is_broken:
                    raise ServerEndingError(BROKEN)
                if found.is_ending:
                    raise ServerEndingError(f"session {id} is being ended: try again in a moment")
                found.touch()
                return found
            self._check_room(owner)
            session = Session(
                id, owner, self._settings_of(id, owner), self._build, self._thread,
                self.answered, self.model, self.server, self.limits.drain_seconds,
                MAX_HELD_BYTES // self.limits.max_sessions,
            )  # fmt: skip
            session.max_memories = self.limits.max_memories_per_key
            assert self._checkpoint is not None
            images = self._checkpoint.processor.image_settings
            session.factor = images.patch_size * images.merge_size
            session.pixels = images.min_pixels, images.max_pixels
            self._table[owner, id] = session
        self._beginning.submit(self._begin, session)
        return session

    def take_up(self, id: str, owner: str) -> Session:
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
        file = file_of(self._settings_of(id, owner))
        return file is not None and (os.path.lexists(file) or os.path.lexists(lock_of(file)))

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
            self._end(self.find(id, owner), forget=forget)
        except SessionUnknownError:
            if not forget or not self._is_saved(id, owner):
                raise
            self._forget_saved(self._settings_of(id, owner))

    def _forget_saved(self, settings: Settings) -> None:
        """Delete what is saved of a session by itself, also where another server has it at first.
        Raises SessionElsewhereError, MemoryFileError."""
        if (file := file_of(settings)) is not None:
            patience = min(END_TIMEOUT, self.limits.drain_seconds)  # others want to delete, too
            _release(Ownership(file, self.server, patience), file, forget=True)

    def let_go(self, sessions: Sequence[Session], timeout: float = 30.0) -> None:
        """End some in order: chunks that wait come to their end, memories are saved, then answers
        end, and connections are told. Another server may go on with them."""
        until = time.monotonic() + timeout
        for session in sessions:
            session.stop_taking()
        ending = partial(self._end, unsaved=self.draining, patience=until)
        wait([self._ending.submit(ending, one) for one in sessions])

    def drain(self, timeout: float = 30.0) -> None:
        """Let all go, and take nothing new."""
        with self._lock:
            self.draining = True
            sessions = list(self._table.values())
        self.let_go(sessions, timeout)
        self._ended.set()
        self._thread.stop(END_TIMEOUT)
        self._beginning.shutdown(wait=False)
        self._ending.shutdown(wait=False)

    def _check_open(self) -> None:
        if self.draining:
            raise ServerEndingError("the server is being stopped")
        if not self.is_loaded:
            raise NotActiveError("the model is being loaded: try again in a moment")
        if not self.is_alive:
            raise NotActiveError("the thread of the engines has ended: start the server again")

    def _check_room(self, owner: str) -> None:
        limits = self.limits
        of_owner = sum(one == owner for one, _ in self._table)
        if 0 < limits.max_sessions_per_key <= of_owner and not self._end_one_of_no_use(owner):
            raise SessionLimitError(
                f"this key has {of_owner} sessions already (--max-sessions-per-key)"
            )
        if len(self._table) >= limits.max_sessions:
            self._end_one_of_no_use()
        if len(self._table) >= limits.max_sessions:
            raise SessionLimitError(
                f"{limits.max_sessions} sessions are served already (--max-sessions)"
            )

    def _end_one_of_no_use(self, owner: str | None = None) -> bool:
        """End a session that has seen nothing and is not connected, of an owner's or of all;
        whether there is one."""
        for key, one in self._table.items():
            if (
                owner in (None, one.owner)
                and one.connection is None
                and one.ready.done()
                and one.is_empty
            ):
                one.stop_taking()
                del self._table[key]
                self._ending.submit(self._end, one)
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
        for listener in self.when_answered:
            listener(outcome)

    def _begin(self, session: Session) -> None:
        try:
            session.begin()
        except Exception as fault:
            if isinstance(fault, OSError | MemoryFileError):  # of what is mended without us
                log.warning("session %s could not be begun: %s", session.id, fault)
                fault = FolderError("the server's memory_folder cannot be written now")
            elif not isinstance(fault, StreamVlmError):
                log.error("session %s could not be begun", session.id, exc_info=fault)
            self._count_and_forget(session)
            session.keeper.close()
            session.worker.stop(END_TIMEOUT)
            session.disown()
            session.ready.set_exception(fault)
            return
        session.ready.set_result(None)

    def _end(
        self,
        session: Session,
        *,
        forget: bool = False,
        unsaved: bool = True,
        patience: float | None = None,
    ) -> None:
        left = END_TIMEOUT if patience is None else max(END_TIMEOUT, patience - time.monotonic())
        session.forgetting |= forget
        with session.ending:
            if not session.is_over:
                try:
                    session.end(timeout=left, unsaved=unsaved)
                except NotSavedError as fault:
                    log.warning("session %s: %s", session.id, fault)
                    if (connection := session.connection) is not None:
                        connection.session_ended(False, str(fault))  # it sends again what came
                    return
                except Exception as fault:
                    log.error("session %s did not end well", session.id, exc_info=fault)
                session.is_over = True
                self._count_and_forget(session)
                if (connection := session.connection) is not None:
                    ended = "saved and ended" if session.is_in_its_file else "ended"
                    words = BROKEN if session.is_broken else f"the session was {ended}"
                    connection.session_ended(session.forgetting, words)
        if forget and not session.is_forgotten:
            self._forget_saved(session.settings)

    def _count_and_forget(self, session: Session) -> None:
        for listener in self.when_closed:
            listener(session)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        with self._lock:
            if self._table.get((session.owner, session.id)) is session:
                del self._table[session.owner, session.id]

    def _keep(self) -> None:
        """Every now and then, in a thread of its own."""
        while not self._ended.wait(TICK):
            for session in self.all():
                try:
                    session.tick()
                    if session.is_broken and not session.is_ending:
                        session.stop_taking()
                        self._ending.submit(self._end, session)
                    elif self._is_idle(session):
                        session.stop_taking()
                        self._ending.submit(self._end, session, unsaved=False)
                    elif session.is_wanted and not session.is_ending:
                        session.stop_taking()
                        until = time.monotonic() + self.limits.drain_seconds
                        self._ending.submit(self._end, session, unsaved=False, patience=until)
                except Exception as fault:  # the next one may go well
                    log.error("session %s: internal error", session.id, exc_info=fault)

    def _is_idle(self, session: Session) -> bool:
        period = 60.0 * self.limits.idle_minutes or math.inf
        if session.is_empty:
            period = min(period, EMPTY)
        if session.connection is not None or not session.ready.done():
            return False
        idle = time.monotonic() - session.touched > period
        return idle and not session.is_busy and not session.is_ending


def check_session_id(id: str) -> None:
    """Raise InvalidParameterError for what is no name of a session."""
    try:
        check_memory_name(id)
    except InvalidParameterError:
        raise InvalidParameterError(
            f"{cut(id)!r} names no session: up to 100 letters, digits, '_', '-' and '.', not "
            "beginning with '.' or '-'"
        ) from None
