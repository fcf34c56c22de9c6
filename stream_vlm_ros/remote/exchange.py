# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a camera has to tell a server, what it has told, and what has come of it.

Plain bookkeeping: no socket, no thread, no clock. What others are to be told of a change is left in
``effects``, to be called by who holds no lock.

A chunk is *waiting* until it is taken to be sent, then *sent* until the server says what became of
its frames. Of a connection that was lost nobody knows what the server still got: chunks stay sent,
and the next connection tells. Frames keep their sequences, so that none gets into the memory twice.
"""

from __future__ import annotations

import itertools
import secrets
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from stream_vlm_ros.console import plural, span_text
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import EmptyMemoryError, InvalidQuestionError, StreamVlmError, cut
from stream_vlm_ros.history.poses import PoseTrack
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.remote.protocol import ClientEvent, ProtocolError, ServerEvent
from stream_vlm_ros.remote.values import (
    RemoteError,
    to_ask,
    to_outcome,
    to_summary,
)
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.question import (
    READING,
    WRITING,
    DisconnectedError,
    Outcome,
    QueueFullError,
    Ticket,
)
from stream_vlm_ros.session.timed_frame import TimedFrame

# Chunks that the server may have at a time: one that it encodes, and the next. The others wait
# here, where a newer one pushes them out.
MAX_SENT = 2
MAX_TEXT = 1 << 20  # characters of an answer that grows


@dataclass(eq=False)
class Chunk:
    """Frames that belong together.

    Attributes:
        first: sequence of its first frame; 0: it was never sent.
        left: how many of its frames have not come to their end.
        unsent: its frames from this one on are to be sent.
        told: what the server has said of it; the same thing twice counts once.
    """

    frames: list[TimedFrame]
    first: int = 0
    left: int = 0
    unsent: int = 0
    told: set[tuple[int, int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.left = len(self.frames)

    @property
    def last(self) -> int:
        """Sequence of its last frame."""
        return self.first + len(self.frames) - 1


@dataclass(eq=False)
class Order:
    """What somebody waits for: an event that the server answers.

    Attributes:
        before: it was sent before the frame of this sequence; 0: it was not sent.
        lasts: it waits for the next connection where there is none.
    """

    event: ClientEvent
    future: Future[Any] = field(default_factory=Future)
    before: int = 0
    lasts: bool = False


@dataclass(eq=False)
class RemoteTicket(Ticket):
    """A question on its way.

    Attributes:
        id: of its response.
        text: the answer so far.
        began: the server reads or writes.
        on_cancel: is told of an early end that was asked for.
    """

    id: str = ""
    text: str = ""
    began: bool = False
    on_cancel: Callable[[RemoteTicket], None] = lambda ticket: None

    def cancel(self, why: StreamVlmError | None = None) -> None:
        super().cancel(why)
        self.on_cancel(self)


class Exchange:
    """Of one camera, over all its connections.

    Args:
        counters: where the end of every frame is counted.
        report: is told of chunks that the server refused, and of what it does not take.
        pause_closed: see `stream_vlm_ros.session.engine_session.EngineSession`.
        make_header, why_empty: likewise.
        tell: is told of what the server has lost.

    Attributes:
        effects: what is to be called when no lock is held.
        why: there is no connection; None: there is one.
        session: as told with the newest connection.
        memory: what the server says of it.
        saved: likewise, of saved memories.
    """

    def __init__(
        self,
        counters: FrameCounters,
        report: Callable[[BaseException], None] = lambda fault: None,
        pause_closed: Callable[[float], None] = lambda seconds: None,
        make_header: Callable[[int, str], Any] = lambda stamp_ns, frame_id: None,
        tell: Callable[[str], None] = lambda words: None,
        why_empty: Callable[[], str] = lambda: "images come first",
    ) -> None:
        self.effects: list[Callable[[], object]] = []
        self.why: StreamVlmError | None = DisconnectedError("there was no connection yet")
        self.session: protocol.Session | None = None
        self.memory = MemorySummary()
        self.saved = protocol.Saved()
        self._gap = ""  # as far as this side knows
        self._told_gap = ""  # as the server says
        self.fault = ""  # why the newest chunk was refused
        self.resets = 0
        self.poses: PoseTrack | None = None
        self._counters, self._report = counters, report
        self._pause_closed, self._make_header, self._tell = pause_closed, make_header, tell
        self._why_empty = why_empty
        self._ended: StreamVlmError | None = None  # nothing is taken any more
        self._waiting: deque[Chunk | Order | RemoteTicket] = deque()
        self._urgent: deque[ClientEvent] = deque()
        self._sent: deque[Chunk] = deque()
        self._orders: dict[str, Order] = {}  # sent, not answered
        self._asked: dict[str, RemoteTicket] = {}  # likewise
        self._ids = (f"{secrets.token_hex(4)}-{number}" for number in itertools.count(1))
        self._sequence = 1  # of the next frame
        self._newest: TimedFrame | None = None  # that is in the memory
        self._uncounted = 0  # frames that are in it, and not in the counters yet

    # -- what is wanted ----------------------------------------------------------------------

    def append(self, frames: list[TimedFrame], queue_size: int) -> None:
        """Let a chunk wait; the oldest beyond ``queue_size`` are dropped."""
        if self._ended is not None:
            self._counters.drop(Drop.RESET, len(frames))
            return
        chunks = self._chunks
        for oldest in chunks[: max(0, len(chunks) + 1 - queue_size)]:
            self._waiting.remove(oldest)
            self._counters.drop(Drop.OVERFLOW, oldest.left)
        self._waiting.append(Chunk(frames))

    def ask(self, ticket: RemoteTicket, max_questions: int) -> None:
        """Let a question wait; refused where it would wait in vain."""
        if self.why is not None:
            self._fail(ticket, self.why)
        elif self.waiting_questions >= max_questions:
            refusal = QueueFullError(
                f"{self.waiting_questions} questions are waiting already (max_questions); "
                "ask again when one has been answered"
            )
            self._fail(ticket, refusal)
        else:
            ticket.id = next(self._ids)
            size = len(protocol.encoded(self._event_of(ticket)))
            if size > protocol.MAX_EVENT_BYTES:
                words = f"the question is too long to be sent: {size:,} bytes"
                self._fail(ticket, InvalidQuestionError(words))
            else:
                self._waiting.append(ticket)

    def order(self, make: Callable[[str], ClientEvent], *, lasts: bool = False) -> Future[Any]:
        """Let an order wait; ``make`` gives its event, with the id that it is given.

        Its future gets the event that answers it, or raises what came instead.
        """
        order = Order(make(next(self._ids)), lasts=lasts)
        refusal = self._ended or (None if lasts else self.why)
        if refusal is not None:
            self._later(order.future.set_exception, refusal)
        else:
            self._waiting.append(order)
        return order.future

    def reset(self, cause: Drop) -> Future[Any]:
        """Drop the chunks that wait here, and let an order wait to forget what was seen. After a
        time jump it waits for a connection, so that no memory mixes what was before and after."""
        self.drop_waiting(cause)
        is_jump = cause is Drop.TIME_JUMP
        newest = self._waiting[-1] if self._waiting else None
        if is_jump and isinstance(newest, Order) and newest.lasts:
            return newest.future  # one is enough
        return self.order(
            lambda name: protocol.MemoryReset(event_id=name, time_jump=is_jump), lasts=is_jump
        )

    def dismiss(self, order: Order, why: StreamVlmError) -> None:
        """An order that waits here comes to its end."""
        self._waiting.remove(order)
        self._later(order.future.set_exception, why)

    def drop_waiting(self, cause: Drop) -> None:
        """Drop the chunks that wait here."""
        for chunk in self._chunks:
            self._waiting.remove(chunk)
            self._counters.drop(cause, chunk.left)

    def abandon(self, cause: Drop, why: StreamVlmError) -> None:
        """Drop the waiting chunks, here and at the server, and end all questions with ``why``."""
        self.drop_waiting(cause)
        if self._sent and self.why is None:
            self._urgent.append(protocol.Clear())
        for ticket in self._tickets:
            self._cancel_at_server(ticket)
            self._fail(ticket, why)

    def end(self, cause: Drop, why: StreamVlmError) -> None:
        """Whatever waits has come to its end; nothing more is sent but that."""
        self.abandon(cause, why)
        self._count()
        for chunk in [*self._sent, *self._waiting_of(Chunk)]:
            self._counters.drop(cause, chunk.left)
        for order in [*self._orders.values(), *self._waiting_of(Order)]:
            self._later(order.future.set_exception, why)
        for left in (self._sent, self._orders, self._waiting):
            left.clear()
        self.why = self._ended = why

    def cancel(self, ticket: RemoteTicket) -> None:
        """End an answer early: at once if the server does not know of the question yet."""
        if ticket in self._waiting:
            self._fail(ticket, ticket.why)
        else:
            self._cancel_at_server(ticket)

    def _cancel_at_server(self, ticket: RemoteTicket) -> None:
        if self._asked.get(ticket.id) is ticket:
            self._urgent.append(protocol.ResponseCancel(response_id=ticket.id))

    def fail(self, chunk: Chunk, fault: Exception) -> None:
        """A chunk that was taken cannot be sent."""
        if chunk in self._sent:
            self._sent.remove(chunk)
            self._refused(chunk.left, Drop.ERROR, fault)

    # -- what is to be sent ------------------------------------------------------------------

    def take(self) -> ClientEvent | Chunk | None:
        """What is to be sent next; None: nothing now. A chunk is sent with a `Commit` behind it."""
        if self._urgent:
            return self._urgent.popleft()
        head = self._waiting[0] if self._waiting else None
        if head is None or (isinstance(head, Chunk) and len(self._sent) >= MAX_SENT):
            return None
        self._waiting.popleft()
        if isinstance(head, Chunk):
            if not head.first:
                head.first = self._sequence
                self._sequence += len(head.frames)
            self._sent.append(head)
            return head
        if isinstance(head, Order):
            head.before = head.before or self._sequence  # where it stands, sent again or not
            self._orders[head.event.event_id] = head
            return head.event
        self._asked[head.id] = head
        return self._event_of(head)

    @staticmethod
    def _event_of(ticket: RemoteTicket) -> ClientEvent:
        return protocol.ResponseCreate(event_id=ticket.id, response=to_ask(ticket.question))

    # -- connections -------------------------------------------------------------------------

    def disconnected(self, why: StreamVlmError) -> None:
        """There is no connection (any more): who waits for an answer is told so."""
        self.why = why
        self._count()
        self._urgent.clear()
        for ticket in self._tickets:
            self._fail(ticket, why)
        unknown = DisconnectedError(f"{why}; whether it was done is not known")
        for order in self._orders.values():
            if order.lasts:
                continue
            self._later(order.future.set_exception, unknown)
        self._orders = {name: one for name, one in self._orders.items() if one.lasts}
        for order in self._waiting_of(Order):
            if not order.lasts:
                self.dismiss(order, why)
        for one in list(self._waiting):  # what was to be sent again: the next server tells
            if isinstance(one, Chunk) and one.first:
                self._waiting.remove(one)
                self._sent.append(one)
            elif isinstance(one, Order) and one.before:
                self._waiting.remove(one)
                self._orders[one.event.event_id] = one

    def connected(self, told: protocol.SessionCreated) -> None:
        """There is a connection: send what the server did not get, and nothing that it got."""
        before, self.session = self.session, told.session
        session = told.session
        again: list[Chunk | Order] = []
        orders, self._orders = self._orders, {}
        if session.resumed and (session.accepted_sequence or not self._sent):
            got = session.accepted_sequence
            for chunk in list(self._sent):
                if chunk.last > got:
                    chunk.unsent = max(0, got - chunk.first + 1)
                    again.append(chunk)
            for order in orders.values():
                if order.before <= got:  # what was sent behind it is there
                    self._later(order.future.set_result, protocol.MemoryDone(words="done"))
                else:
                    again.append(order)
        else:
            self._begin_again(session, again, orders.values())
        self._sent = deque(chunk for chunk in self._sent if chunk not in again)
        again.sort(key=_place)
        self._waiting.extendleft(reversed(again))
        self._sequence = max(self._sequence, session.accepted_sequence + 1)
        self.why = self._ended
        known = self.gap
        if before is not None and not session.resumed:
            self._find_gap(session.accepted_ns)
        self._take_status(told.status)
        if self.gap not in ("", known):
            self._later(self._tell, self.gap)

    def _find_gap(self, accepted_ns: int | None) -> None:
        """The server that we were connected to has ended; another begins from its last save."""
        if self._newest is None:
            return
        newest_ns = self._newest.stamp_ns
        if accepted_ns is None:
            self._gap = "the server began again with an empty memory: what it had seen is lost"
        elif accepted_ns < newest_ns:
            lost = span_text(accepted_ns / SECOND, newest_ns / SECOND)
            self._gap = (
                f"the server began again from a saved memory: what it saw from {lost} is lost"
            )
        else:
            return
        self._newest = None

    def _begin_again(
        self, session: protocol.Session, again: list[Chunk | Order], orders: Iterable[Order]
    ) -> None:
        """The server has another memory than the one it was sent frames for."""
        again.extend(orders)
        first_reset = min((order.before for order in orders), default=None)
        for chunk in list(self._sent):
            chunk.unsent = 0
            if session.accepted_ns is not None and (not first_reset or chunk.last < first_reset):
                stamps = [frame.stamp_ns for frame in chunk.frames]
                chunk.unsent = bisect_right(stamps, session.accepted_ns)  # the memory was saved
            saved = min(chunk.unsent, chunk.left)
            self._counters.ingest(saved)
            chunk.left -= saved
            if chunk.left:
                again.append(chunk)
            else:
                self._sent.remove(chunk)

    # -- what the server says ----------------------------------------------------------------

    def hear(self, event: ServerEvent) -> None:
        """Take in what it says, but for what is about the connection itself.

        Raises ProtocolError for what no server of this protocol says.
        """
        match event:
            case protocol.Ingested():
                self._ingested(event)
            case protocol.Dropped():
                self._dropped(event)
            case protocol.MemoryStatus():
                self._take_status(event.status)
            case protocol.SessionUpdated():
                self.session = event.session
            case protocol.ResponseReading() | protocol.TextDelta():
                self._grow(event)
            case protocol.ResponseDone():
                self._answered(event.response)
            case protocol.MemoryDone() | protocol.PictureDone():
                self._done(event)
            case protocol.ErrorEvent():
                self._error(event)

    def _ingested(self, event: protocol.Ingested) -> None:
        found = self._of(event, "ingested")  # nothing, told once more
        for chunk, frames in found:
            self._uncounted += frames
            self._newest = chunk.frames[-1]
            self.fault = ""
        if (newest_ns := self.memory.newest_ns) is not None and event.newest_ns <= newest_ns:
            self._count()  # else with the status that follows: the two are told together
        # They are taken in the order in which they are sent: of earlier ones nothing more comes.
        for chunk in list(self._sent):
            if chunk.last < event.first:
                self._sent.remove(chunk)
                lost = f"the server did not say what became of {plural(chunk.left, 'frame')}"
                self._refused(chunk.left, Drop.ERROR, StreamVlmError(lost))
        if found and event.closed_seconds:
            self._later(self._pause_closed, event.closed_seconds)

    def _count(self) -> None:
        """Count what is in the memory."""
        frames, self._uncounted = self._uncounted, 0
        self._counters.ingest(frames)

    def _dropped(self, event: protocol.Dropped) -> None:
        name = f"dropped_{event.cause.removeprefix('dropped_')}"
        cause = Drop(name) if name in {drop.value for drop in Drop} else Drop.ERROR
        for _, frames in self._of(event, cause.value):
            words = event.message or f"the server dropped frames: {cut(event.cause)}"
            self._refused(frames, cause, StreamVlmError(words))

    def _of(
        self, event: protocol.Ingested | protocol.Dropped, what: str
    ) -> list[tuple[Chunk, int]]:
        """The chunks that an event is about, and of how many of their frames it tells the end."""
        found, left = [], event.frames
        for chunk in [*self._sent, *(one for one in self._waiting_of(Chunk) if one.first)]:
            said = (event.first, event.last, what)
            common = min(event.last, chunk.last) - max(event.first, chunk.first) + 1
            frames = min(left, common, chunk.left)
            if frames <= 0 or said in chunk.told:
                continue
            chunk.told.add(said)
            chunk.left -= frames
            left -= frames
            if not chunk.left:
                (self._sent if chunk in self._sent else self._waiting).remove(chunk)
            found.append((chunk, frames))
        return found

    def _refused(self, frames: int, cause: Drop, fault: Exception) -> None:
        self._counters.drop(cause, frames)
        if cause is Drop.ERROR:
            self.fault = str(fault) or type(fault).__name__
            self._later(self._report, fault)

    def _take_status(self, status: protocol.Status) -> None:
        self.memory = to_summary(status.memory, self._header_of)
        self.saved = status.saved
        self._told_gap = status.gap
        self._count()

    def _header_of(self, stamp_ns: int) -> Any:
        """Of the frame of this stamp, if it is known; else one made of the stamp."""
        known = [frame for chunk in self._sent for frame in chunk.frames]
        known += [] if self._newest is None else [self._newest]
        for frame in known:
            if frame.stamp_ns == stamp_ns:
                return frame.header
        frame_id = getattr(known[-1].header, "frame_id", "") if known else ""
        return self._make_header(stamp_ns, frame_id)

    def _grow(self, event: protocol.ResponseReading | protocol.TextDelta) -> None:
        ticket = self._asked.get(event.response_id)
        if ticket is None:  # its end was not waited for
            return
        ticket.began = True
        if isinstance(event, protocol.TextDelta):
            if len(ticket.text) + len(event.delta) > MAX_TEXT:
                raise ProtocolError(f"the server's answer is longer than {MAX_TEXT:,} characters")
            ticket.text += event.delta
        if ticket.progress is not None:
            state = WRITING if ticket.text else READING
            self._later(ticket.progress, state, ticket.text)

    def _answered(self, told: protocol.Response) -> None:
        ticket = self._asked.get(told.id)
        if ticket is None:
            return
        if told.choice_index >= len(ticket.question.choices):
            raise ProtocolError(f"the server's choice {told.choice_index} is none of those given")
        del self._asked[told.id]
        error: StreamVlmError | None = None
        if told.status == "cancelled" and ticket.cancelled:
            error = ticket.why
        elif told.error is not None and told.error.code == EmptyMemoryError.code:
            why = self._why_empty()  # the camera knows more than the server
            error = EmptyMemoryError(f"the memory holds no image yet: {why}")
        elif told.error is not None:
            error = RemoteError(told.error)
        elif told.status != "completed":
            error = StreamVlmError(f"the server ended the answer: {cut(told.status)}")
        waited = max(0.0, time.monotonic() - ticket.arrived - told.latency)  # and on the way
        memory = to_summary(told.memory, self._header_of)
        outcome = to_outcome(ticket.question, told, error, memory, waited, self.poses)
        self._later(ticket.future.set_result, outcome)

    def _done(self, event: protocol.MemoryDone | protocol.PictureDone) -> None:
        order = self._orders.get(event.event_id)
        if order is not None:
            is_picture = isinstance(order.event, protocol.MemoryPicture)
            if is_picture != isinstance(event, protocol.PictureDone):
                raise ProtocolError("the server answers what was not asked")
            del self._orders[event.event_id]
            if isinstance(order.event, protocol.MemoryReset):
                self.resets += 1
                self.fault = ""
            if isinstance(order.event, protocol.MemoryReset | protocol.MemoryLoad):
                self._gap = ""
            self._later(order.future.set_result, event)

    def _error(self, event: protocol.ErrorEvent) -> None:
        name = event.error.event_id or event.event_id
        fault = RemoteError(event.error)
        if (order := self._orders.pop(name, None)) is not None:
            self._later(order.future.set_exception, fault)
        elif (ticket := self._asked.get(name)) is not None:
            self._fail(ticket, fault)
        else:
            self._later(self._report, fault)

    @property
    def gap(self) -> str:
        """What the server lost of what it had, in words; "" if nothing."""
        return self._gap or self._told_gap

    # -- how much there is -------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Commands that have not come to their end."""
        unread = sum(not ticket.began for ticket in self._asked.values())
        return len(self._waiting) + max(0, len(self._sent) - 1) + len(self._orders) + unread

    @property
    def waiting_questions(self) -> int:
        """Of which nobody has begun to read."""
        return sum(not ticket.began for ticket in self._tickets)

    @property
    def pictures(self) -> list[Order]:
        """Orders for pictures that wait, oldest first."""
        waiting = self._waiting_of(Order)
        return [one for one in waiting if isinstance(one.event, protocol.MemoryPicture)]

    @property
    def _chunks(self) -> list[Chunk]:
        """That wait, and of which the server has nothing: it tells the end of the others."""
        return [one for one in self._waiting_of(Chunk) if not one.unsent]

    @property
    def _tickets(self) -> list[RemoteTicket]:
        return [*self._asked.values(), *self._waiting_of(RemoteTicket)]

    def _waiting_of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self._waiting if isinstance(one, kind)]

    # -- who waits ---------------------------------------------------------------------------

    def _fail(self, ticket: RemoteTicket, why: StreamVlmError) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._asked.pop(ticket.id, None)
        waited = time.monotonic() - ticket.arrived
        outcome = Outcome(
            ticket.question, ticket.text, error=why, waiting=waited, memory=self.memory
        )
        self._later(ticket.future.set_result, outcome)

    def _later(self, call: Callable[..., object], *arguments: Any) -> None:
        self.effects.append(lambda: call(*arguments))


def _place(item: Chunk | Order) -> tuple[int, int]:
    """Where it stands among what is to be sent again."""
    return (item.first, 1) if isinstance(item, Chunk) else (item.before, 0)
