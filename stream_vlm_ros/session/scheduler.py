# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which session is next, and with what: a piece of an answer, or a chunk. Without threads."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Session = TypeVar("Session", bound=Hashable)


@dataclass(frozen=True)
class Wants:
    """What one session could do now.

    Attributes:
        answer: somebody waits for it: its answer's next piece, what else was asked of it, or what
            has to be done before that.
        begins: of that, a question has not been begun.
        joins: the answer's next piece may be computed together with those of others for which this
            is equal; None: it goes by itself.
        chunk: a chunk that nobody waits for.
        weight: its share of the time, compared with the others'.
    """

    answer: bool = False
    begins: bool = False
    joins: Hashable | None = None
    chunk: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Choice(Generic[Session]):
    """Whose turn it is: one session's, or that of several together."""

    sessions: tuple[Session, ...]
    is_chunk: bool


class FairQueue(Generic[Session]):
    """Start-time fair queueing (Goyal, Vin, Cheng 1996): under load each gets time in proportion to
    its weight, who was idle is next, and gets nothing for having been so.

    For any two that never idle, the times they got, each divided by its weight, differ by no more
    than the sum of their longest pieces, divided likewise.
    """

    def __init__(self) -> None:
        self._now = 0.0  # virtual time: the start tag of what was served last
        self._finish: dict[Session, float] = {}
        self._step: dict[Session, float] = {}  # of its last piece, in virtual time
        self._served: dict[Session, int] = {}  # when, to settle ties
        self._count = itertools.count()

    def ordered(self, sessions: Iterable[Session]) -> list[Session]:
        """Who is next first."""
        return sorted(sessions, key=lambda one: (self._start(one), self._served.get(one, -1)))

    def together(self, sessions: Iterable[Session], most: int) -> list[Session]:
        """Who is next, with those who may go with it: none of them is ahead of it by more than its
        last piece (before its first, anyone's longest), so that weights hold."""
        first, *others = self.ordered(sessions)
        longest = max(self._step.values(), default=0.0)
        reach = self._start(first) + self._step.get(first, longest)
        return [first, *(one for one in others if self._start(one) <= reach)][:most]

    def serve(self, session: Session, seconds: float, weight: float) -> None:
        """A piece of its work took so long."""
        self.serve_together({session: weight}, seconds)

    def serve_together(self, weights: Mapping[Session, float], seconds: float) -> None:
        """A piece of the work of each of several sessions took so long, with these weights."""
        starts = {one: self._start(one) for one in weights}
        self._now = min(starts.values())  # who is behind them loses nothing
        for one, weight in weights.items():
            self._step[one] = seconds / len(weights) / weight
            self._finish[one] = starts[one] + self._step[one]
            self._served[one] = next(self._count)

    def forget(self, session: Session) -> None:
        """It has ended."""
        for kept in (self._finish, self._step, self._served):
            kept.pop(session, None)

    def _start(self, session: Session) -> float:
        return max(self._now, self._finish.get(session, 0.0))


class Scheduler(Generic[Session]):
    """Answers come before chunks, of which ``share`` of the time is kept for chunks.

    While somebody waits for an answer, a chunk may begin after each piece where all before it took
    no more than ``share`` of the time since. So an answer that takes ``T`` seconds alone takes less
    than ``(T + C) / (1 - share)`` with chunks of at most ``C`` seconds between its pieces. With a
    share of 0 chunks wait until it is complete; where others are being written then, one chunk goes
    all the same. Before the first question that a session asks since the last chunk, no chunk goes:
    it waits for no more than the piece under way, what stands before it in its session, and the
    others' answers. Answers among themselves, and chunks, are served as :class:`FairQueue` does;
    pieces of answers that were handed out together count as equal parts of the time they took.

    Args:
        share: 0 to 1; may be changed at any time.
        together: up to how many sessions' chunks are handed out at once, while nobody waits.
        answers: up to how many sessions' answers go on at once.
    """

    def __init__(self, share: float = 0.5, together: int = 1, answers: int = 1) -> None:
        self.share, self.together, self.answers = share, together, answers
        self._answers: FairQueue[Session] = FairQueue()
        self._chunks: FairQueue[Session] = FairQueue()
        self._credit = 0.0  # seconds that chunks may still take
        self._piece_was_last = False
        self._owed = False  # a chunk, at a share of 0
        self._let_ahead: set[Session] = set()  # whose question was begun since the last chunk

    def choose(self, wants: Mapping[Session, Wants]) -> Choice[Session] | None:
        """Who is next; None: nobody has anything to do. It is to be told by `done`."""
        answers = [one for one, its in wants.items() if its.answer]
        chunks = [one for one, its in wants.items() if its.chunk]
        if not answers:
            self._credit, self._piece_was_last, self._owed = 0.0, False, False
            self._let_ahead.clear()
            if not chunks:
                return None
            return Choice(tuple(self._chunks.together(chunks, self.together)), is_chunk=True)
        if any(wants[one].begins and one not in self._let_ahead for one in answers):
            chunks = []
        elif self._piece_was_last and self.share > 0:
            chunks = chunks if self._credit >= 0 else []
        else:  # none overtakes a question of its own session
            chunks = [one for one in chunks if self._owed and not wants[one].answer]
        if chunks:
            return Choice((self._chunks.ordered(chunks)[0],), is_chunk=True)
        first = self._answers.ordered(answers)[0]
        if (joins := wants[first].joins) is not None:
            alike = [one for one in answers if wants[one].joins == joins]
            return Choice(tuple(self._answers.together(alike, self.answers)), is_chunk=False)
        return Choice((first,), is_chunk=False)

    def chunks_in_order(self, sessions: Iterable[Session]) -> list[Session]:
        """Whose chunk is next first, if nobody waits for an answer."""
        return self._chunks.ordered(sessions)

    def forget(self, session: Session) -> None:
        """It has ended."""
        self._answers.forget(session)
        self._chunks.forget(session)
        self._let_ahead.discard(session)

    def done(
        self,
        choice: Choice[Session],
        seconds: float,
        wants: Mapping[Session, Wants],
        *,
        began: bool = False,
        answered: bool = False,
    ) -> None:
        """What was chosen took so long; it was the first piece of an answer, the last, or both."""
        queue = self._chunks if choice.is_chunk else self._answers
        queue.serve_together({one: wants[one].weight for one in choice.sessions}, seconds)
        self._piece_was_last = not choice.is_chunk
        if not any(its.answer for its in wants.values()):
            return
        if choice.is_chunk:
            self._credit -= (1 - self.share) * seconds
            self._owed = False
            self._let_ahead.clear()
        else:
            self._credit += self.share * seconds
        if began:
            self._let_ahead.update(choice.sessions)
        if answered:  # what it left over is not for the next one to bear
            self._credit = min(self._credit, 0.0)
            self._owed = self.share == 0
