"""When each question is due: arithmetic on times alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .questions import Question

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Ask:
    """A question at one time. ``offset_ns`` counts from the source's first frame; None: at the
    end. ``id`` is the question's, with the time for one that is asked every so often."""

    question: Question
    offset_ns: int | None
    id: str


class Schedule:
    """The questions of one memory in the order of their times; those of one time in file order.

    Args:
        questions: of this memory.
        origin_ns: stamp of the source's first frame.
    """

    def __init__(self, questions: Iterable[Question], origin_ns: int) -> None:
        self._at_end: list[Ask] = []
        self._due: list[tuple[int, int, Iterator[Ask], Ask]] = []
        for order, question in enumerate(questions):
            if question.at_end:
                self._at_end.append(Ask(question, None, question.id))
                continue
            self._push(order, _times(question, origin_ns))

    def _push(self, order: int, asks: Iterator[Ask]) -> None:
        ask = next(asks, None)
        if ask is not None and ask.offset_ns is not None:
            heapq.heappush(self._due, (ask.offset_ns, order, asks, ask))

    def before(self, offset_ns: int) -> Iterator[Ask]:
        """Takes out what is due before ``offset_ns``."""
        while self._due and self._due[0][0] < offset_ns:
            yield self._pop()

    def until(self, offset_ns: int) -> Iterator[Ask]:
        """Takes out what is due at ``offset_ns`` or before, and then what is due at the end."""
        yield from self.before(offset_ns + 1)
        while self._at_end:
            yield self._at_end.pop(0)

    def rest(self) -> list[Ask]:
        """What is left: due after the end. Of a question asked every so often only what has a
        last time of its own, once."""
        left = [item[3] for item in sorted(self._due, key=lambda item: item[:2])]
        return [ask for ask in left if ask.question.every is None]

    @property
    def next_ns(self) -> int | None:
        """When the next question is due; None if none is, but perhaps at the end."""
        return self._due[0][0] if self._due else None

    def __bool__(self) -> bool:
        return bool(self._due or self._at_end)

    def _pop(self) -> Ask:
        _, order, asks, ask = heapq.heappop(self._due)
        self._push(order, asks)
        return ask


def _times(question: Question, origin_ns: int) -> Iterator[Ask]:
    if question.every is None:
        if question.at_stamp_ns is not None:
            offset = question.at_stamp_ns - origin_ns
        else:
            offset = round((question.at or 0.0) * NANOSECONDS)
        yield Ask(question, offset, question.id)
        return
    step = round(question.every * NANOSECONDS)
    first = question.every if question.first is None else question.first
    offset = round(first * NANOSECONDS)
    last = None if question.until is None else round(question.until * NANOSECONDS)
    while last is None or offset <= last:
        yield Ask(question, offset, f"{question.id}@{offset / NANOSECONDS:g}")
        offset += step
