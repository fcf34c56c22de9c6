# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session at a server, for who would else have an engine of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from stream_vlm_ros.config import Settings, check_memory_name
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.history.poses import PoseTrack
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.remote.exchange import Chunk, Exchange, RemoteTicket
from stream_vlm_ros.remote.link import Address, Link, LinkThread
from stream_vlm_ros.remote.pictures import Packing, packing
from stream_vlm_ros.remote.protocol import ClientEvent, ServerEvent
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.memory_keeper import Done, SavedState
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.question import (
    MAX_PICTURES,
    THUMBNAIL_SIZE,
    DisconnectedError,
    NotActiveError,
    Progress,
    Question,
    QueueFullError,
    Ticket,
)
from stream_vlm_ros.session.timed_frame import TimedFrame

_Heard = TypeVar("_Heard")
_Given = TypeVar("_Given")


@dataclass(frozen=True)
class Connection:
    """How it stands with the server.

    Attributes:
        where: the server and the session, in words.
        model: what answers; "" until it is known.
        lost_ns: since when there is no connection, by the node's clock; None: there is one.
        why: there is none; "" if there is one.
        gap: what the server lost of what it had; "" if nothing.
    """

    where: str
    model: str
    lost_ns: int | None
    why: str
    gap: str

    def lost_for(self, now_ns: int) -> float:
        """Seconds without a connection, at a time of the node's clock."""
        return 0.0 if self.lost_ns is None else max(0.0, (now_ns - self.lost_ns) / SECOND)


class RemoteWorker:
    """What the node uses of a `stream_vlm_ros.session.worker.EngineWorker`, at a server.

    No call waits for the server. A question without a connection is answered so at once; frames
    wait, at most ``queue_size`` chunks of them, and are counted by what the server says of them.

    Args:
        how: pictures travel, until `pack_as`.
        now_ns: the node's clock.
        tell: is told, in words, of connections that come (True) and go (False).
        lost: is told, in words, of what the server has lost of what it had.
        taken_up: is told the stamp of the newest frame that the server has, with a connection.
        others: as of `EngineWorker`.

    Attributes:
        loaded: is done when the first try to connect has ended. It raises for a server that would
            refuse the next try, too.
    """

    def __init__(
        self,
        address: Address,
        counters: FrameCounters,
        queue_size: int,
        max_questions: int,
        how: Packing,
        changed: Callable[[], None] = lambda: None,
        report: Callable[[BaseException], None] = lambda fault: None,
        *,
        thread: LinkThread,
        now_ns: Callable[[], int] = time.time_ns,
        tell: Callable[[bool, str], None] = lambda good, words: None,
        lost: Callable[[str], None] = lambda words: None,
        taken_up: Callable[[int | None], None] = lambda newest_ns: None,
        **callbacks: Any,
    ) -> None:
        self.queue_size, self.max_questions = queue_size, max_questions
        self._packing = how
        self.weight = 1.0  # the server's sessions are alike
        self.ended: StreamVlmError | None = None
        self.loaded: Future[str] = Future()
        self._is_loading = True  # nobody has undertaken to end `loaded`
        self._report = report
        self._changed, self._tell, self._taken_up = changed, tell, taken_up
        self._now_ns = now_ns
        self._lock = threading.RLock()
        self._exchange = Exchange(counters, report, tell=lost, **callbacks)
        self._lost_ns: int | None = now_ns()
        self._link = Link(address, self)
        thread.add(self._link)

    # -- what callbacks call; all return at once ---------------------------------------------

    def append(self, frames: list[TimedFrame]) -> None:
        """Let a chunk wait for the server."""
        with self._changing() as exchange:
            exchange.append(frames, self.queue_size)

    def ask(self, question: Question, progress: Progress | None = None) -> Ticket:
        """Ask; ``progress`` is called in the thread of the connection."""
        ticket = RemoteTicket(question, progress, on_cancel=self._cancel)
        with self._changing() as exchange:
            exchange.ask(ticket, self.max_questions)
        return ticket

    def _cancel(self, ticket: RemoteTicket) -> None:
        with self._changing() as exchange:
            exchange.cancel(ticket)

    def reset(self, cause: Drop) -> Future[None]:
        """As `EngineWorker.reset`."""
        with self._changing() as exchange:
            return _then(exchange.reset(cause), lambda told: None)

    def picture_near(
        self, stamp_ns: int, within_ns: int | None = None, max_size: int = THUMBNAIL_SIZE
    ) -> Future[tuple[int, bytes] | None]:
        """As `EngineWorker.picture_near`."""

        def found(told: protocol.PictureDone) -> tuple[int, bytes] | None:
            return None if told.picture is None else (told.picture.stamp_ns, told.picture.jpeg)

        with self._changing() as exchange:
            if len(waiting := exchange.pictures) >= MAX_PICTURES:
                exchange.dismiss(waiting[0], QueueFullError("newer pictures were asked for"))
            wanted = partial(
                protocol.MemoryPicture, stamp_ns=stamp_ns, within_ns=within_ns, max_size=max_size
            )
            return _then(exchange.order(lambda name: wanted(event_id=name)), found)

    def order(self, event: type[Any], name: str) -> Future[protocol.MemoryDone]:
        """Order something of the saved memory of a name; "": the session's own."""
        fields = {} if event is protocol.MemoryList else {"name": name}
        with self._changing() as exchange:
            return exchange.order(lambda its: event(event_id=its, **fields))

    def abandon(self, cause: Drop, why: StreamVlmError) -> None:
        """As `EngineWorker.abandon`."""
        with self._changing() as exchange:
            exchange.abandon(cause, why)

    def stop(self) -> None:
        """Nothing more is sent, and nobody waits; the session stays at the server."""
        with self._changing() as exchange:
            why = NotActiveError("the node was stopped before the answer came")
            exchange.end(Drop.RESET, why)
        if self._ends_loading():
            self.loaded.set_exception(why)

    def _ends_loading(self) -> bool:
        """Whether the caller is the first, and has to end `loaded`: `stop` is of another thread."""
        with self._lock:
            first, self._is_loading = self._is_loading, False
        return first

    def pack_as(self, settings: Settings) -> None:
        """Let pictures travel as the settings say, from the next frame that is sent."""
        self._packing = packing(settings)

    def limit_pixels(self, name: str, max_pixels: int) -> None:
        """As `EngineWorker.limit_pixels`; `pack_as` makes it hold."""
        session = self._exchange.session
        if session is not None and 0 < max_pixels < session.min_pixels:
            raise InvalidParameterError(
                f"{name} ({max_pixels}) is below min_pixels ({session.min_pixels}), to which this "
                "model's smaller pictures are enlarged"
            )

    # -- what is told ------------------------------------------------------------------------

    @property
    def memory(self) -> MemorySummary:
        """As the server told it last."""
        return self._exchange.memory

    @property
    def saved(self) -> protocol.Saved:
        """Likewise."""
        return self._exchange.saved

    @property
    def device(self) -> str:
        """Where the model runs, at the server; "" until it is known."""
        session = self._exchange.session
        return session.device if session is not None else ""

    @property
    def last_fault(self) -> str:
        """Why the newest chunk was refused; "" if it was not."""
        return self._exchange.fault

    @property
    def resets(self) -> int:
        """How often the memory was emptied."""
        return self._exchange.resets

    @property
    def depth(self) -> int:
        """Chunks and questions that wait."""
        with self._lock:
            return self._exchange.depth

    @property
    def poses(self) -> PoseTrack | None:
        """Where the robot was, told with evidence."""
        return self._exchange.poses

    @poses.setter
    def poses(self, track: PoseTrack | None) -> None:
        self._exchange.poses = track

    @property
    def warning(self) -> str:
        """What is to be said of the address; "" if nothing."""
        if not self._link.address.tells_key_openly:
            return ""
        return f"the key is told to {self._link.address.url} unencrypted: wss:// hides it"

    @property
    def connection(self) -> Connection:
        """How it stands."""
        with self._lock:
            session, why = self._exchange.session, self._exchange.why
            address = self._link.address
            return Connection(
                f"{address.session} at {address.url}",
                session.model if session is not None else "",
                self._lost_ns,
                str(why or ""),
                self._exchange.gap,
            )

    # -- what the link calls, in its thread --------------------------------------------------

    def connected(self, told: protocol.SessionCreated) -> None:
        """There is a connection."""
        with self._changing() as exchange:
            exchange.connected(told)
            self._lost_ns = None
        session = told.session
        had = "begun"
        if session.resumed or session.restored:
            had = "taken up again" if session.resumed else "begun from its saved memory"
        words = f"connected to {self._link.address.url}: session {session.id} is {had}"
        self._call(lambda: self._taken_up(self.memory.latest_ns))
        if self._ends_loading():
            self.loaded.set_result("; ".join(filter(None, (words, session.plan))))
        else:
            self._call(lambda: self._tell(True, words))
        self._call(self._changed)

    def disconnected(self, why: StreamVlmError, is_final: bool) -> None:
        """There is none (any more)."""
        url = self._link.address.url
        error = DisconnectedError(f"no connection to {url}: {why}")
        with self._changing() as exchange:
            news = self._lost_ns is None or str(error) != str(exchange.why)
            exchange.disconnected(error)
            if self._lost_ns is None:
                self._lost_ns = self._now_ns()
        first = self._ends_loading()
        if first and is_final:
            self.loaded.set_exception(error)
        elif first:
            self.loaded.set_result("")
        rest = "it is not tried again" if is_final else "it is tried again and again"
        if news and not (first and is_final):
            self._call(lambda: self._tell(False, f"{error}; {rest}"))
        self._call(self._changed)

    def hear(self, event: ServerEvent) -> None:
        """The server said it."""
        with self._changing(wake=False) as exchange:
            exchange.hear(event)
        if not isinstance(event, protocol.TextDelta | protocol.ResponseReading):
            self._call(self._changed)

    def take(self) -> ClientEvent | Chunk | None:
        """What is to be sent next."""
        with self._lock:
            return self._exchange.take()

    def packed(self, chunk: Chunk) -> Iterator[bytes]:
        """A chunk's messages."""
        session = self._exchange.session
        assert session is not None  # there is a connection
        return self._packing.packed(chunk, session)

    def fail(self, chunk: Chunk, fault: Exception) -> None:
        """A chunk cannot be packed."""
        with self._changing() as exchange:
            exchange.fail(chunk, fault)

    def report(self, fault: BaseException) -> None:
        """A fault of this package."""
        self._report(fault)

    # -- inside ------------------------------------------------------------------------------

    @contextmanager
    def _changing(self, *, wake: bool = True) -> Iterator[Exchange]:
        """Change what is to be sent; who waits for it is told behind the lock."""
        with self._lock:
            yield self._exchange
            effects, self._exchange.effects = self._exchange.effects, []
        for effect in effects:
            self._call(effect)
        if wake:
            self._link.wake()

    def _call(self, listener: Callable[[], object]) -> None:
        """Tell a listener; what it raises is its own affair."""
        try:
            listener()
        except Exception as fault:
            self._report(fault)


class RemoteKeeper:
    """What the node uses of a `stream_vlm_ros.session.memory_keeper.MemoryKeeper`: the files are
    the server's, and so is when it saves by itself."""

    def __init__(self, worker: RemoteWorker, now_ns: Callable[[], int]) -> None:
        self._worker, self._now_ns = worker, now_ns
        self._told = (protocol.Saved(), SavedState())

    @property
    def state(self) -> SavedState:
        """As the server told it last, by the node's clock."""
        saved = self._worker.saved
        if saved != self._told[0]:
            told = SavedState(
                None, saved.name, saved.bytes, saved.seconds, saved.error, saved.loaded
            )
            if saved.saved_ns is not None:
                ago = max(0, time.time_ns() - saved.saved_ns)
                told = SavedState(self._now_ns() - ago, *list(vars(told).values())[1:])
            self._told = (saved, told)
        return self._told[1]

    def save(self, name: str = "") -> Future[Done]:
        """Save the memory at the server; "": under the session's name."""
        return self._done(protocol.MemorySave, name)

    def load(self, name: str = "") -> Future[Done]:
        """Load a memory that is saved there."""
        return self._done(protocol.MemoryLoad, name)

    def names(self) -> Future[list[str]]:
        """Of the memories that can be loaded, newest first."""
        return _then(self._worker.order(protocol.MemoryList, ""), lambda told: list(told.names))

    def load_at_start(self) -> str:
        """The server has done so, if there was one."""
        return ""

    def save_when_due(self) -> None:
        """The server does so."""

    def save_at_end(self, timeout: float | None) -> None:
        """The session goes on at the server."""

    def close(self) -> None:
        """Nothing is under way here."""

    def _done(self, event: type[Any], name: str) -> Future[Done]:
        if name:
            check_memory_name(name)
        return _then(
            self._worker.order(event, name),
            lambda told: Done(told.words, told.bytes, told.seconds, told.newest_ns),
        )


def _then(future: Future[_Heard], make: Callable[[_Heard], _Given]) -> Future[_Given]:
    """What is made of its result, or what it raises."""
    made: Future[_Given] = Future()

    def settle(heard: Future[_Heard]) -> None:
        try:
            made.set_result(make(heard.result()))
        except Exception as fault:
            made.set_exception(fault)

    future.add_done_callback(settle)
    return made
