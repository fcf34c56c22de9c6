# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What was held when a question was asked, drawn over the source's time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .records import AnswerRecord, Held

THINNEST = 0.5  # percent: what lasts less is drawn as wide
MAX_ROWS = 300  # more cannot be told apart


class Bar(NamedTuple):
    """A stretch of one ``kind``: ``forgotten``, ``history``, ``memory``, ``window``, ``evidence``
    or ``asked``; where it begins and how wide it is, in percent of the time line."""

    kind: str
    left: float
    width: float


@dataclass(frozen=True)
class TimeLine:
    """From ``begin`` to ``end``, in seconds of the source."""

    begin: float
    end: float

    @classmethod
    def of(cls, report: dict[str, Any]) -> TimeLine:
        """Over all that the report's runs saw and were asked."""
        begin = report["source"].get("options", {}).get("start") or 0.0
        times = [entry["at"] for run in report["runs"] for entry in run["series"]]
        times += [a["at"] for run in report["runs"] for a in run["answers"] if "seen" in a]
        return cls(begin, max([begin + 1.0, *times]))

    def bars(self, answer: AnswerRecord) -> list[Bar]:
        """Of one answer, those behind first. None where nobody knows what was held."""
        if "seen" not in answer:
            return []
        held = answer["held"] if "held" in answer else Held(window=[], history=[])
        at = answer["at"]
        found = [self._bar("forgotten", self.begin, at)]
        for kind, spans in (
            ("history", held["history"]),
            ("memory", answer["seen"]),
            ("window", held["window"]),
            ("evidence", answer["evidence"]),
        ):
            found += [self._bar(kind, first, last) for first, last in spans]
        return [*found, self._bar("asked", at, at)]

    def rows(self, answers: Iterable[AnswerRecord]) -> list[tuple[AnswerRecord, list[Bar]]]:
        """Of a run, in the order of time; none where they are too many to be told apart."""
        rows = [(answer, bars) for answer in answers if (bars := self.bars(answer))]
        rows.sort(key=lambda row: row[0]["at"])
        return rows if len(rows) <= MAX_ROWS else []

    def marks(self, count: int = 4) -> Sequence[float]:
        """Times to write below it, from begin to end."""
        return [self.begin + k * (self.end - self.begin) / count for k in range(count + 1)]

    def _bar(self, kind: str, first: float, last: float) -> Bar:
        left, right = (
            100 * (min(max(t, self.begin), self.end) - self.begin) / (self.end - self.begin)
            for t in (first, last)
        )
        width = max(right - left, THINNEST)
        return Bar(kind, round(min(left, 100 - width), 3), round(width, 3))
