# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""All that was seen on one line: where each time is now, and how it is told."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.session.memory_summary import LEVELS, LevelState, MemorySummary, TierState
from stream_vlm_ros.web.clock import clock_text, marks, span_text
from stream_vlm_ros.web.time_line import KINDS, NewestLine, TimeLine

NOON = 1_800_014_400 * SECOND  # 2027-01-15, 12:00:00 UTC


@pytest.fixture
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def memory(tiers=(), **spans):
    levels = tuple(
        LevelState(name, spans_ns=tuple((a * SECOND, b * SECOND) for a, b in spans.get(name, ())))
        for name in LEVELS
    )
    held = [
        TierState(name, 1, 1, 1, 1, name, start * SECOND, end * SECOND)
        for name, start, end in tiers
    ]
    return MemorySummary(levels=levels, tiers=tuple(held))


def test_a_memory_that_saw_nothing_has_no_line():
    assert TimeLine.of(MemorySummary()) is None


def test_each_time_is_where_the_memory_says():
    line = TimeLine.of(
        memory(
            sink=[(0, 2)],
            sampled=[(20, 21)],
            important=[(50, 50)],
            window=[(90, 100)],
            tiers=[("disk", 40, 95)],
        )
    )
    told = {at: line.kind_at(at * SECOND) for at in (1, 10, 20, 30, 45, 50, 80, 95, 100, 101)}
    assert told == {
        1: "sink",
        10: "forgotten",
        20: "sampled",
        30: "forgotten",
        45: "history",
        50: "important",
        80: "history",
        95: "window",
        100: "window",
        101: "",
    }


def test_between_two_frames_that_follow_each_other_nothing_is_forgotten():
    held = memory(important=[(0, 1), (2, 3), (10, 11)], window=[(12, 20)])
    line = TimeLine.of(replace(held, spans_ns=((0, 3 * SECOND), (10 * SECOND, 20 * SECOND))))
    kinds = {at: line.kind_at(round(at * SECOND)) for at in (1.5, 5, 11.5, 12)}
    assert kinds == {1.5: "important", 5: "forgotten", 11.5: "important", 12: "important"}
    assert len(line.props["bands"]) == 1 + 2 + 1  # forgotten, important twice, window


def test_a_history_alone_has_a_line():
    line = TimeLine.of(memory(tiers=[("disk", 10, 20), ("RAM", 18, 30)]))
    assert (line.start_ns, line.end_ns) == (10 * SECOND, 30 * SECOND)
    assert line.kind_at(15 * SECOND) == line.kind_at(25 * SECOND) == "history"


def test_the_browser_is_given_times_that_its_numbers_hold():
    line = TimeLine.of(memory(sink=[(1_800_000_000, 1_800_000_002)]))
    assert line.props["origin"] == str(1_800_000_000 * SECOND)
    assert line.props["length"] == 2000
    assert ["sink", 0, 2000] in line.props["bands"]


spans = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), max_size=30).map(
    lambda found: [(start, start + length) for start, length in found]
)


@given(st.fixed_dictionaries(dict.fromkeys(LEVELS, spans)))
def test_nothing_that_is_held_is_called_forgotten(held):
    line = TimeLine.of(memory(**held))
    every = [(name, *span) for name, found in held.items() for span in found]
    if not every:
        assert line is None
        return
    rank = list(KINDS)
    for name, start, end in every:
        for at in (start, end):
            assert rank.index(line.kind_at(at * SECOND)) >= rank.index(name)


def test_many_frames_close_together_are_one_band():
    frames = [(i, i) for i in range(0, 5000)]
    line = TimeLine.of(memory(important=frames, sink=[(100_000, 100_001)]))
    assert [band for band in line.props["bands"] if band[0] == "important"] == [
        ["important", 0, 4_999_000]
    ]


def test_what_lies_outside_the_line_is_not_marked_on_it():
    line = TimeLine.of(memory(window=[(10, 20)]))
    spans_ns = [(s * SECOND, e * SECOND) for s, e in [(0, 5), (5, 12), (19, 30), (40, 50)]]
    assert line.spans(spans_ns) == [[0, 2000], [9000, 10_000]]


def test_it_is_made_once_for_all_who_look():
    newest, now = NewestLine(), memory(window=[(10, 20)])
    assert newest.of(now) is newest.of(now)
    assert newest.of(memory(window=[(10, 21)])).end_ns == 21 * SECOND


@pytest.mark.parametrize(
    ("stamp_ns", "text"),
    [
        (0, "0:00.0"),
        (round(63.47 * SECOND), "1:03.4"),
        (3_723 * SECOND, "1:02:03.0"),
        (NOON + 7 * SECOND + 250_000_000, "12:00:07.2"),
        (-2 * SECOND, "-0:02.0"),
    ],
)
def test_a_time_reads_as_people_say_it(utc, stamp_ns, text):
    assert clock_text(stamp_ns) == text


def test_a_moment_is_told_once():
    assert span_text(SECOND, SECOND + 1) == "0:01.0"
    assert span_text(SECOND, 3 * SECOND) == "0:01.0–0:03.0"


def test_marks_stand_at_round_times(utc):
    assert marks(0, 40 * SECOND) == [(s * SECOND, f"0:{s:02d}") for s in (0, 10, 20, 30, 40)]
    start = NOON - 90 * SECOND
    assert [text for _, text in marks(start, start + 300 * SECOND)] == [
        "11:59", "12:00", "12:01", "12:02", "12:03"
    ]  # fmt: skip


@given(st.integers(0, 10**10), st.integers(1, 10**7))
def test_marks_are_few_and_lie_on_the_line(start, length):
    start_ns, end_ns = start * SECOND // 10, (start + length) * SECOND // 10
    found = marks(start_ns, end_ns)
    assert len(found) <= 7
    assert all(start_ns - 2 <= stamp_ns <= end_ns + 2 for stamp_ns, _ in found)
