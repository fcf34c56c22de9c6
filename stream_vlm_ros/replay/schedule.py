# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""When each question is due: arithmetic on times alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stream_vlm_ros.engine.inputs.timestamps import SECOND

from .questions import Question


@dataclass(frozen=True)
class Ask:
    """A question at one time. ``offset_ns`` counts from the source's first frame; None: at the
    end. ``id`` is the question's, with the time for one that is asked every so often."""

    question: Question
    offset_ns: int | None
    id: str


@dataclass
class Passed:
    """Times of one question at which it was not asked, since no frame had come: how many, and the
    longest stretch of them, in nanoseconds from the source's first frame."""

    question: Question
    count: int = 0
    longest: tuple[int, int] = (0, 0)

    def add(self, count: int, first_ns: int, last_ns: int) -> None:
        """``count`` times more, from ``first_ns`` to ``last_ns``."""
        self.count += count
        if last_ns - first_ns >= self.longest[1] - self.longest[0]:
            self.longest = (first_ns, last_ns)

    def __str__(self) -> str:
        first, last = (f"{_seconds(time)} s" for time in self.longest)
        stretch = f"at {first}" if first == last else f"the longest gap from {first} to {last}"
        return (
            f"{self.question.id} was not asked at {self.count:,} of its times: no frame had come "
            f"since the one before ({stretch})."
        )


@dataclass(order=True)
class _Due:
    """The next time of a question that is asked once, or every ``step_ns`` up to ``last_ns``."""

    offset_ns: int
    order: int
    question: Question = field(compare=False)
    step_ns: int | None = field(default=None, compare=False)
    last_ns: int | None = field(default=None, compare=False)
    asked_ns: int | None = field(default=None, compare=False)

    @property
    def is_over(self) -> bool:
        return self.last_ns is not None and self.offset_ns > self.last_ns

    @property
    def ask(self) -> Ask:
        name = self.question.id
        if self.step_ns is not None:
            name = f"{name}@{_seconds(self.offset_ns)}"
        return Ask(self.question, self.offset_ns, name)


class Schedule:
    """The questions of one memory in the order of their times; those of one time in file order.

    Args:
        questions: of this memory.
        origin_ns: stamp of the source's first frame.
        where_frames_are: a question asked every so often is asked again only when a frame has come
            since, so that there are no more asks than frames, whatever the stamps; `saw` tells of
            frames, ``passed`` of the times left out.
    """

    def __init__(
        self, questions: Iterable[Question], origin_ns: int, where_frames_are: bool = False
    ) -> None:
        self._at_end: list[Ask] = []
        self._due: list[_Due] = []
        self._where_frames_are = where_frames_are
        self._newest_ns: int | None = None
        self._passed: dict[str, Passed] = {}
        for order, question in enumerate(questions):
            if question.at_end:
                self._at_end.append(Ask(question, None, question.id))
            else:
                self._push(_first_time(order, question, origin_ns))

    def _push(self, due: _Due) -> None:
        if not due.is_over:
            heapq.heappush(self._due, due)

    def saw(self, offset_ns: int) -> None:
        """A frame of this time has come; all that is due before it has been taken out."""
        self._newest_ns = offset_ns

    def before(self, offset_ns: int) -> Iterator[Ask]:
        """Takes out what is due before ``offset_ns``."""
        while self._due and self._due[0].offset_ns < offset_ns:
            due = heapq.heappop(self._due)
            if due.step_ns is None:
                yield due.ask
            elif self._is_to_be_asked(due):
                yield due.ask
                due.asked_ns = due.offset_ns
                due.offset_ns += due.step_ns
                self._push(due)
            else:
                self._pass_over(due, offset_ns)

    def _is_to_be_asked(self, due: _Due) -> bool:
        if not self._where_frames_are:
            return True
        newest = self._newest_ns
        return newest is not None and (due.asked_ns is None or newest > due.asked_ns)

    def _pass_over(self, due: _Due, offset_ns: int) -> None:
        """Go on to the first time at ``offset_ns`` or after it."""
        assert due.step_ns is not None
        stop = offset_ns if due.last_ns is None else min(offset_ns, due.last_ns + 1)
        count = -(-(stop - due.offset_ns) // due.step_ns)
        last = due.offset_ns + (count - 1) * due.step_ns
        if self._newest_ns is not None:  # before the first frame there is no gap
            passed = self._passed.setdefault(due.question.id, Passed(due.question))
            passed.add(count, due.offset_ns, last)
        due.offset_ns = last + due.step_ns
        self._push(due)

    @property
    def passed(self) -> list[Passed]:
        """The times left out so far, question by question."""
        return list(self._passed.values())

    def until(self, offset_ns: int) -> Iterator[Ask]:
        """Takes out what is due at ``offset_ns`` or before, and then what is due at the end."""
        yield from self.before(offset_ns + 1)
        while self._at_end:
            yield self._at_end.pop(0)

    def count_until(self, offset_ns: int) -> int:
        """How many asks are due at ``offset_ns`` or before, or at the end; takes none out."""
        count = len(self._at_end)
        for due in self._due:
            stop = offset_ns if due.last_ns is None else min(offset_ns, due.last_ns)
            if due.offset_ns <= stop:
                count += 1 if due.step_ns is None else (stop - due.offset_ns) // due.step_ns + 1
        return count

    def rest(self) -> list[Ask]:
        """What is left: due after the end. Of a question asked every so often only what has a
        last time of its own, once."""
        return [due.ask for due in sorted(self._due) if due.step_ns is None]

    @property
    def next_ns(self) -> int | None:
        """When the next question is due; None if none is, but perhaps at the end."""
        return self._due[0].offset_ns if self._due else None

    def __bool__(self) -> bool:
        return bool(self._due or self._at_end)


def _seconds(time_ns: int) -> str:
    """Nanoseconds as seconds, with no more digits than they take."""
    return f"{time_ns / SECOND:.9f}".rstrip("0").rstrip(".")


def _first_time(order: int, question: Question, origin_ns: int) -> _Due:
    if question.every is None:
        if question.at_stamp_ns is not None:
            return _Due(question.at_stamp_ns - origin_ns, order, question)
        return _Due(round((question.at or 0.0) * SECOND), order, question)
    first = question.every if question.first is None else question.first
    return _Due(
        round(first * SECOND),
        order,
        question,
        step_ns=round(question.every * SECOND),
        last_ns=None if question.until is None else round(question.until * SECOND),
    )
