# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""When questions are due."""

from __future__ import annotations

import bisect
import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.replay.judging import make_judge
from stream_vlm_ros.replay.questions import Question
from stream_vlm_ros.replay.schedule import Schedule

SECOND = 1_000_000_000
NONE = make_judge("none", ())


def question(name, **when):
    return Question(name, name, NONE, **when)


def ids(asks):
    return [ask.id for ask in asks]


def test_questions_come_in_the_order_of_their_times_and_of_the_file():
    schedule = Schedule([question("late", at=9.0), question("b", at=2.0), question("a", at=2.0)], 0)
    assert ids(schedule.before(2 * SECOND)) == []
    assert ids(schedule.before(2 * SECOND + 1)) == ["b", "a"]
    assert schedule.next_ns == 9 * SECOND
    assert ids(schedule.rest()) == ["late"]


def test_a_stamp_of_the_source_is_counted_from_its_first_frame():
    schedule = Schedule([question("a", at_stamp_ns=107 * SECOND)], 100 * SECOND)
    assert schedule.next_ns == 7 * SECOND


def test_a_question_asked_every_so_often_ends_with_the_source_or_before():
    schedule = Schedule(
        [
            question("x", every=2.0, until=5.0),
            question("y", every=3.0, first=0.0),
            question("z", at_end=True),
        ],
        0,
    )
    assert ids(schedule.until(6 * SECOND)) == ["y@0", "x@2", "y@3", "x@4", "y@6", "z"]
    assert ids(schedule.rest()) == []
    assert schedule.next_ns == 9 * SECOND


def fed(questions, frames, end=None):
    """The asks of a source with frames at these seconds, and the schedule."""
    schedule, asks = Schedule(questions, 0, where_frames_are=True), []
    for frame in frames:
        asks += ids(schedule.before(round(frame * SECOND)))
        schedule.saw(round(frame * SECOND))
    asks += ids(schedule.until(round((frames[-1] if end is None else end) * SECOND)))
    return asks, schedule


@pytest.mark.parametrize("gap", [86_400, 1_700_000_000])
def test_a_gap_is_not_asked_through_and_is_said(gap):
    frames = [*range(26), *(gap + k for k in range(3))]
    asks, schedule = fed([question("x", every=1.0)], frames)
    assert asks == [f"x@{second}" for second in [*range(1, 26), *(gap + k for k in range(3))]]
    (passed,) = schedule.passed
    assert passed.count == gap - 26
    assert f"{gap - 26:,} of its times" in str(passed)
    assert f"from 26 s to {gap - 1} s" in str(passed)


def test_a_question_is_asked_again_only_when_a_frame_has_come_since():
    # Frames every 2 s; at 3 s nothing is new, at 3.5 s neither.
    asks, schedule = fed([question("x", every=0.5, until=5.0)], [0, 2, 4, 6])
    assert asks == ["x@0.5", "x@2", "x@4"]
    assert schedule.passed[0].count == 10 - 3  # of the ten times up to 5 s


@given(
    steps=st.lists(st.sampled_from([1, 3, 7, 50, 10**12]), min_size=1, max_size=30),
    every=st.sampled_from([0.002, 0.01, 0.5]),
    until=st.none() | st.integers(0, 300),
)
def test_there_are_no_more_asks_than_frames_and_each_sees_something_new(steps, every, until):
    millis = list(itertools.accumulate(steps))
    last = None if until is None else until / 1000
    exact = [Fraction(m, 1000) for m in millis]  # floats so far away are no whole nanoseconds
    asks, _ = fed([question("x", every=every, until=last)], exact)
    times = [round(float(ask.removeprefix("x@")) * 1000) for ask in asks]
    assert len(asks) <= len(millis)
    assert all(time % round(every * 1000) == 0 for time in times)
    seen = [bisect.bisect_right(millis, time) for time in times]  # frames each could see
    assert seen == sorted(set(seen)) and 0 not in seen
    # Wherever frames lie closer than the question's period it is asked at every time.
    if max(steps[1:], default=0) <= every * 1000 and until is None:
        first = -(-millis[0] // round(every * 1000))
        wanted = range(max(first, 1), millis[-1] // round(every * 1000) + 1)
        assert len(asks) == len(wanted)


def test_times_far_away_keep_names_of_their_own():
    asks, _ = fed([question("x", every=0.5)], [k / 2 + 1_700_000_000 for k in range(9)])
    assert len(set(asks)) == len(asks) == 9


def test_asks_can_be_counted_without_being_made():
    questions = [
        question("x", every=0.001),
        question("y", every=2.0, until=5.0),
        question("z", at=3.0),
        question("late", at=2e9),
        question("end", at_end=True),
    ]
    schedule = Schedule(questions, 0)
    assert schedule.count_until(1_700_000_000 * SECOND) == 1_700_000_000_000 + 2 + 1 + 1
    assert schedule.count_until(4 * SECOND) == len(list(schedule.until(4 * SECOND)))
